use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::budget::{Size, Tokens};
use super::pushback::{Asked, Pushback};
use super::random;
use super::rate::{Counts, Formula, Rate};
use crate::base::clock::{Instant, nanos};
use crate::base::cost::Cost;
use crate::base::error::{Reason, Rejection};
use crate::base::outcome::Code;
use crate::base::stats::{Names, Striped};

/// Where calls to backends that have not answered yet, or to more than there is room for, are counted.
pub(super) const OTHER: &str = "other";

/// Longer names never become backends.
const LONGEST: usize = 256;

/// Names the backend of a request. Any `Fn(&Req) -> &str` is one.
pub trait Backend<Req> {
    /// The backend's name; `None` for the only one of its layer, in the HTTP forms for the request's authority.
    fn of<'a>(&self, req: &'a Req) -> Option<&'a str>;
}

/// Every request goes to the same backend, named after the layer; in the HTTP forms to its authority.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OneBackend;

/// What a layer was told.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) formula: Formula,
    pub(super) window: Duration,
    pub(super) max_backends: usize,
    pub(super) refusals: Codes,
    pub(super) honour_pushback: bool,
    pub(super) max_pushback: Duration,
    pub(super) tokens: Size,
    /// Whether requests name their backends; else there is the one.
    pub(super) named: bool,
}

/// A set of codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes(u32);

/// What one layer knows: its backends and what became of their requests.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) http: AtomicBool,
    epoch: Instant,
    only: Ledger,
    other: Ledger,
    backends: Names<Ledger>,
    pub(super) cost: Cost,
}

/// Which [`Ledger`] a call is billed to.
#[derive(Debug)]
pub(super) enum Place {
    /// The layer's only backend.
    Only,
    /// A backend by its place among the names.
    Known(usize),
    /// None yet: with a name that may become a backend.
    Other(Option<Box<str>>),
}

/// What is known of one backend.
///
/// The counters are striped. All else is written when a backend refuses, and ten times a second by one caller; other
/// calls only read it.
#[derive(Debug)]
pub(super) struct Ledger {
    cells: Striped,
    pub(super) tokens: Tokens,
    rate: Rate,
    /// When its push-back ends, in nanoseconds since the layer's epoch.
    pushed: AtomicU64,
}

/// Where in a ledger's cells what is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell {
    /// Goes up and down: calls without an answer yet.
    Pending,
    Accepted,
    Refused,
    Throttled,
    Dropped,
    Delays,
    Stops,
    Capped,
    Malformed,
}

/// How many [`Cell`]s there are.
const CELLS: usize = 9;

// ===== impl Backend =====

impl<Req, F: Fn(&Req) -> &str> Backend<Req> for F {
    fn of<'a>(&self, req: &'a Req) -> Option<&'a str> {
        Some(self(req))
    }
}

impl<Req> Backend<Req> for OneBackend {
    #[inline]
    fn of<'a>(&self, _: &'a Req) -> Option<&'a str> {
        None
    }
}

// ===== impl Codes =====

impl Codes {
    pub(super) fn new(codes: impl IntoIterator<Item = Code>) -> Self {
        Self(
            codes
                .into_iter()
                .fold(0, |set, code| set | 1 << code.index()),
        )
    }

    #[inline]
    pub(super) fn has(self, code: Code) -> bool {
        self.0 & 1 << code.index() != 0
    }
}

crate::leased!(State);

// ===== impl State =====

impl State {
    pub(super) fn new(settings: Settings, epoch: Instant) -> Self {
        Self {
            only: Ledger::new(&settings),
            other: Ledger::new(&settings),
            backends: Names::new(settings.max_backends),
            http: AtomicBool::new(false),
            epoch,
            cost: Cost::new(),
            settings,
        }
    }

    #[inline]
    pub(super) fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    #[inline]
    pub(super) fn place(&self, name: Option<&str>) -> Place {
        match name {
            None => Place::Only,
            Some(name) => match self.backends.find(name) {
                Some(place) => Place::Known(place),
                None => self.unknown(name),
            },
        }
    }

    #[cold]
    fn unknown(&self, name: &str) -> Place {
        let learnable = name.len() <= LONGEST && !self.backends.is_full();
        Place::Other(learnable.then(|| name.into()))
    }

    #[inline]
    pub(super) fn ledger(&self, place: &Place) -> &Ledger {
        match place {
            Place::Only => &self.only,
            Place::Known(place) => self.backends.at(*place),
            Place::Other(_) => &self.other,
        }
    }

    /// The ledger that stands for `name` now.
    pub(super) fn ledger_of(&self, name: &str) -> &Ledger {
        match self.backends.find(name) {
            Some(place) => self.backends.at(place),
            None if *name == *self.settings.name => &self.only,
            None => &self.other,
        }
    }

    /// Makes `name` a backend if there is room.
    pub(super) fn admit(&self, name: &str) -> Option<usize> {
        self.backends.admit(name, || Ledger::new(&self.settings))
    }

