use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::admission::Admission;
use super::protocol::{Held, Protocol};
use super::waiting::Waiting;
use crate::base::cost::{self, Toll};

pin_project! {
    /// The response future of [`Shed`](super::Shed).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, P>
    where
        S: Service<Req>,
        P: Protocol<Req, S::Response, S::Error>,
    {
        // Beside the stage and not in it: it stays where it is from the call to the end.
        held: Held,
        #[pin]
        stage: Stage<S, Req, S::Future, P::Refused>,
        protocol: P,
        toll: Toll,
    }
}

pin_project! {
    /// How far a request has come.
    #[project = StageProject]
    enum Stage<S, Req, F, R> {
        /// It waits for a slot.
        Queued { waiting: Waiting, parked: Option<(S, Req)> },
        /// It has a slot and waits until the inner service is ready.
        Admitted { parked: Option<(S, Req)> },
        Running { #[pin] inner: F },
        Refused { #[pin] answer: R },
        Done,
    }
}

impl<S, Req, P> ResponseFuture<S, Req, P>
where
    S: Service<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    #[inline(always)]
    pub(super) fn new(
        admission: Admission,
        inner: impl FnOnce() -> S,
        req: Req,
        protocol: P,
        toll: Toll,
    ) -> Self {
        let (permit, stage) = match admission {
            Admission::Go(permit) => {
                let parked = Some((inner(), req));
                (Some(permit), Stage::Admitted { parked })
            }
            Admission::Wait(waiting) => {
                let stage = Stage::Queued {
                    waiting,
                    parked: Some((inner(), req)),
                };
                (None, stage)
            }
            Admission::Refuse(refusal) => {
                let answer = protocol.refuse(req, refusal);
                (None, Stage::Refused { answer })
            }
        };
        Self {
            held: Held(permit),
            stage,
            protocol,
            toll,
        }
    }
}

impl<S, Req, P> Future for ResponseFuture<S, Req, P>
where
    S: Service<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Output = Result<P::Response, P::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _own = this.toll.own();
        loop {
            let next = match this.stage.as_mut().project() {
                StageProject::Queued { waiting, parked } => {
                    let settled = ready!(waiting.poll(cx.waker()));
                    let (inner, req) = parked.take().expect("a request is parked while it waits");
                    match settled {
                        Ok(permit) => {
                            this.held.0 = Some(permit);
                            let parked = Some((inner, req));
                            Stage::Admitted { parked }
                        }
                        Err(refusal) => Stage::Refused {
                            answer: this.protocol.refuse(req, refusal),
                        },
                    }
                }
                StageProject::Admitted { parked } => {
                    let armed = OnUnwind(this.held);
                    let (inner, _) = parked.as_mut().expect("a request is parked until it runs");
                    let readiness = cost::inner(|| inner.poll_ready(cx));
                    let started = readiness.map_ok(|()| {
                        let (mut inner, req) = parked.take().expect("it was there");
                        cost::inner(|| inner.call(req))
                    });
                    std::mem::forget(armed);
                    match ready!(started) {
                        Ok(inner) => Stage::Running { inner },
                        Err(error) => {
                            this.stage.set(Stage::Done);
                            return Poll::Ready(this.protocol.finish(Err(error), this.held));
                        }
                    }
                }
                StageProject::Running { inner } => {
                    let armed = OnUnwind(this.held);
                    let polled = cost::inner(|| inner.poll(cx));
                    std::mem::forget(armed);
                    let result = ready!(polled);
                    // The permit ends in this poll, whenever the future is dropped.
                    return Poll::Ready(this.protocol.finish(result, this.held));
                }
                StageProject::Refused { answer } => {
                    let answer = ready!(answer.poll(cx));
                    this.stage.set(Stage::Done);
                    return Poll::Ready(answer);
                }
                StageProject::Done => panic!("shed: the future was polled after it was done"),
            };
            this.stage.set(next);
        }
    }
}

/// Gives the slot back in the unwinding that ends a request: who catches the panic may keep the future for long.
struct OnUnwind<'a>(&'a mut Held);

impl Drop for OnUnwind<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.0 = None;
    }
}

impl<S, Req, P> std::fmt::Debug for ResponseFuture<S, Req, P>
where
    S: Service<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match &self.stage {
            Stage::Queued { .. } => "queued",
            Stage::Admitted { .. } => "admitted",
            Stage::Running { .. } => "running",
            Stage::Refused { .. } => "refused",
            Stage::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .finish()
    }
}
