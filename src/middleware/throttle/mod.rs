//! A client that stops asking a backend that says no.
//!
//! # How it works
//!
//! An overloaded backend that refuses a request cheaply still pays for it, and a client that tries again makes it pay
//! more. [`ThrottleLayer`] counts for each backend what it took and what it refused, and once it takes less than one
//! in `k` requests (2 unless told otherwise) refuses the surplus itself, by the formula of Google's "Site Reliability
//! Engineering", chapter 21:
//!
//! ```text
//!                           requests − k · accepts
//!   P(refuse here) = max(0, ──────────────────────)    over the last two minutes, at most max_probability
//!                                requests + 1
//! ```
//!
//! `requests` are those the backend took, those it refused and those refused here, so what still reaches it settles at
//! `k` times what it takes, however much is offered. Calls count when the backend has shown what it does with them:
//! many slow ones are no overload, and a stream counts with its first message.
//!
//! While it throttles, the layer forgets what is older than the last steps of the window (24 make one) in which the
//! backend took [`min_requests`](ThrottleLayer::min_requests) and refused none. A backend that is well again gets all
//! of its requests after some five steps, where the formula alone would take more than a window.
//!
//! - [`ThrottleLayer`] itself fits any service: each error is asked what it means, everything else is an accept.
//! - [`http`](ThrottleLayer::http) reads the status and `retry-after`; [`grpc`](ThrottleLayer::grpc) `grpc-status` and
//!   `grpc-retry-pushback-ms`, in headers or trailers. Both tell backends apart by authority. A request with
//!   [`Priority::Critical`](crate::priority::Priority::Critical) among its extensions is refused only if two draws
//!   say so.
//!
//! What is a refusal is set by [`refusals`](ThrottleLayer::refusals). A name becomes a backend with its first answer,
//! in the HTTP forms with its first response; until then, and beyond
//! [`max_backends`](ThrottleLayer::max_backends), it is billed to `other`, which is never throttled.
//!
//! # Example
//!
//! ```
//! use std::{io, time::Duration};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::{BoxError, Rejection, error::Reason, throttle::ThrottleLayer};
//!
//! async fn down(_: u32) -> io::Result<()> {
//!     Err(io::ErrorKind::ConnectionRefused.into())
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), BoxError> {
//! let throttle = ThrottleLayer::new("stock");
//! let mut service = ServiceBuilder::new().layer(throttle.clone()).service(service_fn(down));
//! let mut refused_here = 0;
//! for n in 0..1_000 {
//!     tokio::time::advance(Duration::from_millis(10)).await;
//!     let error = service.ready().await?.call(n).await.expect_err("it is down");
//!     if Rejection::find(error.as_ref()).is_some_and(|found| found.reason() == Reason::Throttled) {
//!         refused_here += 1;
//!     }
//! }
//! assert!((800..950).contains(&refused_here), "one in ten is a probe: {refused_here}");
//! assert_eq!(throttle.handle().snapshot()[0].probability, 0.9);
//! # Ok(()) }
//! ```
//!
//! # Example: gRPC, backends of your own, and a retry policy that asks first
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{BoxError, retry::Policy};
//! use tower_flow::{Flow, throttle::{Pushback, RetryBudget, ThrottleLayer}};
//!
//! let flow = Flow::new("shop");
//! let throttle = ThrottleLayer::new("grpc")
//!     .backend_by(|req: &Request<String>| req.uri().host().unwrap_or("none"))
//!     .k(1.5)
//!     .window(Duration::from_secs(30))
//!     .attach(&flow);
//! let policy = Twice(throttle.handle().budget("stock.test"), 2);
//! let layer = throttle.grpc();
//! # let _ = (layer, policy);
//!
//! /// Each request twice at most, and only while the backend has tokens left and asked for no pause.
//! #[derive(Clone)]
//! struct Twice(RetryBudget, usize);
//!
//! impl<B> Policy<Request<String>, Response<B>, BoxError> for Twice {
//!     type Future = std::future::Ready<()>;
//!
//!     fn retry(
//!         &mut self,
//!         _: &mut Request<String>,
//!         result: &mut Result<Response<B>, BoxError>,
//!     ) -> Option<Self::Future> {
//!         let failed = match result {
//!             Ok(response) => response.headers().get("grpc-status").is_some_and(|code| code == "14"),
//!             Err(_) => true,
//!         };
//!         let pushback = result.as_ref().ok().and_then(|response| Pushback::grpc(response.headers()));
//!         self.1 -= 1;
//!         let again = failed && self.1 > 0 && pushback != Some(Pushback::Never) && self.0.may_retry();
//!         again.then(|| std::future::ready(()))
//!     }
//!
//!     fn clone_request(&mut self, req: &Request<String>) -> Option<Request<String>> {
//!         Some(req.clone())
//!     }
//! }
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is the inner service's, and nothing is reserved there: whether a call goes through is decided in `call`,
//! where its backend is known. What the inner service reserved for a call that is refused stays with it for the next.
//!
//! # Cancellation
//!
//! A future dropped before its answer, an error that says CANCELLED, and a panic count as `dropped`: neither as a
//! request nor as an accept. In the gRPC form a body dropped after headers that promise a status counts as an accept.
//!
//! # Errors
//!
//! A call refused here fails with a [`BoxError`](crate::BoxError) that holds a [`Rejection`](crate::Rejection) of
//! [`Reason::Throttled`](crate::error::Reason::Throttled), with the rest of the backend's push-back to wait for, if
//! there is one. Errors of the inner service pass through, boxed.
//!
//! # Push-back
//!
//! A delay the backend asks for with a refusal is believed up to [`max_pushback`](ThrottleLayer::max_pushback). It is
//! a fact in the [`RetryBudget`], and holds back first tries too when
//! [`honour_pushback`](ThrottleLayer::honour_pushback) says so. A `retry-after` nobody can read counts as absent; a
//! `grpc-retry-pushback-ms` that is negative or unreadable forbids the retry and costs a token. All are counted.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `tower_flow_throttle_requests_total` | counter, the sum of the next four | `name`, `backend` |
//! | `tower_flow_throttle_accepted_total` | counter | `name`, `backend` |
//! | `tower_flow_throttle_refused_total` | counter, by the backend | `name`, `backend` |
//! | `tower_flow_throttle_throttled_total` | counter, here | `name`, `backend` |
//! | `tower_flow_throttle_dropped_total` | counter | `name`, `backend` |
//! | `tower_flow_throttle_pushbacks_total` | counter | `name`, `backend`, `kind` (`delay`, `never`, `capped`, `malformed`) |
//! | `tower_flow_throttle_probability` | gauge | `name`, `backend` |
//! | `tower_flow_throttle_retry_tokens` | gauge | `name`, `backend` |
//! | `tower_flow_throttle_pushback_seconds` | gauge | `name`, `backend` |
//!
//! # Cost
//!
//! For a call let through no allocation and no lock: one clock reading, three additions in cells of the calling
//! thread, and two loads from a line that is written ten times a second, by the one caller that computes the
//! probability anew and only tries the lock for it. While a backend is throttled add a random number; while its bucket
//! is not full each success writes to it. A push-back costs another clock reading, a backend function a hash look-up,
//! a name that is no backend yet an allocation. A call refused here allocates its error.
//!
//! # Where in the stack
//!
//! Inside retries, so that it sees every try, and outside whatever waits or holds something for a request: timeouts,
//! concurrency limits, connection pools. Accounting belongs outside, to see what was refused here.
//!
//! # Design
//!
//! Calls are counted when they are answered. The book counts a request when it is sent; then a thousand calls under
//! way at once, or streams that never end, look like a backend that takes nothing.

mod backend;
mod budget;
mod call;
mod future;
mod handle;
mod http;
mod layer;
mod metrics;
mod pushback;
mod random;
mod rate;
mod service;

pub use backend::{Backend, OneBackend};
pub use budget::RetryBudget;
pub use future::{Answered, Boxed, ResponseFuture};
pub use handle::{BackendSnapshot, ThrottleHandle};
pub use http::{HttpCall, HttpThrottle, HttpThrottleLayer};
pub use layer::ThrottleLayer;
pub use pushback::Pushback;
pub use service::Throttle;
