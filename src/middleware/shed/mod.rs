//! A service that keeps its goodput at ten times its load.

mod ask;
mod classify;
mod future;
mod gate;
mod handle;
mod http;
mod layer;
pub mod limit;
mod metrics;
mod protocol;
mod queue;
mod refusal;
mod reject;
mod sampler;
mod service;
mod state;

pub use ask::{AllEqual, Ask, Triage};
pub use classify::{ByError, ByGrpcStatus, ByStatus, Classify, ClassifyResponse, Verdict};
pub use future::ResponseFuture;
pub use handle::{ShedHandle, ShedSnapshot};
pub use http::{Hold, Http, HttpTriage, Refused, ResponseBody, Slot};
pub use layer::ShedLayer;
pub use protocol::{Plain, Protocol};
pub use queue::Queue;
pub use refusal::Refusal;
pub use reject::{AsError, AsGrpc, AsHttp, GRPC_RETRY_PUSHBACK, Refuse, Reject, SHED_REASON};
pub use service::Shed;
