use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tower_service::Service;

use super::path::{PAGES, text};
use crate::base::flow::Flow;

/// The live endpoint as a tower service. It never fails and reads no request body.
#[derive(Debug, Clone)]
pub struct AdminService(Flow);

impl AdminService {
    pub(super) fn new(flow: Flow) -> Self {
        Self(flow)
    }

    fn answer<B>(&self, req: &Request<B>) -> Response<Full<Bytes>> {
        let Some(page) = PAGES.iter().find(|page| page.path == req.uri().path()) else {
            let known: Vec<_> = PAGES.iter().map(|page| page.path).collect();
            let message = format!(
                "there is no such path here; there are {}\n",
                known.join(", ")
            );
            return with_status(StatusCode::NOT_FOUND, message);
        };
        if !matches!(*req.method(), Method::GET | Method::HEAD) {
            let mut refused = with_status(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here\n",
            );
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        (page.answer)(&self.0, req.headers())
    }
}

fn with_status(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = text(body);
    *response.status_mut() = status;
    response
}

impl<B> Service<Request<B>> for AdminService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&req)))
    }
}
