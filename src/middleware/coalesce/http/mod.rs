//! The form for HTTP: what is equal among requests, and who may share a response.

mod cache_control;
mod key;
mod layer;
mod options;
mod share;

pub use key::{HttpKey, HttpRequestKey};
pub use share::HttpShare;
