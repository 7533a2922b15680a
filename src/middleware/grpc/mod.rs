//! What each gRPC method did: calls, codes, messages, bytes, and how long it took.
//!
//! # How it works
//!
//! [`GrpcServerLayer`] wraps a tonic server or one service of it, [`GrpcClientLayer`] a channel; both work over any
//! `Service<http::Request<_>>` and look at nothing but headers, frames and trailers. A call is counted where it truly
//! ends: at its trailers, an error, a reset, a drop, a panic. Messages are counted exactly, by reading the five-byte
//! headers in the byte stream without copying it; frames are not messages.
//!
//! By default the names, labels, buckets, help texts and the spelling of codes are those of the Go Prometheus
//! middleware, so alert rules and dashboards made for it work unchanged once methods are registered with their types; [`otel`](GrpcLayer::otel) speaks
//! OpenTelemetry's (gRPC proposal A66), [`both`](GrpcLayer::both) both.
//!
//! Methods registered from a descriptor set are shown from the start, all codes at zero and with their true type. Others
//! are learned: a call is billed to `other` until one of its method was answered with OK, and at most [`max_methods`](GrpcLayer::max_methods) are. A client also trusts generated code to name methods. An
//! attacker therefore cannot make series.
//!
//! # Example
//!
//! ```
//! use tower_flow::{Flow, grpc::{GrpcServerLayer, GrpcType}, metrics::Format};
//!
//! let flow = Flow::new("orders");
//! let layer = GrpcServerLayer::new()
//!     .register("shop.Orders", "Place", GrpcType::Unary)
//!     .attach(&flow);
//! // tonic::transport::Server::builder().layer(layer)…
//! # let _ = layer;
//! let text = String::from_utf8(flow.encode(Format::Classic))?;
//! assert!(text.contains(
//!     "grpc_server_handled_total{grpc_type=\"unary\",grpc_service=\"shop.Orders\",\
//!      grpc_method=\"Place\",grpc_code=\"NotFound\"} 0\n"
//! ));
//! # Ok::<(), std::string::FromUtf8Error>(())
//! ```
//!
//! # Example: a client with both sets of names and exemplars
//!
//! ```
//! use tower_flow::{Flow, grpc::GrpcClientLayer};
//!
//! let flow = Flow::new("orders");
//! let layer = GrpcClientLayer::new()
//!     .both()
//!     .target("dns:///stock:50051")
//!     .exemplars(|headers, _| Some(headers.get("traceparent")?.to_str().ok()?.get(3..35)?.to_owned()))
//!     .attach(&flow);
//! # let _ = layer;
//! ```
//!
//! # Readiness
//!
//! `poll_ready` is the inner service's.
//!
//! # Cancellation
//!
//! A dropped future or body ends its call: DEADLINE_EXCEEDED when its `grpc-timeout`, its
//! [`Deadline`](crate::deadline::Deadline) or the [`server_timeout`](GrpcLayer::server_timeout) has passed, else
//! CANCELLED; INTERNAL while the thread unwinds. What tonic refuses itself (its own `concurrency_limit_per_connection`
//! and `load_shed`, outside every layer) never gets here and is not counted.
//!
//! # Metrics
//!
//! | name | type | labels |
//! |---|---|---|
//! | `grpc_server_started_total`, `grpc_client_…` | counter | `grpc_type`, `grpc_service`, `grpc_method` |
//! | `grpc_server_handled_total` | counter | the same and `grpc_code` |
//! | `grpc_server_msg_received_total`, `…_msg_sent_total` | counter | the same without |
//! | `grpc_server_handling_seconds` | histogram | the same |
//! | `tower_flow_grpc_in_flight` | gauge | the same and `grpc_side` |
//! | `tower_flow_grpc_message_bytes_total`, `…_compressed_messages_total` | counter | the same and `direction` |
//! | `tower_flow_grpc_truncated_streams_total`, `…_unscanned_streams_total` | counter | the same and `grpc_side` |
//! | `tower_flow_grpc_foreign_requests_total` | counter | `grpc_side` |
//! | with [`phases`](GrpcLayer::phases): `tower_flow_grpc_first_byte_seconds` | histogram | as `in_flight` |
//! | with `phases`: `tower_flow_grpc_stream_stall_seconds_total` | counter | as `in_flight` and `stall` |
//! | with [`otel`](GrpcLayer::otel): `grpc_server_call_started_total`, `grpc_client_attempt_…` | counter | `grpc_method` (and `grpc_target`) |
//! | with `otel`: `grpc_server_call_duration_seconds`, `…_{sent,rcvd}_total_compressed_message_size_bytes`, `grpc_client_call_duration_seconds` | histogram | the same and `grpc_status` |
//!
//! `handled` is read before `started` on every scrape, so their difference is never negative; it is over by the calls
//! that ended in between.
//!
//! # Cost
//!
//! With the default names no allocation, no lock, no cache line shared between threads: two clock readings, a hash
//! look-up of the path, and eight additions in cells of the calling thread for a unary call. `benches/README.md` has
//! the figures. OpenTelemetry's sizes cost two allocations a call, an exemplar three, a method nobody
//! registered two until it is learned.
//!
//! # Where in the stack
//!
//! Outermost, so that what other layers refuse is counted too.

mod call;
mod handle;
mod layer;
mod method;
mod metrics;
mod scanner;
mod service;
mod state;
#[cfg(feature = "tonic")]
mod tonic;

pub use crate::base::descriptor::DescriptorError;
pub use call::{Call, Messages};
pub use handle::{GrpcHandle, MethodSnapshot};
pub use layer::{Client, GrpcClientLayer, GrpcLayer, GrpcServerLayer, Server};
pub use method::GrpcType;
pub use service::{Grpc, RequestBody, ResponseBody, ResponseFuture};
#[cfg(feature = "tonic")]
pub use tonic::{TonicBody, TonicBodyLayer};
