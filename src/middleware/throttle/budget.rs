use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::backend::State;
use crate::base::clock::{self, Instant};

/// What a retry policy should know of a backend; from [`ThrottleHandle::budget`](super::ThrottleHandle::budget).
///
/// It is gRPC's retry throttling (proposal A6): a bucket of tokens, of which each refusal costs one and each success
/// gives back a fraction. While at most half of them are left, nothing should be retried. A clone is the same budget.
///
/// A backend that has not answered yet shares the budget of `other`.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    state: Arc<State>,
    backend: Arc<str>,
}

/// The tokens of one backend, in thousandths.
///
/// A full bucket is only read: while a backend is well nobody writes here.
#[derive(Debug)]
pub(super) struct Tokens {
    left: AtomicU32,
    size: Size,
}

/// How many tokens a bucket holds and what a success gives back, in thousandths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    max: u32,
    refund: u32,
}

/// What a refusal or a retry costs.
const COST: u32 = 1_000;

// ===== impl RetryBudget =====

impl RetryBudget {
    pub(super) fn new(state: Arc<State>, backend: Arc<str>) -> Self {
        Self { state, backend }
    }

    /// The backend's name.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Whether a retry is worth it now: more than half of the tokens are left, and no push-back is in force.
    pub fn may_retry(&self) -> bool {
        self.pushback().is_none() && self.state.ledger_of(&self.backend).tokens.allow()
    }

    /// Takes a token for a retry; `false`, and nothing is taken, when [`may_retry`](Self::may_retry) says no.
    ///
    /// Only for retries that do not come through the layer, as when it stands outside the retries: those that do
    /// already cost a token when they fail.
    pub fn withdraw(&self) -> bool {
        self.pushback().is_none() && self.state.ledger_of(&self.backend).tokens.take()
    }

    /// The tokens left.
    pub fn tokens(&self) -> f64 {
        self.state.ledger_of(&self.backend).tokens.left()
    }

    /// How long the backend's push-back is still in force, if one is.
    pub fn pushback(&self) -> Option<Duration> {
        let now = clock::now();
        let ledger = self.state.ledger_of(&self.backend);
        self.state.pushed(ledger, self.state.at(now))
    }

    /// Until when the backend's push-back is in force, if one is.
    pub fn pushback_until(&self) -> Option<Instant> {
        self.pushback().map(|left| clock::now() + left)
    }

    /// The share of requests to the backend that is refused here, from 0 to 1.
    pub fn probability(&self) -> f64 {
        let ledger = self.state.ledger_of(&self.backend);
        self.state.probability(ledger, clock::now())
    }
}

// ===== impl Size =====

impl Size {
    /// # Panics
    ///
    /// When `max` is not within 1 to 1,000, or `refund` not within 0.001 and `max`.
    pub(super) fn new(max: u32, refund: f64) -> Self {
        assert!(
            (1..=1_000).contains(&max),
            "a budget has 1 to 1,000 retry tokens, not {max}"
        );
        assert!(
            (0.001..=f64::from(max)).contains(&refund),
            "a success gives back 0.001 to {max} retry tokens, not {refund}"
        );
        Self {
            max: max * COST,
            refund: (refund * f64::from(COST)) as u32,
        }
    }
}

// ===== impl Tokens =====

impl Tokens {
    pub(super) fn new(size: Size) -> Self {
        Self {
            left: AtomicU32::new(size.max),
            size,
        }
    }

    #[inline]
    pub(super) fn succeed(&self) {
        if self.left.load(Ordering::Relaxed) < self.size.max {
            self.change(|left| Some((left + self.size.refund).min(self.size.max)));
        }
    }

    #[cold]
    pub(super) fn fail(&self) {
        self.change(|left| (left > 0).then(|| left.saturating_sub(COST)));
    }

    pub(super) fn left(&self) -> f64 {
        f64::from(self.left.load(Ordering::Relaxed)) / f64::from(COST)
    }

    fn allow(&self) -> bool {
        self.left.load(Ordering::Relaxed) > self.size.max / 2
    }

    fn take(&self) -> bool {
        self.change(|left| (left > self.size.max / 2).then(|| left.saturating_sub(COST)))
    }

    fn change(&self, to: impl FnMut(u32) -> Option<u32>) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, to)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn half_of_the_tokens_are_for_retries() {
        let tokens = Tokens::new(Size::new(10, 0.1));
        for _ in 0..5 {
            assert!(tokens.allow());
            tokens.fail();
        }
        assert!(!tokens.allow() && !tokens.take());
        assert_eq!(tokens.left(), 5.0);
        tokens.succeed();
        assert!(tokens.take());
        assert_eq!(tokens.left(), 4.1);
    }

    #[test]
    #[should_panic(expected = "not 0")]
    fn no_tokens_are_refused() {
        Size::new(0, 0.1);
    }

    #[test]
    #[should_panic(expected = "not NaN")]
    fn a_refund_that_is_no_number_is_refused() {
        Size::new(10, f64::NAN);
    }

    proptest! {
        #[test]
        fn the_bucket_never_overflows(
            steps in proptest::collection::vec(0u8..3, 0..500),
            max in 1u32..=1_000,
            ratio in 0.001f64..=1.0,
        ) {
            let tokens = Tokens::new(Size::new(max, ratio));
            let refund = (ratio * 1_000.0) as i64;
            let most = i64::from(max) * 1_000;
            let mut model = most;
            for step in steps {
                match step {
                    0 => { tokens.succeed(); model = (model + refund).min(most); }
                    1 => { tokens.fail(); model = (model - 1_000).max(0); }
                    _ => {
                        let may = model > most / 2;
                        prop_assert_eq!(tokens.take(), may);
                        if may { model = (model - 1_000).max(0); }
                    }
                }
                prop_assert_eq!((tokens.left() * 1_000.0).round() as i64, model);
            }
        }
    }
}
