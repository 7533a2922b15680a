//! The answer to a refused HTTP request, and what is left of its body.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body;
use pin_project_lite::pin_project;

use super::classify::ClassifyResponse;
use super::http::ResponseBody;

/// So much of a refused HTTP/1 request's body is read so that the connection can be used again.
const MOST_DRAINED: usize = 64 * 1024;

/// So much at least each frame counts for.
const LEAST_FRAME: usize = 256;

/// And for so long.
const PATIENCE: Duration = Duration::from_millis(250);

pin_project! {
    /// The answer to a refused request. On HTTP/1 it first reads what is left of the request's body, at most 64 KiB
    /// and 250 ms; when that is not all, it asks for the connection to be closed.
    pub struct Refused<B, ResBody: Body, C: ClassifyResponse, E> {
        answer: Option<Result<Response<ResponseBody<ResBody, C>>, E>>,
        #[pin]
        rest: Option<B>,
        #[pin]
        patience: Option<tokio::time::Sleep>,
        left: usize,
        close: bool,
    }
}

impl<B: Body, ResBody: Body, C: ClassifyResponse, E> Refused<B, ResBody, C, E> {
    /// `answer`, once the rest of `req` has been dealt with.
    pub(super) fn new(req: Request<B>, answer: Result<Response<()>, E>) -> Self {
        let (parts, body) = req.into_parts();
        // On HTTP/1 whatever is left of the request stands between this answer and the next request.
        let open = parts.version < Version::HTTP_2 && !body.is_end_stream();
        // Asking for a body whose sender waits for leave to send it would give that leave.
        let held_back = open && parts.headers.contains_key(http::header::EXPECT);
        let rest = open && !held_back;
        Self {
            answer: Some(answer.map(|response| response.map(|()| ResponseBody::refused()))),
            rest: rest.then_some(body),
            patience: None,
            left: MOST_DRAINED,
            close: held_back,
        }
    }
}

impl<B, ResBody, C, E> Future for Refused<B, ResBody, C, E>
where
    B: Body,
    ResBody: Body,
    C: ClassifyResponse,
{
    type Output = Result<Response<ResponseBody<ResBody, C>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut close = *this.close;
        if let Some(mut rest) = this.rest.as_mut().as_pin_mut() {
            loop {
                let frame = match rest.as_mut().poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => frame,
                    Poll::Ready(None) => break,
                    Poll::Ready(Some(Err(_))) => {
                        close = true;
                        break;
                    }
                    Poll::Pending => {
                        if this.patience.is_none() {
                            this.patience.set(Some(tokio::time::sleep(PATIENCE)));
                        }
                        if let Some(patience) = this.patience.as_mut().as_pin_mut() {
                            ready!(patience.poll(cx));
                        }
                        close = true;
                        break;
                    }
                };
                // A frame of nothing is something too, or they could go on for ever.
                let read = frame.data_ref().map_or(0, Buf::remaining).max(LEAST_FRAME);
                *this.left = this.left.saturating_sub(read);
                if *this.left == 0 && !rest.is_end_stream() {
                    close = true;
                    break;
                }
            }
        }
        let mut answer = this
            .answer
            .take()
            .expect("a refusal is answered once and not polled again");
        if close && let Ok(response) = &mut answer {
            let headers = response.headers_mut();
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(answer)
    }
}

impl<B, ResBody: Body, C: ClassifyResponse, E> std::fmt::Debug for Refused<B, ResBody, C, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refused").finish_non_exhaustive()
    }
}
