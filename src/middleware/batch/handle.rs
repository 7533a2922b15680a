use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::metrics;
use super::request::Flush;
use super::state::{Cell, State};
use crate::base::error::BoxError;
use crate::base::inspect::{Cost, Inspect, Knob, Role, Value, Vital};
use crate::base::metrics::Families;

/// Reads and steers a [`BatchLayer`](super::BatchLayer); cheap to clone.
#[derive(Debug, Clone)]
pub struct BatchHandle(Arc<State>);

/// Ready when all that was accepted is answered; made by [`BatchHandle::drain`].
#[must_use = "the layer is closed, but nobody waits for what is under way"]
pub struct Drain {
    state: Arc<State>,
    /// Unlike that of any other.
    id: u64,
}

/// The names of the knobs.
const MAX_ITEMS: &str = "max_items";
const MAX_DELAY: &str = "max_delay";

/// The numbers of a layer at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BatchSnapshot {
    /// Items accepted.
    pub items: u64,
    /// Batches taken to be sent, one that its service was never ready for included; parts sent again are not counted.
    pub batches: u64,
    /// Requests of a batch, on average.
    pub mean_size: f64,
    /// Items that wait to be sent now.
    pub queued: u64,
    /// Batches in flight now.
    pub in_flight: u64,
    /// Shards in which items wait or batches are in flight now.
    pub shards: u64,
    /// What became of items: `ok`, `error`, `missing`, `panic`, `abandoned`, `cancelled`, `expired`; and `rejected`, which
    /// were not accepted.
    pub results: [(&'static str, u64); 8],
    /// Why batches were sent, by [`Flush::as_str`].
    pub flushes: [(&'static str, u64); 7],
    /// Items that waited for the same as another, and were not sent themselves.
    pub merged: u64,
    /// Calls made for parts of batches.
    pub splits: u64,
    /// Answers for which there was no item.
    pub unknown: u64,
}

// ===== impl BatchHandle =====

impl BatchHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// What waits now is due: it is sent as soon as there is a slot for it.
    pub fn flush(&self) {
        self.0.flush();
    }

    /// Accepts nothing more, from this call on and for good: requests fail with
    /// [`Reason::Closed`](crate::error::Reason::Closed). What was accepted is due, and when it is answered the future is ready.
    pub fn drain(&self) -> Drain {
        static DRAINS: AtomicU64 = AtomicU64::new(0);
        self.0.close();
        Drain {
            state: self.0.clone(),
            id: DRAINS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A batch has at most so many items from now on. How many may wait stays as it was.
    ///
    /// # Panics
    ///
    /// When `max` is 0 or beyond 2^24.
    pub fn set_max_items(&self, max: usize) {
        assert!(
            (1..=1 << 24).contains(&max),
            "max_items of {max} is not within 1 and 16,777,216"
        );
        self.0.set_rules(|rules| rules.max_items = max);
    }

    /// A batch waits for others no longer than that from now on.
    pub fn set_max_delay(&self, delay: Duration) {
        self.0.set_rules(|rules| rules.max_delay = delay);
    }

    /// The numbers now.
    pub fn snapshot(&self) -> BatchSnapshot {
        let stats = &self.0.stats;
        let (splits, unknown) = (stats.read(Cell::Splits), stats.read(Cell::Unknown));
        let tally = self.0.tally();
        let books = tally.books;
        BatchSnapshot {
            items: books.accepted,
            batches: books.batches,
            mean_size: books.sent as f64 / books.batches.max(1) as f64,
            queued: tally.waiting as u64,
            in_flight: tally.in_flight as u64,
            shards: tally.shards as u64,
            results: [
                ("ok", books.ok),
                ("error", books.error),
                ("missing", books.missing),
                ("panic", books.panic),
                ("abandoned", books.abandoned),
                ("cancelled", books.cancelled),
                ("expired", books.expired),
                ("rejected", books.refused),
            ],
            flushes: Flush::ALL.map(|flush| (flush.as_str(), books.flushes[flush as usize])),
            merged: books.merged,
            splits,
            unknown,
        }
    }
}

impl Inspect for BatchHandle {
    fn kind(&self) -> &'static str {
        "batch"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.settings.name)
    }

    fn snapshot(&self) -> Value {
        let now = Self::snapshot(self);
        let counts = |counts: &[(&'static str, u64)]| {
            Value::map(counts.iter().map(|(name, count)| (*name, (*count).into())))
        };
        Value::map([
            ("items", now.items.into()),
            ("batches", now.batches.into()),
            ("mean_size", now.mean_size.into()),
            ("queued", now.queued.into()),
            ("in_flight", now.in_flight.into()),
            ("shards", now.shards.into()),
            ("results", counts(&now.results)),
            ("flushes", counts(&now.flushes)),
            ("merged", now.merged.into()),
            ("splits", now.splits.into()),
            ("unknown", now.unknown.into()),
        ])
    }

    fn knobs(&self) -> Vec<Knob> {
        let rules = self.0.rules();
        vec![
            Knob::new(
                MAX_ITEMS,
                "How many items a batch has at most",
                rules.max_items as u64,
            ),
            Knob::new(
                MAX_DELAY,
                "How many seconds a batch waits for more; 0 for what is in flight only",
                rules.max_delay,
            ),
        ]
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        let number = match to {
            Value::Whole(whole) => *whole as f64,
            Value::Number(number) => *number,
            _ => f64::NAN,
        };
        match name {
            MAX_ITEMS if (1.0..=16_777_216.0).contains(&number) && number.fract() == 0.0 => {
                self.set_max_items(number as usize);
                Ok(())
            }
            MAX_ITEMS => {
                Err(format!("max_items takes a whole number from 1 to 16777216, not {to}").into())
            }
            MAX_DELAY => match Duration::try_from_secs_f64(number) {
                Ok(delay) => {
                    self.set_max_delay(delay);
                    Ok(())
                }
                Err(_) => Err(format!("max_delay takes seconds, 0 or more, not {to}").into()),
            },
            _ => Err(format!(
                "batch {:?} has no knob {name:?}; it has max_items and max_delay",
                self.0.settings.name
            )
            .into()),
        }
    }

    fn cost(&self) -> Option<&Cost> {
        Some(&self.0.cost)
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0, &Self::snapshot(self), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let tally = self.0.tally();
        let books = tally.books;
        vec![
            Vital::level(Role::Waiting, tally.waiting as f64),
            Vital::count(Role::Refused, books.refused),
            Vital::count(Role::Admitted, books.accepted),
            Vital::count(Role::Items, books.sent),
            Vital::count(Role::Batches, books.batches),
        ]
    }
}

// ===== impl Drain =====

impl Future for Drain {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.state.is_drained(self.id, cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.state.forget_drain(self.id);
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
