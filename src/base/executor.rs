//! Who runs the tasks of the layers that need one.
//!
//! ```
//! use std::sync::Arc;
//! use tower_flow::executor::{Executor, Task};
//!
//! // Any closure that takes a task is an executor: here one that keeps to a runtime of its own.
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! let handle = runtime.handle().clone();
//! let executor: Arc<dyn Executor> = Arc::new(move |task: Task| drop(handle.spawn(task)));
//! executor.execute(Box::pin(async {}));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fmt;
use std::pin::Pin;

/// A piece of work that ends by itself.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks. Closures over [`Task`] are executors.
pub trait Executor: Send + Sync + 'static {
    /// Runs `task` to its end, or drops it: a layer notices both. It returns before that: the end may depend on what the
    /// caller does next.
    fn execute(&self, task: Task);
}

/// The tokio runtime that is current when a task begins.
///
/// Outside of a runtime a task is dropped, which its layer notices.
#[cfg(any(feature = "batch", feature = "coalesce"))]
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioExecutor;

impl<F> Executor for F
where
    F: Fn(Task) + Send + Sync + 'static,
{
    fn execute(&self, task: Task) {
        self(task);
    }
}

#[cfg(any(feature = "batch", feature = "coalesce"))]
impl Executor for TokioExecutor {
    fn execute(&self, task: Task) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

impl fmt::Debug for dyn Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}
