//! Many small requests become one.

mod request;
mod results;

pub use request::{Batch, Flush};
pub use results::{All, Answers, IntoResults, Keys};
