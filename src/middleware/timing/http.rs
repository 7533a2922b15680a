use std::fmt::{self, Debug, Display};
use std::sync::atomic::Ordering;

use bytes::Buf;
use tower_http::classify::{
    ClassifiedResponse, ClassifyEos, ClassifyResponse, MakeClassifier, SharedClassifier,
};
use tower_layer::Layer;

use super::call::{Call, ReadyWait};
use super::layer::TimingLayer;
use super::route::State;
use crate::base::body::{End, Observe};
use crate::base::clock::Moment;
use crate::base::cost::Toll;
use crate::base::deadline::Deadline;
use crate::base::outcome::{Code, GrpcClassifier, HttpClassifier, Outcome};
use crate::base::phases::Timings;
use crate::base::route::{OneRoute, Route};
use crate::base::stats::Lease;
use crate::base::watch::{MakeWatch, Watch, Watched};

/// Times an HTTP service to the end of its responses' bodies; see [the module](crate::timing).
///
/// How a response ended is told by a tower-http classifier: [`HttpClassifier`] unless another is given.
#[derive(Debug, Clone)]
pub struct HttpTimingLayer<R = OneRoute, C = SharedClassifier<HttpClassifier>> {
    layer: TimingLayer<R>,
    classifier: C,
}

/// An HTTP service that is timed; see [the module](crate::timing).
pub type HttpTiming<S, R = OneRoute, C = SharedClassifier<HttpClassifier>> =
    Watched<S, HttpWatch<R, C>>;

/// What times the requests of one [`HttpTiming`].
#[derive(Debug)]
pub struct HttpWatch<R, C> {
    route: R,
    classifier: C,
    state: Lease<State>,
    wait: ReadyWait,
}

/// One call under way, classified by `C`; what [`HttpTiming`]'s future and body carry.
pub struct HttpCall<C: MakeClassifier> {
    call: Call,
    head: bool,
    /// The status says that somebody serves this path.
    served: bool,
    classify: Classify<C>,
    toll: Toll,
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
        Watched::new(inner, self.watch())
    }
}

impl<R: Clone, C: Clone> MakeWatch for HttpTimingLayer<R, C> {
    type Watch = HttpWatch<R, C>;

    fn watch(&self) -> Self::Watch {
        HttpWatch {
            route: self.layer.route().clone(),
            classifier: self.classifier.clone(),
            state: Lease::new(self.layer.state().clone()),
            wait: ReadyWait::default(),
        }
    }
}

// ===== impl HttpWatch =====

impl<R, C, B> Watch<B> for HttpWatch<R, C>
where
    R: Route<http::Request<B>> + Clone,
    C: MakeClassifier<FailureClass: Into<Outcome>> + Clone,
{
    type Observer = HttpCall<C>;

    #[inline]
    fn polled(&mut self, ready: bool) {
        self.wait.polled(ready);
    }

    #[inline]
    fn start(&mut self, req: &mut http::Request<B>, at: &Moment) -> HttpCall<C> {
        let toll = self.state.cost.call();
        let own = toll.own();
        let now = at.now();
        let classifier = self.classifier.make_classifier(req);
        let deadline = Deadline::of(req, now, None);
        let ready = self.wait.take();
        let call = Call::start(&self.state, self.route.of(req), ready, deadline, now);
        drop(own);
        toll.linger();
        HttpCall {
            toll,
            call,
            head: req.method() == http::Method::HEAD,
            served: false,
            classify: Classify::Response(classifier),
        }
    }
}

/// A clone has waited for nothing yet.
impl<R: Clone, C: Clone> Clone for HttpWatch<R, C> {
    fn clone(&self) -> Self {
        Self {
            route: self.route.clone(),
            classifier: self.classifier.clone(),
            state: self.state.clone(),
            wait: ReadyWait::default(),
        }
    }
}

// ===== impl HttpCall =====

impl<C: MakeClassifier<FailureClass: Into<Outcome>>> Observe for HttpCall<C> {
    #[inline]
    fn head<B>(&mut self, response: &http::Response<B>, at: &Moment) {
        let _own = self.toll.own();
        if let Some(watch) = self.call.watch() {
            watch.first(at.now());
        }
        if let Some(timings) = response.extensions().get::<Timings>() {
            self.call.connected(timings);
        }
        self.served = response.status().is_success() || response.status().is_redirection();
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

    #[inline]
    fn bodiless(&self) -> bool {
        self.head
    }

    fn pending(&mut self, at: &Moment) {
        if let Some(watch) = self.call.watch() {
            watch.pending(|| at.now());
        }
    }

    #[inline]
    fn data<D: Buf>(&mut self, _: &D, at: &Moment) {
        let _own = self.toll.own();
        if let Some(watch) = self.call.watch() {
            watch.delivered(|| at.now());
        }
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>, at: &Moment) {
        let _own = self.toll.own();
        let classified = |result: Result<(), C::FailureClass>| {
            result.map_or_else(Into::into, |()| Outcome::Success)
        };
        let outcome = match (end, self.classify) {
            // The answer was an error, and whoever dropped it had seen enough.
            (End::Dropped, Classify::Known(outcome)) if outcome != Outcome::Success => outcome,
            // The call's own drop says what it came to.
            (End::Dropped, _) => return,
            (End::Error(error), Classify::Response(classifier)) => {
                classifier.classify_error(error).into()
            }
            (End::Error(error), Classify::Eos(eos)) => eos.classify_error(error).into(),
            // The status said success and the body broke: the response failed all the same.
            (End::Error(error), Classify::Known(Outcome::Success)) => {
                Code::from_error(error).into()
            }
            (End::Trailers(trailers), Classify::Eos(eos)) => {
                classified(eos.classify_eos(Some(trailers)))
            }
            (End::Complete, Classify::Eos(eos)) => classified(eos.classify_eos(None)),
            (_, Classify::Known(outcome)) => outcome,
            (_, Classify::Response(_) | Classify::Taken) => Outcome::Failure,
        };
        let served = self.served && outcome == Outcome::Success;
        self.call.end(outcome, served, at.now());
    }
}

impl<C: MakeClassifier> Debug for HttpCall<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpCall")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
