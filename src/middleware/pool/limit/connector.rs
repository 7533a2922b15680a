use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::acquire::Acquire;
use super::permit::Permit;
use super::scope;
use super::state::State;
use crate::base::error::BoxError;
use crate::base::stats::Lease;
use crate::middleware::pool::io::Held;

/// Limits the connections a connector makes; made by [`ConnLimit::connector_layer`](super::ConnLimit::connector_layer).
#[derive(Debug, Clone)]
pub struct ConnectorLayer(Lease<State>);

/// A connector whose connections are limited; see [the module](crate::pool::limit).
#[derive(Debug)]
pub struct Connector<C> {
    inner: C,
    state: Lease<State>,
}

pin_project! {
    /// The future of a [`Connector`]: a wait, and then a dial.
    #[must_use = "futures do nothing unless polled"]
    pub struct ConnectorFuture<C: Service<Uri>> {
        // Before the permit: what is left of a dial is dropped before another may begin.
        #[pin]
        stage: Stage<C, C::Future>,
        permit: Option<Permit>,
        state: Lease<State>,
        // Whether it was begun inside a request, which then is the one it is for.
        bound: bool,
    }
}

pin_project! {
    #[project = StageProject]
    enum Stage<C, F> {
        Waits { acquire: Acquire, parked: Option<(C, Uri)> },
        /// It has a permit and waits until the inner connector is ready.
        Granted { parked: Option<(C, Uri)> },
        Dials { #[pin] inner: F },
        Over,
    }
}

// ===== impl ConnectorLayer =====

impl ConnectorLayer {
    pub(super) fn new(state: Lease<State>) -> Self {
        Self(state)
    }
}

impl<C> Layer<C> for ConnectorLayer {
    type Service = Connector<C>;

    fn layer(&self, inner: C) -> Connector<C> {
        Connector {
            inner,
            state: self.0.clone(),
        }
    }
}

// ===== impl Connector =====

impl<C> Connector<C> {
    /// The wrapped connector.
    pub fn get_ref(&self) -> &C {
        &self.inner
    }

    /// The wrapped connector.
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri> + Clone,
    C::Error: Into<BoxError>,
{
    type Response = Held<C::Response, Permit>;
    type Error = BoxError;
    type Future = ConnectorFuture<C>;

    /// Always ready: whether a dial may begin is decided in [`call`](Self::call), where its host is known. The inner
    /// connector's readiness is awaited in the future, on a clone.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let acquire = State::enter(&self.state, &to);
        ConnectorFuture {
            stage: Stage::Waits {
                acquire,
                parked: Some((self.inner.clone(), to)),
            },
            permit: None,
            bound: scope::is_entered(&self.state),
            state: self.state.clone(),
        }
    }
}

/// A clone holds nothing: permits belong to connections, and the count of them to the limit.
impl<C: Clone> Clone for Connector<C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            state: self.state.clone(),
        }
    }
}

// ===== impl ConnectorFuture =====

impl<C> Future for ConnectorFuture<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
{
    type Output = Result<Held<C::Response, Permit>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ghost = *this.bound && !scope::is_entered(this.state);
        loop {
            let next = match this.stage.as_mut().project() {
                StageProject::Waits { acquire, .. } if ghost => {
                    acquire.end_ghost();
                    this.stage.set(Stage::Over);
                    return Poll::Ready(Err(this.state.ghost().into()));
                }
                StageProject::Granted { .. } if ghost => {
                    this.stage.set(Stage::Over);
                    *this.permit = None;
                    return Poll::Ready(Err(this.state.ghost().into()));
                }
                StageProject::Waits { acquire, parked } => {
                    let (_, to) = parked
                        .as_ref()
                        .expect("a connector is parked while it waits");
                    match ready!(acquire.poll(cx, to)) {
                        Ok(permit) => *this.permit = Some(permit),
                        Err(rejection) => {
                            this.stage.set(Stage::Over);
                            return Poll::Ready(Err(rejection.into()));
                        }
                    }
                    let parked = parked.take();
                    Stage::Granted { parked }
                }
                StageProject::Granted { parked } => {
                    let (inner, _) = parked
                        .as_mut()
                        .expect("a connector is parked until it dials");
                    match ready!(inner.poll_ready(cx)) {
                        Ok(()) => {
                            let (mut inner, to) = parked.take().expect("it was there");
                            let inner = inner.call(to);
                            Stage::Dials { inner }
                        }
                        Err(error) => {
                            this.stage.set(Stage::Over);
                            fail(this.permit);
                            return Poll::Ready(Err(error.into()));
                        }
                    }
                }
                StageProject::Dials { inner } => {
                    let dialled = ready!(inner.poll(cx));
                    this.stage.set(Stage::Over);
                    return Poll::Ready(match dialled {
                        Ok(io) => {
                            let mut permit = this.permit.take().expect("a dial has a permit");
                            permit.open();
                            Ok(Held::new(io, permit))
                        }
                        Err(error) => {
                            fail(this.permit);
                            Err(error.into())
                        }
                    });
                }
                StageProject::Over => panic!("pool: the dial was polled after it was done"),
            };
            this.stage.set(next);
        }
    }
}

fn fail(permit: &mut Option<Permit>) {
    if let Some(permit) = permit.take() {
        permit.failed();
    }
}

impl<C: Service<Uri>> std::fmt::Debug for ConnectorFuture<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match &self.stage {
            Stage::Waits { .. } => "waits",
            Stage::Granted { .. } => "granted",
            Stage::Dials { .. } => "dials",
            Stage::Over => "over",
        };
        f.debug_struct("ConnectorFuture")
            .field("stage", &stage)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}