    /// Whether a call may go to its backend at the moment `at`. `twice` grants a second chance.
    #[inline]
    pub(super) fn lets_through(
        &self,
        place: &Place,
        at: u64,
        twice: impl FnOnce() -> bool,
    ) -> bool {
        // Many backends share `other`: none of them pays for another.
        if matches!(place, Place::Other(_)) {
            return true;
        }
        let ledger = self.ledger(place);
        if self.settings.honour_pushback && self.pushed(ledger, at).is_some() {
            return false;
        }
        let threshold = ledger.rate.threshold(at, || ledger.counts());
        let drawn = || random::next() >= threshold;
        threshold == 0 || drawn() || (twice() && drawn())
    }

    /// What a call that was not let through gets.
    #[cold]
    pub(super) fn rejection(&self, place: &Place, name: Option<&str>, at: u64) -> Rejection {
        let name = name.unwrap_or(&self.settings.name);
        let ledger = self.ledger(place);
        let threshold = ledger.rate.threshold(at, || ledger.counts());
        let message = if threshold > 0 {
            let share = f64::from(threshold) / 2f64.powi(32) * 100.0;
            format!(
                "{name} refuses too much, so {share:.0} % of its requests are refused here; try elsewhere or later"
            )
        } else {
            format!("{name} asked for a pause; try elsewhere or later")
        };
        let rejection = Rejection::new("throttle", Reason::Throttled, message);
        match self.pushed(ledger, at) {
            Some(left) => rejection.retry_after(left),
            None => rejection,
        }
    }

    /// Notes what the backend asked for.
    pub(super) fn push(&self, ledger: &Ledger, asked: Asked, now: impl FnOnce() -> Instant) {
        if asked.malformed {
            ledger.add(Cell::Malformed);
        }
        match asked.pushback {
            None => {}
            // Said by nonsense it is counted already.
            Some(Pushback::Never) if asked.malformed => {}
            Some(Pushback::Never) => ledger.add(Cell::Stops),
            Some(Pushback::After(delay)) => {
                let most = self.settings.max_pushback;
                ledger.add(if delay > most {
                    Cell::Capped
                } else {
                    Cell::Delays
                });
                if !delay.is_zero() {
                    let until = self.at(now()).saturating_add(nanos(delay.min(most)));
                    ledger.pushed.fetch_max(until, Ordering::Relaxed);
                }
            }
        }
    }

    /// How much of the backend's push-back is left at the moment `at`.
    #[inline]
    pub(super) fn pushed(&self, ledger: &Ledger, at: u64) -> Option<Duration> {
        let until = ledger.pushed.load(Ordering::Relaxed);
        (until > at).then(|| Duration::from_nanos(until - at))
    }

    pub(super) fn probability(&self, ledger: &Ledger, now: Instant) -> f64 {
        if std::ptr::eq(ledger, &self.other) {
            return 0.0;
        }
        ledger.rate.probability(self.at(now), || ledger.counts())
    }

    /// All backends that ever answered: the layer's own first, `other` last.
    pub(super) fn all(&self) -> Vec<(&str, &Ledger)> {
        let mut all = self.backends.sorted();
        let named = self.settings.named || self.http.load(Ordering::Relaxed);
        // The only backend of its layer is shown before its first call too.
        if !named || self.only.used() {
            all.insert(0, (&self.settings.name, &self.only));
        }
        if self.other.used() {
            all.push((OTHER, &self.other));
        }
        all
    }
}

// ===== impl Ledger =====

impl Ledger {
    fn new(settings: &Settings) -> Self {
        Self {
            cells: Striped::new(CELLS),
            tokens: Tokens::new(settings.tokens),
            rate: Rate::new(settings.formula, settings.window),
            pushed: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn add(&self, cell: Cell) {
        self.cells.local().add(cell as usize, 1);
    }

    /// A call has no answer yet.
    #[inline]
    pub(super) fn begin(&self) {
        self.add(Cell::Pending);
    }

    /// It has this one now. Who reads [`Pending`](Cell::Pending) first misses no call.
    #[inline]
    pub(super) fn answer(&self, cell: Cell) {
        let cells = self.cells.local();
        cells.add(cell as usize, 1);
        cells.add(Cell::Pending as usize, u64::MAX);
    }

    /// A call without an answer is another ledger's from now on.
    pub(super) fn hand_over(&self, to: &Self) {
        to.begin();
        self.cells.local().add(Cell::Pending as usize, u64::MAX);
    }

    pub(super) fn read(&self, cell: Cell) -> u64 {
        let sum = self.cells.sum(cell as usize);
        match cell {
            // Stripes are read one after another, so a call that ended elsewhere meanwhile may take it below zero.
            Cell::Pending if sum > u64::MAX / 2 => 0,
            _ => sum,
        }
    }

    fn counts(&self) -> Counts {
        let mut sums = [0; 3];
        self.cells.sum_into(Cell::Accepted as usize, &mut sums);
        let [accepted, refused, throttled] = sums;
        Counts {
            accepted,
            refused,
            throttled,
        }
    }

    fn used(&self) -> bool {
        let mut sums = [0; CELLS];
        self.cells.sum_into(0, &mut sums);
        sums.iter().any(|sum| *sum > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_codes_has_what_it_was_made_of() {
        let codes = Codes::new([Code::Unavailable, Code::Unauthenticated, Code::Ok]);
        for code in Code::ALL {
            let expected = matches!(code, Code::Unavailable | Code::Unauthenticated | Code::Ok);
            assert_eq!(codes.has(code), expected, "{code}");
        }
    }
}
