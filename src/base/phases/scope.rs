use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::dial::Span;
use super::{Dial, Phase};

pin_project! {
    /// A future during which a dial is the current one; made by [`Dial::scope`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Scope<F> {
        #[pin]
        inner: F,
        dial: Option<Dial>,
    }
}

pin_project! {
    /// A future that is a phase of the current dial; made by [`Phase::mark`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Marked<F> {
        #[pin]
        inner: F,
        phase: Phase,
        polled: bool,
        span: Option<Span>,
    }
}

thread_local! {
    /// The dial whose future is being polled on this thread.
    static CURRENT: RefCell<Option<Dial>> = const { RefCell::new(None) };
}

impl Dial {
    /// The dial whose future is being polled on this thread.
    pub fn current() -> Option<Self> {
        CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()
    }

    /// Makes this the [`current`](Self::current) dial whenever `future` is polled.
    pub fn scope<F>(&self, future: F) -> Scope<F> {
        Scope {
            inner: future,
            dial: Some(self.clone()),
        }
    }
}

impl Phase {
    /// Makes `future` this phase of the dial that is current when it is first polled. Without one it only passes on.
    pub fn mark<F>(self, future: F) -> Marked<F> {
        Marked {
            inner: future,
            phase: self,
            polled: false,
            span: None,
        }
    }
}

// ===== impl Scope =====

/// Exchanges what is current with what a scope holds, and back when dropped, in a panic too.
struct Entered<'a>(&'a mut Option<Dial>);

impl<'a> Entered<'a> {
    fn new(dial: &'a mut Option<Dial>) -> Self {
        swap(dial);
        Self(dial)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

fn swap(dial: &mut Option<Dial>) {
    // An error while the thread ends; then nothing is current, in either direction.
    let _ = CURRENT.try_with(|current| std::mem::swap(&mut *current.borrow_mut(), dial));
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.dial);
        this.inner.poll(cx)
    }
}

// ===== impl Marked =====

impl<F, T, E> Future for Marked<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if !*this.polled {
            *this.polled = true;
            *this.span = Dial::current().map(|dial| dial.span(*this.phase));
        }
        let result = ready!(this.inner.poll(cx));
        if let Some(span) = this.span.take()
            && result.is_ok()
        {
            span.done();
        }
        Poll::Ready(result)
    }
}
