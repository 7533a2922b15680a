//! What open-loop generators have in common: when the next call arrives, and a thread to make it from.

use std::time::Duration;

use tokio::runtime::Builder;
use tower_flow::BoxError;

/// Runs `load` on a thread and a runtime of its own, so that no server's work holds an arrival up.
pub(crate) async fn apart<T: Send + 'static>(
    load: impl Future<Output = Result<T, BoxError>> + Send + 'static,
) -> Result<T, BoxError> {
    let run = move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(load)
    };
    tokio::task::spawn_blocking(run).await?
}

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

// ===== impl Random =====

impl Random {
    /// Until the next of `rate` independent arrivals a second.
    pub(crate) fn gap(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-self.draw().ln() / rate)
    }

    /// Within (0, 1], so that its logarithm is finite.
    pub(crate) fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}
