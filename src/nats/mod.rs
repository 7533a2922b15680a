//! NATS as tower services, and its backlog as a signal.
//!
//! - [`NatsService`]: requests and replies over one connection;
//! - [`NatsPool`]: over several, with limits;
//! - [`JetStreamPublish`]: batches of messages into a stream, each with its own acknowledgement;
//! - [`JetStreamLag`]: how far the workers of a stream are behind, for a layer that sheds.
//!
//! # How it works
//!
//! Connections are async-nats' own; it reconnects them. What is added is what a tower stack asks of a client:
//!
//! ```text
//! NatsRequest ──► NatsPool ──► the least loaded connection ──► server ──► responder
//!                   │ waits, bounded                                         │
//! NatsResponse ◄── inbox of the connection: who asked? ◄─────────────────────┘
//!
//! Publish ──► BatchLayer ──► JetStreamPublish: sends all, then awaits all acknowledgements
//!
//! each delivered message ──► JetStreamLag ──► Pressure ──► ShedLayer
//! CONSUMER.INFO, when none comes ─┘
//! ```
//!
//! Each connection has an inbox of our own. async-nats' keeps an entry for every request that is dropped or never
//! answered, for as long as the connection lives, and lets those whose connection was lost wait for their timeouts.
//! Here a dropped future takes its entry along, and what was sent on a connection fails within 25 ms of async-nats'
//! seeing it lost.
//!
//! # Example
//!
//! Whatever answers a [`NatsRequest`] can stand in for a server, in tests or for a while.
//!
//! ```
//! use std::convert::Infallible;
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_flow::nats::{NatsRequest, NatsResponse};
//! use tower_flow::shed::ShedLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_flow::BoxError> {
//! // In production: `NatsService::new(async_nats::connect("nats://127.0.0.1:4222").await?)`.
//! let upper = service_fn(async |req: NatsRequest| {
//!     Ok::<_, Infallible>(NatsResponse::new(req.subject().to_uppercase()))
//! });
//!
//! let service = ServiceBuilder::new().layer(ShedLayer::adaptive()).service(upper);
//! let req = NatsRequest::new("orders.get").payload("7").header("Trace", "abc").timeout(Duration::from_millis(500));
//! let answer = service.oneshot(req).await?;
//! assert_eq!(answer.payload().as_ref(), b"ORDERS.GET");
//! # Ok(()) }
//! ```
//!
//! # Pool
//!
//! A request goes to the connection with the fewest in flight; equals take turns. One more is made when each carries
//! [`scale_at`](NatsPoolBuilder::scale_at), up to [`max_connections`](NatsPoolBuilder::max_connections). A connection
//! that lost its server is passed over until it is back; one that closed for good is replaced. Limits can be changed
//! while it runs: a raised one lets in who waits, and where there are connections too many those with least to do are
//! closed after what they carry. One connection carries tens of thousands of requests a second: several help where
//! messages are large, or where a server of a cluster may go away.
//!
//! ```
//! use async_nats::ConnectOptions;
//! use tower::ServiceExt;
//! use tower_flow::Flow;
//! use tower_flow::nats::{ErrorKind, NatsPool, NatsRequest};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let flow = Flow::new("orders");
//! // Nobody listens on port 1.
//! let pool = NatsPool::builder("nats://127.0.0.1:1")
//!     .options(ConnectOptions::new().user_and_password("orders".into(), "secret".into()))
//!     .max_connections(2)
//!     .max_in_flight(256)
//!     .attach(&flow)
//!     .build();
//!
//! let error = pool.clone().oneshot(NatsRequest::new("orders.get")).await.expect_err("there is no server");
//! assert_eq!(error.kind(), ErrorKind::Connect);
//! assert_eq!(pool.handle().stats().failed, 1);
//! # }
//! ```
//!
//! # Publishing
//!
//! ```no_run
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_flow::batch::BatchLayer;
//! use tower_flow::nats::{JetStreamPublish, Publish};
//!
//! # async fn publish(context: async_nats::jetstream::Context) -> Result<(), tower_flow::BoxError> {
//! let publish = ServiceBuilder::new().layer(BatchLayer::new()).service(JetStreamPublish::new(context));
//! let ack = publish.oneshot(Publish::new("items.7", "a box").message_id("7").expect_stream("ITEMS")).await?;
//! println!("number {} of {}, again: {}", ack.sequence, ack.stream, ack.duplicate);
//! # Ok(()) }
//! ```
//!
//! Messages of a batch are sent in order over one connection; so are those of one caller who waits for each. A batch is
//! no transaction: some may be stored and others not, and each is told.
//!
//! # Lag
//!
//! The lag is what waits for a worker and what workers have not acknowledged. Each delivered message tells the first
//! for free: give them to [`observe`](JetStreamLag::observe) as they arrive, before they wait for anything. The server
//! is asked when none comes for a while (`CONSUMER.INFO` is work for a cluster): with jitter, ever less often while
//! nothing changes, one question at a time. A question has failed when it is not answered within
//! [`every`](LagBuilder::every), but 1 s at least, or when its connection is lost; once that is back the next is put
//! off by up to a quarter of that period, since many come back at once. While the server is away the last value counts,
//! with its age, until it is too old; then the signal says nothing, and a layer that sheds fails open.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use tower_flow::nats::JetStreamLag;
//! use tower_flow::shed::ShedLayer;
//! use tower_flow::signal::Pressure;
//!
//! # async fn work(context: async_nats::jetstream::Context, consumer: async_nats::jetstream::consumer::PullConsumer)
//! #     -> Result<(), tower_flow::BoxError> {
//! let lag = JetStreamLag::new(context, "ITEMS", "workers");
//! let intake = ShedLayer::adaptive().pressure(Pressure::new(lag.clone()).warn(1_000.0).critical(10_000.0));
//! // Where the messages are worked on:
//! let mut messages = consumer.messages().await?;
//! while let Some(message) = messages.next().await {
//!     let message = message?;
//!     lag.observe(&message);
//!     // …
//!     message.ack().await?;
//! }
//! # let _ = intake; Ok(()) }
//! ```
//!
//! [`LagState`] tells apart who is to blame: *starving* (messages wait and nobody asks for any), *saturated* (workers
//! hold all they may), *stuck* (workers ask and get nothing, or hold all they may and finish none for longer than a
//! message may take, whether or not these are handed out again), a consumer or a stream that is not there, and a server
//! that is away. Servers have told of backlogs that were not there and of none where there was one; so while nothing
//! moves the stream is asked too, and what cannot be is corrected and counted.
//!
//! # Readiness
//!
//! [`NatsService`] and [`JetStreamPublish`] are ready while they are connected, pending while they are not, and fail
//! once the connection is closed for good: a balancer passes them over. [`NatsPool`] is pending while it has
//! connections and all of them lost their server; what waits for room waits in the future, bounded by
//! [`max_waiting`](NatsPoolBuilder::max_waiting) and [`acquire_timeout`](NatsPoolBuilder::acquire_timeout). None of
//! them reserves anything: clones start with nothing, and a service that was ready may be dropped.
//!
//! A server that stops answering while its socket stays open is noticed by async-nats' pings: after two minutes, unless
//! `ConnectOptions::ping_interval` says otherwise. Until then it is ready, and requests time out.
//!
//! # Cancellation
//!
//! A dropped request leaves the queue, or gives its place on the connection back, and its inbox entry goes. What was
//! handed to the connection is sent all the same, and its answer is dropped and counted. A dropped batch sends nothing
//! more; what was sent is stored or not, and nobody is told. [`BatchLayer`](crate::batch::BatchLayer) drops a batch
//! only when its runtime ends.
//!
//! # Errors
//!
//! [`Error`], by [`ErrorKind`]. Where it is ours to refuse or give up there is a [`Rejection`](crate::Rejection) in its
//! chain. [`is_retryable`](Error::is_retryable) tells whether anybody may have seen the request. Of a message whose
//! acknowledgement did not come, by [`TimedOut`](ErrorKind::TimedOut) or [`Disconnected`](ErrorKind::Disconnected),
//! nobody knows whether it is stored: send it again with the same [`message_id`](Publish::message_id), within the
//! stream's window for duplicates.
//!
//! A batch fails as a whole only when nothing of it was sent for want of a connection. One message that is too large,
//! refused, or for which there is no stream fails alone.
//!
//! # Metrics
//!
//! All with label `name`.
//!
//! | name | type | more labels |
//! |---|---|---|
//! | `tower_flow_nats_connections` | gauge | `state` (`dialling`, `up`, `down`) |
//! | `tower_flow_nats_max_connections`, `…_in_flight`, `…_waiting`, `…_utilisation` | gauge | |
//! | `tower_flow_nats_requests_total` | counter | `result` (`ok`, `cancelled`, [`ErrorKind::as_str`]) |
//! | `tower_flow_nats_connects_total` | counter | `result` (`ok`, `error`) |
//! | `tower_flow_nats_acquired_total`, `…_released_total`, `…_queued_total` | counter | |
//! | `tower_flow_nats_lost_total`, `…_closed_total` | counter | |
//! | `tower_flow_nats_request_seconds`, `tower_flow_nats_wait_seconds` | histogram | |
//! | `tower_flow_nats_lag`, `…_lag_pending`, `…_lag_ack_pending` | gauge, absent while unknown | |
//! | `tower_flow_nats_lag_saturation`, `…_lag_age_seconds` | gauge, absent while unknown | |
//! | `tower_flow_nats_lag_state` | gauge, 1 for the one it is in | `state` ([`LagState::as_str`]) |
//! | `tower_flow_nats_lag_polls_total` | counter | `result` (`ok`, `error`) |
//! | `tower_flow_nats_lag_observed_total`, `…_lag_corrected_total` | counter | |
//!
//! A [`NatsService`] and a [`JetStreamPublish`] have none: put `timing` round the one, and `batch` is round the other.
//!
//! # Cost
//!
//! **Each connection has a task besides async-nats' own**, which hands out what comes and, while somebody waits for an
//! answer, looks at the connection every 25 ms. A request takes the lock round the inbox three times, and the pool's
//! lock three times more; its future, its reply subject and the way back to it are allocated. **A pool has one task for
//! each dial, and one while requests wait for a lost server. A [`JetStreamLag`] has one that asks, and one for its
//! inbox**, until its last clone is dropped. `benches/README.md` has the figures, and `examples/nats_overhead` says
//! what a request costs beside a call.
//!
//! # Where in the stack
//!
//! Innermost: they are the client. `timing`, `throttle`, `coalesce` and `shed` go round a [`NatsService`] or a
//! [`NatsPool`], `batch` round [`JetStreamPublish`].
//!
//! # Design
//!
//! async-nats tells nobody but its one event callback that a connection was lost, and that is the application's. So the
//! connection is looked at, and only while somebody waits. A pool of our own connections could use the callback; it
//! would take it from whoever set one, for 25 ms.

mod error;
mod exchange;
mod gather;
mod lag;
mod line;
mod message;
mod pool;
mod publish;
mod service;

pub use async_nats::jetstream::publish::PublishAck;
pub use error::{Error, ErrorKind};
pub use exchange::ResponseFuture;
pub use lag::{JetStreamLag, LagBuilder, LagSnapshot, LagState};
pub use message::{NatsRequest, NatsResponse, Publish};
pub use pool::{NatsPool, NatsPoolBuilder, NatsPoolHandle, NatsPoolStats};
pub use publish::{JetStreamPublish, PublishFuture};
pub use service::NatsService;
