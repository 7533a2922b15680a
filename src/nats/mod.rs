//! NATS as tower services, and its backlog as a signal.

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
