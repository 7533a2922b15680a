//! How requests go out on a connection, and the memory their answers come back in.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use pin_project_lite::pin_project;

use super::link::Ready;
use crate::base::error::BoxError;
use crate::base::phases::Timings;

/// hyper's end of a connection.
pub(super) struct Sender<B> {
    by: By<B>,
    /// What requests before left behind, the first of them first: by then its response is forgotten, as a rule.
    spare: VecDeque<Kit<B>>,
}

pub(super) enum By<B> {
    Http1(http1::SendRequest<B>),
    Http2(http2::SendRequest<B>),
}

/// What a request needs memory for. hyper's futures have no names: they are boxed, and the box serves one after the
/// other.
pub(super) struct Kit<B> {
    pub(super) answer: Answer<B>,
    pub(super) timings: Option<Timings>,
}

pub(super) type Answer<B> = Pin<Box<dyn Answering<B>>>;

pub(super) type Answered<B> = Result<Response<Incoming>, TrySendError<Request<B>>>;

/// The future of one answer after the other.
pub(super) trait Answering<B>: Future<Output = Answered<B>> + Send {
    fn send(self: Pin<&mut Self>, by: &mut By<B>, req: Request<B>);
}

pin_project! {
    struct Reusable<M, F> {
        make: M,
        #[pin]
        answer: Option<F>,
    }
}

/// More than this many answers at a time leave nothing behind.
const SPARE: usize = 128;

// ===== impl Sender =====

impl<B> Sender<B> {
    pub(super) fn http1(sender: http1::SendRequest<B>) -> Self {
        Self::by(By::Http1(sender))
    }

    pub(super) fn http2(sender: http2::SendRequest<B>) -> Self {
        Self::by(By::Http2(sender))
    }

    fn by(by: By<B>) -> Self {
        Self {
            by,
            spare: VecDeque::new(),
        }
    }

    /// Sends `req`. Its answer comes in the kit.
    #[inline]
    pub(super) fn send(&mut self, req: Request<B>) -> Kit<B>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let spare = self.spare.pop_front();
        let mut kit = spare.unwrap_or_else(|| Kit::new(&self.by));
        kit.answer.as_mut().send(&mut self.by, req);
        kit
    }

    /// Takes back the kit of a request that was answered.
    #[inline]
    pub(super) fn keep(&mut self, kit: Kit<B>) {
        if self.spare.len() < SPARE {
            self.spare.push_back(kit);
        }
    }
}

impl<B> Ready for Sender<B> {
    #[inline]
    fn ready(&self) -> bool {
        match &self.by {
            By::Http1(sender) => sender.is_ready(),
            By::Http2(_) => false,
        }
    }
}

// ===== impl Kit =====

impl<B> Kit<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    #[cold]
    fn new(by: &By<B>) -> Self {
        let answer: Answer<B> = match by {
            By::Http1(_) => Reusable::boxed(|by: &mut By<B>, req| match by {
                By::Http1(sender) => sender.try_send_request(req),
                By::Http2(_) => unreachable!("a connection speaks one version"),
            }),
            By::Http2(_) => Reusable::boxed(|by: &mut By<B>, req| match by {
                By::Http2(sender) => sender.try_send_request(req),
                By::Http1(_) => unreachable!("a connection speaks one version"),
            }),
        };
        Self {
            answer,
            timings: None,
        }
    }
}

// ===== impl Reusable =====

impl<M, F> Reusable<M, F> {
    fn boxed<B>(make: M) -> Answer<B>
    where
        M: Fn(&mut By<B>, Request<B>) -> F + Send + 'static,
        F: Future<Output = Answered<B>> + Send + 'static,
    {
        Box::pin(Self { make, answer: None })
    }
}

impl<B, M, F> Answering<B> for Reusable<M, F>
where
    M: Fn(&mut By<B>, Request<B>) -> F + Send,
    F: Future<Output = Answered<B>> + Send,
{
    #[inline]
    fn send(self: Pin<&mut Self>, by: &mut By<B>, req: Request<B>) {
        let mut this = self.project();
        let answer = (this.make)(by, req);
        this.answer.set(Some(answer));
    }
}

impl<M, F: Future> Future for Reusable<M, F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let Some(answer) = this.answer.as_mut().as_pin_mut() else {
            unreachable!("nobody waits for an answer without a request");
        };
        let polled = answer.poll(cx);
        if polled.is_ready() {
            this.answer.set(None);
        }
        polled
    }
}
