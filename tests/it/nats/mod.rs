//! A real nats-server, and what becomes of us when it is down, slow, gone and back.

mod inspect;
mod lag;
mod pool;
mod publish;
mod requests;
pub mod server;
