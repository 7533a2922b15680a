//! How long a round trip takes, phase by phase.
//!
//! # How it works
//!
//! [`TimingLayer`] wraps any service. It notes how long the service was not ready, when a call starts, and how and when
//! it ends. Its HTTP form, [`TimingLayer::http`], follows a response to the end of its body and so knows three more
//! things: when the first byte came, how long the body waited for its producer, and how long for its consumer.
//!
//! ```text
//! poll_ready        call              headers                        trailers, end, error or drop
//!     ├── ready ────┤├──── first byte ────┤├─ producer ─┬─ consumer ──┤
//!                    ├──────────────────── duration ──────────────────┤
//! ```
//!
//! Numbers are kept per route: one named after the layer, or as many as a function of the request names, up to
//! [`max_routes`](TimingLayer::max_routes). A name becomes a route after its first call that ended in
//! success; calls before that, and all names beyond the bound, are billed to `other`. A scanner therefore
//! cannot make series.
//!
//! Round a client whose pool puts [`Timings`](crate::phases::Timings) into its responses, the HTTP form also tells what
//! the time before the first byte went on: waiting for a connection, and for new ones DNS, connect, TLS and handshake.
//! A proxy that passes a response on passes its timings on too; take them out where its own clients should not see
//! them counted.
//!
//! # Example
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::timing::TimingLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let timing = TimingLayer::new("stock");
//! let mut service = ServiceBuilder::new()
//!     .layer(timing.clone())
//!     .service(service_fn(async |n: u32| Ok::<_, std::io::Error>(n + 1)));
//! service.ready().await?.call(1).await?;
//!
//! let stock = &timing.handle().snapshot()[0];
//! assert_eq!((stock.route.as_str(), stock.started, stock.in_flight), ("stock", 1, 0));
//! assert_eq!(stock.window.count, 1);
//! # Ok(()) }
//! ```
//!
//! # Example: routes, a window of ten seconds, and a signal
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::{Flow, signal::Signal, stats::Window, timing::TimingLayer};
//!
//! let flow = Flow::new("shop");
//! let timing = TimingLayer::new("http")
//!     .route_by(|req: &http::Request<()>| match req.uri().path() {
//!         "/" => "home",
//!         path if path.starts_with("/cart") => "cart",
//!         _ => "rest",
//!     })
//!     .window(Window::new(Duration::from_secs(10), 5))
//!     .attach(&flow);
//! let p95 = timing.handle().signal("cart", 0.95).expect("there is room");
//! assert_eq!(p95.sample(), None, "nothing has been measured yet");
//! let layer = timing.http();
//! # let _ = layer;
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is the inner service's; the time between its first `Pending` and `Ready` is noted on the service that
//! becomes ready. A clone starts with nothing noted.
//!
//! # Cancellation
//!
//! A future or body dropped before its end is counted as `cancelled`, as `deadline_exceeded` when the request's
//! [`Deadline`](crate::deadline::Deadline) has passed, as `panic` while the thread unwinds. In flight always falls.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `tower_flow_timing_started_total` | counter | `name`, `route` |
//! | `tower_flow_timing_ended_total` | counter | `name`, `route`, `outcome` |
//! | `tower_flow_timing_in_flight` | gauge | `name`, `route` |
//! | `tower_flow_timing_ready_seconds` | histogram | `name`, `route` |
//! | `tower_flow_timing_first_byte_seconds` | histogram, HTTP form only | `name`, `route` |
//! | `tower_flow_timing_duration_seconds` | histogram, with native buckets | `name`, `route` |
//! | `tower_flow_timing_stall_seconds_total` | counter, HTTP form only | `name`, `route`, `side` (`producer`, `consumer`) |
//! | `tower_flow_timing_phase_seconds` | histogram, of responses with `Timings` | `name`, `route`, `phase` (`wait`, `dns`, `connect`, `tls`, `handshake`) |
//! | `tower_flow_timing_connections_total` | counter, of responses with `Timings` | `name`, `route`, `reused` (`true`, `false`) |
//! | `tower_flow_timing_window_seconds` | gauge, over the window | `name`, `route`, `stat` (`min`, `mean`, `p50` … `max`) |
//!
//! # Cost
//!
//! No allocation, no lock, and no cache line shared between threads. Two clock readings and six additions in cells of
//! the calling thread; the HTTP form reads the clock once more, for the first byte, and again where a body makes
//! somebody wait, and looks once into the extensions of a response that has any; timings found there cost three additions
//! on a reused connection. A route function adds a hash look-up. `benches/README.md` has the figures.
//!
//! # Where in the stack
//!
//! Outside whatever should be part of the time: outside a queue to see the wait, inside it to see the work.

mod call;
mod connection;
mod future;
mod handle;
mod http;
mod layer;
mod metrics;
mod route;
mod service;

pub use future::ResponseFuture;
pub use handle::{ConnectionTimes, PhaseTimes, RouteSnapshot, TimingHandle};
pub use http::{HttpCall, HttpTiming, HttpTimingLayer, HttpWatch};
pub use layer::TimingLayer;
pub use service::Timing;
