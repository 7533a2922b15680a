//! The pool with a bound on silence: one request to one upstream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::sleep;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::pool::{ConnPool, ResponseBody};

use crate::answer::{self, is_grpc};
use crate::silence::Silence;
use crate::upload::Upload;

/// How long an upstream may say nothing to `Expect: 100-continue` before it gets the body anyway: it may not know it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clones share the pool.
#[derive(Clone)]
pub(crate) struct Origin {
    pool: ConnPool<Upload>,
    timeout: Duration,
}

/// What an upstream sends. A gRPC call that breaks off ends with a status that says so.
pub(crate) struct Download {
    /// `None` once it has ended.
    body: Option<ResponseBody>,
    silence: Silence,
    grpc: bool,
}

impl Origin {
    pub(crate) fn new(pool: ConnPool<Upload>, timeout: Duration) -> Self {
        Self { pool, timeout }
    }
}

impl Service<Request<Upload>> for Origin {
    type Response = Response<Download>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<Upload>) -> Self::Future {
        let upload = req.body().progress();
        let mut silence = Silence::new(self.timeout, upload.clone());
        let mut patience = upload.held().then(|| Box::pin(sleep(PATIENCE)));
        let mut sent = self.pool.call(req);
        Box::pin(async move {
            let mut response = poll_fn(|cx| {
                if let Poll::Ready(done) = Pin::new(&mut sent).poll(cx) {
                    return Poll::Ready(done.map_err(BoxError::from));
                }
                // The pool bounds how long that takes.
                if sent.is_waiting() {
                    return Poll::Pending;
                }
                if let Some(waiting) = &mut patience
                    && waiting.as_mut().poll(cx).is_ready()
                {
                    upload.release();
                    patience = None;
                }
                silence.poll(cx).map(Err)
            })
            .await?;
            silence.heard();
            let grpc = is_grpc(response.headers());
            // RFC 9112 6.3: the coding tells where it ends, and nobody behind is to think otherwise.
            if response.headers().contains_key(TRANSFER_ENCODING) {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            Ok(response.map(|body| Download {
                body: Some(body),
                silence,
                grpc,
            }))
        })
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let error = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => error.into(),
            Poll::Ready(frame) => {
                this.silence.heard();
                return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
            }
            Poll::Pending => match this.silence.poll(cx) {
                Poll::Ready(error) => error,
                Poll::Pending => return Poll::Pending,
            },
        };
        this.body = None;
        Poll::Ready(Some(match this.grpc {
            true => Ok(Frame::trailers(trailers(&error))),
            false => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(ResponseBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(ResponseBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

fn trailers(error: &BoxError) -> HeaderMap {
    let (_, code, message) = answer::meaning(error.as_ref());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code.index() as u64));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    trailers
}
