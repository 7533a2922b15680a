mod base;
mod middleware;
pub use base::error::{BoxError, Rejection};
pub use base::flow::Flow;
pub use base::*;
pub use middleware::*;
