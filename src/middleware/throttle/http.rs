use std::fmt::Display;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Buf;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::backend::{Backend, OneBackend, State};
use super::call::{Call, backend_of};
use super::future::{Boxed, ResponseFuture};
use super::layer::ThrottleLayer;
use super::pushback::Asked;
use crate::base::body::{End, Observe, ObservedBody, ObservedFuture};
use crate::base::clock::Moment;
use crate::base::cost::{Chain, Toll};
use crate::base::error::BoxError;
use crate::base::header;
use crate::base::outcome::Code;
use crate::base::priority::Priority;
use crate::base::stats::Lease;

/// Throttles an HTTP or gRPC client by what its backends answer; see [the module](crate::throttle).
#[derive(Debug, Clone)]
pub struct HttpThrottleLayer<R = OneBackend> {
    layer: ThrottleLayer<R>,
    protocol: Protocol,
}

/// An HTTP service whose backends are spared what they would refuse; see [the module](crate::throttle).
#[derive(Debug)]
pub struct HttpThrottle<S, R = OneBackend> {
    inner: S,
    backend: R,
    protocol: Protocol,
    state: Lease<State>,
}

/// One call that was let through; what [`HttpThrottle`]'s future and body carry.
#[derive(Debug)]
pub struct HttpCall {
    call: Call,
    protocol: Protocol,
    stage: Stage,
    toll: Toll,
}

/// Where the answer is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Nothing came.
    Sent,
    /// Headers came and leave the status to the trailers.
    Headed,
    /// What the call came to is known.
    Settled,
}

// ===== impl HttpThrottleLayer =====

impl<R> HttpThrottleLayer<R> {
    pub(super) fn new(layer: ThrottleLayer<R>, protocol: Protocol) -> Self {
        layer.state().http.store(true, Ordering::Relaxed);
        Self { layer, protocol }
    }
}

impl<S, R: Clone> Layer<S> for HttpThrottleLayer<R> {
    type Service = HttpThrottle<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpThrottle {
            inner,
            backend: self.layer.backend().clone(),
            protocol: self.protocol,
            state: Lease::new(self.layer.state().clone()),
        }
    }
}

// ===== impl HttpThrottle =====

impl<S, R> HttpThrottle<S, R> {
    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, B, ResBody> Service<http::Request<B>> for HttpThrottle<S, R>
where
    S: Service<http::Request<B>, Response = http::Response<ResBody>>,
    S::Error: Into<BoxError>,
    R: Backend<http::Request<B>>,
    ResBody: Body,
{
    type Response = http::Response<ObservedBody<ResBody, HttpCall>>;
    type Error = BoxError;
    type Future = ResponseFuture<ObservedFuture<Boxed<S::Future>, HttpCall>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, req: http::Request<B>) -> Self::Future {
        let _chain = Chain::begin();
        let toll = self.state.cost.call();
        let own = toll.own();
        let critical = || req.extensions().get() == Some(&Priority::Critical);
        let call = match Call::start(&self.state, backend_of(&self.backend, &req), critical) {
            Ok(call) => call,
            Err(rejection) => return ResponseFuture::refused(rejection),
        };
        drop(own);
        toll.linger();
        let call = HttpCall {
            toll,
            call,
            protocol: self.protocol,
            stage: Stage::Sent,
        };
        // The call is in a guard, and so ends, before any foreign code runs.
        ResponseFuture::passed(ObservedFuture::start(call, || {
            Boxed::new(self.inner.call(req))
        }))
    }
}

/// A clone shares what is known of the backends.
impl<S: Clone, R: Clone> Clone for HttpThrottle<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            backend: self.backend.clone(),
            protocol: self.protocol,
            state: self.state.clone(),
        }
    }
}

// ===== impl HttpCall =====

impl HttpCall {
    #[inline]
    fn settle(&mut self, code: Code, asked: Asked, at: &Moment) {
        self.stage = Stage::Settled;
        self.call.end(code, asked, || at.now());
    }

    #[inline]
    fn http_head(&mut self, status: StatusCode, headers: &HeaderMap, at: &Moment) {
        let code = code_of(status);
        let asked = if self.call.refused_by(code) {
            Asked::http(headers)
        } else {
            Asked::default()
        };
        self.settle(code, asked, at);
    }

    #[inline]
    fn grpc_head(&mut self, status: StatusCode, headers: &HeaderMap, at: &Moment) {
        let [code, pushback] = header::find(headers, ["grpc-status", "grpc-retry-pushback-ms"]);
        if let Some(code) = code {
            let code = Code::from_bytes(code.as_bytes());
            self.settle(code, Asked::grpc_value(pushback), at);
        } else if status != StatusCode::OK {
            // A proxy answered, which speaks HTTP.
            self.settle(Code::from_http(status), Asked::http(headers), at);
        } else {
            self.stage = Stage::Headed;
        }
    }
}

impl Observe for HttpCall {
    #[inline]
    fn head<B>(&mut self, response: &http::Response<B>, at: &Moment) {
        let _own = self.toll.own();
        self.call.learn();
        match self.protocol {
            Protocol::Http => self.http_head(response.status(), response.headers(), at),
            Protocol::Grpc => self.grpc_head(response.status(), response.headers(), at),
        }
    }

    #[inline]
    fn data<D: Buf>(&mut self, _: &D, _: &Moment) {
        // A stream may go on for days: its first message says that the backend took it.
        if !self.call.counted() {
            self.call.taken();
        }
    }

    #[inline]
    fn end<E: Display + 'static>(mut self, end: End<'_, E>, at: &Moment) {
        let _own = self.toll.own();
        match (end, self.stage) {
            (_, Stage::Settled) => {}
            // The call's own drop says what it came to.
            (End::Dropped, Stage::Sent) => {}
            (End::Dropped, Stage::Headed) => self.call.taken(),
            (End::Trailers(trailers), _) => {
                let code = Code::from_headers(trailers).unwrap_or(Code::Unknown);
                self.settle(code, Asked::grpc(trailers), at);
            }
            (End::Complete, _) => self.settle(Code::Unknown, Asked::default(), at),
            (End::Error(error), _) => {
                self.settle(Code::from_error(error), Asked::of_error(error), at);
            }
        }
    }
}

/// An HTTP status as gRPC's code: what a backend refuses, what a gateway could not reach or wait for, and the rest.
#[inline]
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        429 => Code::ResourceExhausted,
        502 | 503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        500..=599 => Code::Unknown,
        _ => Code::Ok,
    }
}
