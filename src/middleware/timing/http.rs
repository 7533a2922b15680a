use std::fmt::{self, Debug, Display};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Buf;
use http_body::Body;
use tower_http::classify::{
    ClassifiedResponse, ClassifyEos, ClassifyResponse, MakeClassifier, SharedClassifier,
};
use tower_layer::Layer;
use tower_service::Service;

use super::call::{Call, ReadyWait};
use super::layer::TimingLayer;
use super::route::{OneRoute, Route, State};
use crate::base::body::{End, Observe, ObservedFuture};
use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::outcome::{GrpcClassifier, HttpClassifier, Outcome};
use crate::base::stats::Lease;

/// Times an HTTP service to the end of its responses' bodies; see [the module](crate::timing).
///
/// How a response ended is told by a tower-http classifier: [`HttpClassifier`] unless another is given.
#[derive(Debug, Clone)]
pub struct HttpTimingLayer<R = OneRoute, C = SharedClassifier<HttpClassifier>> {
    layer: TimingLayer<R>,
    classifier: C,
}

/// An HTTP service that is timed; see [the module](crate::timing).
#[derive(Debug)]
pub struct HttpTiming<S, R = OneRoute, C = SharedClassifier<HttpClassifier>> {
    inner: S,
    route: R,
    classifier: C,
    state: Lease<State>,
    wait: ReadyWait,
}

/// One call under way, classified by `C`; what [`HttpTiming`]'s future and body carry.
pub struct HttpCall<C: MakeClassifier> {
    // Only `end` and `Drop` take it.
    call: Call,
    head: bool,
    classify: Classify<C>,
}

enum Classify<C: MakeClassifier> {
    Response(C::Classifier),
    Eos(C::ClassifyEos),
    Known(Outcome),
    /// Between two of the above.
    Taken,
}

// ===== impl HttpTimingLayer =====

impl<R> HttpTimingLayer<R> {
    pub(super) fn new(layer: TimingLayer<R>) -> Self {
        layer.state().http.store(true, Ordering::Relaxed);
        Self {
            layer,
            classifier: HttpClassifier::make_classifier(),
        }
    }
}

impl<R, C> HttpTimingLayer<R, C> {
    /// [`HttpClassifier`] (default), or any tower-http classifier whose failures say which [`Outcome`] they are.
    pub fn classify_by<D>(self, classifier: D) -> HttpTimingLayer<R, D>
    where
        D: MakeClassifier<FailureClass: Into<Outcome>>,
    {
        HttpTimingLayer {
            layer: self.layer,
            classifier,
        }
    }

    /// Classifies by `grpc-status`, in headers or trailers: [`GrpcClassifier`].
    pub fn grpc(self) -> HttpTimingLayer<R, SharedClassifier<GrpcClassifier>> {
        self.classify_by(GrpcClassifier::make_classifier())
    }
}

impl<S, R: Clone, C: Clone> Layer<S> for HttpTimingLayer<R, C> {
    type Service = HttpTiming<S, R, C>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpTiming {
            inner,
            route: self.layer.route().clone(),
            classifier: self.classifier.clone(),
            state: Lease::new(self.layer.state().clone()),
            wait: ReadyWait::default(),
        }
    }
}

// ===== impl HttpTiming =====

impl<S, R, C> HttpTiming<S, R, C> {
    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, C, B, ResBody> Service<http::Request<B>> for HttpTiming<S, R, C>
where
    S: Service<http::Request<B>, Response = http::Response<ResBody>>,
    S::Error: Display + 'static,
    R: Route<http::Request<B>>,
    C: MakeClassifier<FailureClass: Into<Outcome>>,
    ResBody: Body,
{
    type Response = http::Response<crate::base::body::ObservedBody<ResBody, HttpCall<C>>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future, HttpCall<C>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        self.wait.polled(&polled);
        polled
    }

    #[inline]
    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        let now = clock::now();
        let classifier = self.classifier.make_classifier(&req);
        let head = req.method() == http::Method::HEAD;
        let deadline = Deadline::of(&req, now, None);
        let mut call = Call::start(&self.state, self.route.of(&req), self.wait.take(), now);
        call.deadline = deadline;
        let call = HttpCall {
            call,
            head,
            classify: Classify::Response(classifier),
        };
        ObservedFuture::start(call, || self.inner.call(req))
    }
}

/// A clone has waited for nothing yet.
impl<S: Clone, R: Clone, C: Clone> Clone for HttpTiming<S, R, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            route: self.route.clone(),
            classifier: self.classifier.clone(),
            state: self.state.clone(),
            wait: ReadyWait::default(),
        }
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService, R, C> tonic::server::NamedService for HttpTiming<S, R, C> {
    const NAME: &'static str = S::NAME;
}

// ===== impl HttpCall =====

impl<C: MakeClassifier<FailureClass: Into<Outcome>>> Observe for HttpCall<C> {
    #[inline]
    fn head<B>(&mut self, response: &http::Response<B>) {
        self.call.watch.first(clock::now());
        if let Classify::Response(classifier) =
            std::mem::replace(&mut self.classify, Classify::Taken)
        {
            self.classify = match classifier.classify_response(response) {
                ClassifiedResponse::Ready(Ok(())) => Classify::Known(Outcome::Success),
                ClassifiedResponse::Ready(Err(class)) => Classify::Known(class.into()),
                ClassifiedResponse::RequiresEos(eos) => Classify::Eos(eos),
            };
        }
    }

    fn bodiless(&self) -> bool {
        self.head
    }

    fn pending(&mut self) {
        self.call.watch.pending(clock::now);
    }

    #[inline]
    fn data<D: Buf>(&mut self, _: &D) {
        self.call.watch.delivered(clock::now);
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>) {
        let classified = |result: Result<(), C::FailureClass>| {
            result.map_or_else(Into::into, |()| Outcome::Success)
        };
        let outcome = match (end, self.classify) {
            (End::Dropped, _) => return self.call.dropped(),
            (End::Error(error), Classify::Response(classifier)) => {
                classifier.classify_error(error).into()
            }
            (End::Error(error), Classify::Eos(eos)) => eos.classify_error(error).into(),
            // The status said success and the body broke: the response failed all the same.
            (End::Error(error), Classify::Known(Outcome::Success)) => {
                crate::base::outcome::Code::from_error(error).into()
            }
            (End::Trailers(trailers), Classify::Eos(eos)) => {
                classified(eos.classify_eos(Some(trailers)))
            }
            (End::Complete, Classify::Eos(eos)) => classified(eos.classify_eos(None)),
            (_, Classify::Known(outcome)) => outcome,
            (_, Classify::Response(_) | Classify::Taken) => Outcome::Failure,
        };
        self.call.end(outcome);
    }
}

impl<C: MakeClassifier> Debug for HttpCall<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpCall")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
