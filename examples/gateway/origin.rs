//! The pool with a bound on silence: one request to one upstream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::sleep;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::pool::{ConnPool, ResponseBody};

use crate::fields;
use crate::interim::Interim;
use crate::silence::Silence;
use crate::upload::{Progress, Upload};

/// How long an upstream may say nothing to `Expect: 100-continue` before it gets the body anyway: it may not know it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clones share the pool.
#[derive(Clone)]
pub(crate) struct Origin {
    pool: ConnPool<Upload>,
    timeout: Duration,
}

/// What an upstream sends.
pub(crate) struct Download {
    /// `None` once it has ended.
    body: Option<ResponseBody>,
    silence: Silence,
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

    fn call(&mut self, mut req: Request<Upload>) -> Self::Future {
        let told = req.extensions_mut().remove::<Progress>();
        let upload = told.unwrap_or_else(|| req.body().progress());
        let interim = req.extensions_mut().remove::<Interim>();
        let mut silence = Silence::new(self.timeout, upload.clone(), interim);
        let patience = PATIENCE.min(self.timeout / 2);
        let mut patience = upload.held().then(|| Box::pin(sleep(patience)));
        let mut sent = self.pool.call(req);
        Box::pin(async move {
            let mut response = poll_fn(|cx| {
                if let Poll::Ready(done) = Pin::new(&mut sent).poll(cx) {
                    // What the client did wrong is told as such, whatever became of the connection.
                    return Poll::Ready(
                        done.map_err(|error| upload.failed().unwrap_or_else(|| error.into())),
                    );
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
            // RFC 9112 6.1: what is coded in another way, or twice, would be passed on as if it were not.
            let mut coded = response.headers().get_all(TRANSFER_ENCODING).into_iter();
            let first = coded.next();
            let chunked =
                first.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
            if !chunked || coded.next().is_some() {
                return Err("the upstream used a transfer coding other than chunked".into());
            }
            // RFC 9112 6.3: the coding tells where it ends, and nobody behind is to think otherwise.
            if response.headers().contains_key(TRANSFER_ENCODING) {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            Ok(response.map(|body| Download {
                body: Some(body),
                silence,
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
                return Poll::Ready(frame.map(|frame| Ok(fields::trailing(frame?))));
            }
            Poll::Pending => match this.silence.poll(cx) {
                Poll::Ready(error) => error,
                Poll::Pending => return Poll::Pending,
            },
        };
        this.body = None;
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(ResponseBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(ResponseBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}
