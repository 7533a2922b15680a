//! What open-loop generators have in common: when the next call arrives, a thread to make it from, and what came of all.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::Instant;
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

/// What callers got.
#[derive(Debug)]
pub(crate) struct Answers {
    /// From when a call was due to the end of its answer, shortest first.
    pub(crate) times: Vec<Duration>,
    /// From the start to the last of them.
    pub(crate) wall: Duration,
    /// What went wrong.
    pub(crate) problems: Vec<String>,
}

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

// ===== impl Answers =====

impl Answers {
    /// What all of them say: how long it took, or what went wrong.
    pub(crate) async fn of(
        start: Instant,
        callers: Vec<JoinHandle<Result<Duration, BoxError>>>,
    ) -> Result<Self, BoxError> {
        let mut answers = Self {
            times: Vec::with_capacity(callers.len()),
            wall: Duration::ZERO,
            problems: Vec::new(),
        };
        for caller in callers {
            match caller.await? {
                Ok(time) => answers.times.push(time),
                Err(error) => answers.problems.push(error.to_string()),
            }
        }
        answers.wall = start.elapsed();
        answers.times.sort_unstable();
        Ok(answers)
    }

    pub(crate) fn quantile(&self, q: f64) -> Duration {
        let rank = (q * self.times.len() as f64).ceil() as usize;
        let time = self.times.get(rank.max(1) - 1);
        time.copied().unwrap_or_default()
    }
}
