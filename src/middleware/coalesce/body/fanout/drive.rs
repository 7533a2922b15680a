//! One poll of the body, by one reader for all.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::super::end::End;
use super::super::log::After;
use super::super::rejection;
use super::{FanOut, Upstream};
use crate::base::error::SharedError;
use crate::base::error::{BoxError, Reason};

/// What one poll of the body brought.
enum News {
    Pending,
    /// A frame of no kind that is known.
    Nothing,
    /// Data, and whether it is the last.
    Data(Bytes, bool),
    End(End),
}

// ===== impl FanOut =====

impl<B> FanOut<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Polls the body that [`Turn::Drive`](super::Turn::Drive) gave out, once. Whether anything came of it.
    ///
    /// # Panics
    ///
    /// When the body does; every reader has an error to take then.
    pub(in super::super) fn drive(self: &Arc<Self>, mut body: Pin<Box<B>>) -> bool {
        let waker = Waker::from(self.clone());
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let frame = body.as_mut().poll_frame(&mut Context::from_waker(&waker));
            let news = match frame {
                Poll::Pending => News::Pending,
                Poll::Ready(Some(Ok(frame))) => News::of(frame, || body.is_end_stream()),
                Poll::Ready(Some(Err(error))) => {
                    return (News::End(End::Error(SharedError::new(error))), None);
                }
                Poll::Ready(None) => return (News::End(End::Clean), None),
            };
            (news, Some(body.size_hint()))
        }));
        match polled {
            Ok((news, hint)) => self.give_back(body, news, hint),
            Err(payload) => {
                let message = "the body panicked while one of its readers polled it; ask again";
                let end = End::Error(SharedError::new(rejection(Reason::Panicked, message)));
                self.give_back(body, News::End(end), None);
                resume_unwind(payload)
            }
        }
    }

    fn give_back(&self, body: Pin<Box<B>>, news: News, hint: Option<SizeHint>) -> bool {
        let mut after = After::default();
        let mut body = Some(body);
        let came = !matches!(news, News::Pending | News::Nothing);
        let mut state = self.lock();
        state.hint = hint.unwrap_or(state.hint);
        match news {
            News::Pending => {}
            News::Nothing => state.notified = true,
            News::Data(bytes, last) => {
                state.notified = true;
                state.log.push(bytes, &mut after);
                if last && !state.log.ended() {
                    state.log.finish(End::Clean, &mut after);
                }
            }
            News::End(end) => state.log.finish(end, &mut after),
        }
        state.upstream = match body.take_if(|_| !state.log.ended()) {
            Some(body) => Upstream::Idle(body),
            None => Upstream::Gone,
        };
        state.settle(&mut after);
        drop(state);
        // The others first: nothing of theirs depends on how the body goes.
        after.run();
        drop(body);
        came
    }
}

// ===== impl News =====

impl News {
    fn of(frame: Frame<Bytes>, over: impl FnOnce() -> bool) -> Self {
        match frame.into_data() {
            Ok(bytes) => Self::Data(bytes, over()),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Self::End(End::Trailers(Arc::new(trailers))),
                Err(_) => Self::Nothing,
            },
        }
    }
}
