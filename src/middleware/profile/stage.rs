//! What one poll took, without what profiled layers inside it took.
//!
//! # Invariants
//!
//! - Code of one thread nests: what is entered last is left first, also in an unwinding. So two cells of the thread
//!   are all there is: what was decided for the call that is being polled, and how long the polls inside it took so far.
//! - Whether a call is looked at is decided by the outermost profiled layer, for each poll by the outermost in whose
//!   poll it is; those inside do as it did. Otherwise the time of an inner poll nobody looked at would be taken for the
//!   outer one's own.
//! - A poll that is looked at counts for as many as its weight says, so every counter is an estimate without bias.

use std::cell::Cell;
use std::time::Duration;

use crate::base::clock::{self, Instant};
use crate::base::stats::once_in;

/// What of a request is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// `Service::call`: what runs before there is a future.
    Call,
    /// The response future.
    Future,
    /// The response body.
    Body,
}

/// For how many calls one call counts; none at all when it is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight(pub(super) u32);

/// How long a poll took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Took {
    /// Without the profiled layers inside.
    pub(super) own: Duration,
    /// With them.
    pub(super) total: Duration,
}

thread_local! {
    static DECIDED: Cell<Option<Weight>> = const { Cell::new(None) };
    static INSIDE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

// ===== impl Stage =====

impl Stage {
    /// All stages, in the order they come.
    pub const ALL: [Self; 3] = [Self::Call, Self::Future, Self::Body];

    /// Its name, as in metrics: `call`, `future`, `body`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Future => "future",
            Self::Body => "body",
        }
    }
}

// ===== impl Weight =====

impl Weight {
    /// The weight of a call that begins now, when one `every` so many is looked at.
    #[inline]
    pub(super) fn decide(every: u32) -> Self {
        DECIDED
            .get()
            .unwrap_or_else(|| Self(if once_in(every) { every } else { 0 }))
    }

    /// The weight of a poll of a call of this weight: that of the outer layer whose poll it is in, which may be another
    /// where calls are made in one task and polled in another.
    #[inline]
    pub(super) fn here(self) -> Self {
        DECIDED.get().unwrap_or(self)
    }

    /// Runs what belongs to a call of this weight: calls inside it are looked at if it is.
    #[inline]
    pub(super) fn within<T>(self, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Weight>);
        impl Drop for Restore {
            #[inline]
            fn drop(&mut self) {
                DECIDED.set(self.0);
            }
        }
        let _restore = Restore(DECIDED.replace(Some(self)));
        run()
    }
}

/// Runs `run`, which began at `start`, and tells `record` what it took; also when it panics.
#[inline]
pub(super) fn measure<T>(
    start: Instant,
    record: impl FnOnce(Took, Instant),
    run: impl FnOnce() -> T,
) -> T {
    struct Exit<F: FnOnce(Took, Instant)> {
        start: Instant,
        before: Duration,
        record: Option<F>,
    }
    impl<F: FnOnce(Took, Instant)> Drop for Exit<F> {
        #[inline]
        fn drop(&mut self) {
            let now = clock::now();
            let total = now.saturating_duration_since(self.start);
            let own = total.saturating_sub(INSIDE.get());
            INSIDE.set(self.before + total);
            if let Some(record) = self.record.take() {
                record(Took { own, total }, now);
            }
        }
    }
    let _exit = Exit {
        start,
        before: INSIDE.replace(Duration::ZERO),
        record: Some(record),
    };
    run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    async fn spend(ms: u64) {
        tokio::time::advance(after(ms)).await;
    }

    /// A poll that takes `ms` itself before and after what is inside.
    fn poll(seen: &Cell<Vec<Took>>, run: impl FnOnce()) {
        let record = |took, _| {
            let mut all = seen.take();
            all.push(took);
            seen.set(all);
        };
        measure(clock::now(), record, run);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_inner_polls_is_theirs() {
        let seen = Cell::new(Vec::new());
        let wait = |ms| futures_util::FutureExt::now_or_never(spend(ms)).unwrap_or(());
        poll(&seen, || {
            wait(1);
            poll(&seen, || wait(2));
            poll(&seen, || {
                wait(4);
                poll(&seen, || wait(8));
            });
            wait(16);
        });
        let took = |own, total| Took {
            own: after(own),
            total: after(total),
        };
        assert_eq!(
            seen.take(),
            [took(2, 2), took(8, 8), took(4, 12), took(17, 31)]
        );
    }

    #[test]
    fn a_panic_leaves_nothing_behind() {
        let seen = Cell::new(Vec::new());
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Weight(3).within(|| poll(&seen, || poll(&seen, || panic!("told to"))));
        }));
        assert!(caught.is_err());
        assert_eq!(seen.take().len(), 2);
        assert_eq!(DECIDED.get(), None);
        poll(&seen, || {});
        let took = seen.take()[0];
        assert_eq!(took.own, took.total, "nothing is inside it");
    }

    #[test]
    fn the_outermost_decides() {
        for weight in [Weight(0), Weight(7)] {
            weight.within(|| assert!((0..100).all(|_| Weight::decide(3) == weight)));
        }
        assert_eq!(Weight::decide(1), Weight(1));
    }
}
