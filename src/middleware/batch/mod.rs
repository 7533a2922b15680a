//! Many small requests become one.

mod board;
mod collector;
mod gate;
mod items;
mod list;
mod request;
mod results;
mod shard;

pub use request::{Batch, Flush};
pub use results::{All, Answers, IntoResults, Keys};
