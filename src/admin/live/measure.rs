//! What the page's tiles and series show, made of the vitals of one layer and those of a while ago.

use crate::base::inspect::{Reading, Role, Vital};

/// What a measure is, in the order they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Requests,
    Errors,
    P50,
    P95,
    P99,
    InFlight,
    Waiting,
    Shed,
    Open,
    Idle,
    WaitingForConnection,
    Saved,
    BatchSize,
    Cpu,
    Scheduler,
    RunQueue,
    WakeDelay,
}

/// A measure now: nothing where nothing is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    pub(super) key: Key,
    pub(super) value: Option<f64>,
    /// What it may at most be.
    pub(super) of: Option<f64>,
}

/// The measures that the roles in `now` allow. `before` is what was read `elapsed` seconds ago; empty when nothing was.
pub(super) fn measures(now: &[Vital], before: &[Vital], elapsed: f64) -> Vec<Measured> {
    let has = |role| now.iter().any(|vital| vital.role == role);
    let level = |role| now.iter().find(|vital| vital.role == role).and_then(level);
    let grown = |role| {
        let now = now.iter().find(|vital| vital.role == role)?;
        let before = before.iter().find(|vital| vital.role == role)?;
        match (now.reading, before.reading) {
            // A counter that goes back has lost its past, and grew by nobody knows what.
            (Reading::Count(now), Reading::Count(before)) => {
                now.checked_sub(before).map(|grown| grown as f64)
            }
            _ => None,
        }
    };
    let rate = |role| {
        grown(role)
            .filter(|_| elapsed > 0.0)
            .map(|grown| grown / elapsed)
    };
    // Nothing of nothing is no share of trouble.
    let share = |part: Role, rest: Option<f64>| {
        let part = grown(part)?;
        Some(if part > 0.0 {
            (part / rest?).min(1.0)
        } else {
            0.0
        })
    };
    let with = |role, other| Some(grown(role)? + grown(other)?);

    let mut found = Vec::new();
    for (key, needs) in KEYS {
        if !needs.iter().all(|role| has(*role)) {
            continue;
        }
        let value = match key {
            Key::Requests => rate(Role::Requests),
            Key::Errors => share(Role::Errors, grown(Role::Requests).map(|all| all.max(1.0))),
            Key::Shed => share(Role::Refused, with(Role::Refused, Role::Admitted)),
            Key::Saved => share(Role::Saved, with(Role::Saved, Role::Sent)),
            Key::BatchSize => match (grown(Role::Items), grown(Role::Batches)) {
                (Some(items), Some(batches)) if batches > 0.0 => Some(items / batches),
                _ => None,
            },
            _ => level(needs[0]),
        };
        let of = (key == Key::InFlight).then(|| level(Role::Limit)).flatten();
        found.push(Measured { key, value, of });
    }
    found
}

fn level(vital: &Vital) -> Option<f64> {
    match vital.reading {
        Reading::Level(level) => Some(level).filter(|level| level.is_finite()),
        Reading::Count(_) => None,
    }
}

/// Which roles each needs.
const KEYS: [(Key, &[Role]); 17] = [
    (Key::Requests, &[Role::Requests]),
    (Key::Errors, &[Role::Errors, Role::Requests]),
    (Key::P50, &[Role::P50]),
    (Key::P95, &[Role::P95]),
    (Key::P99, &[Role::P99]),
    (Key::InFlight, &[Role::InFlight]),
    (Key::Waiting, &[Role::Waiting]),
    (Key::Shed, &[Role::Refused, Role::Admitted]),
    (Key::Open, &[Role::Open]),
    (Key::Idle, &[Role::Idle]),
    (Key::WaitingForConnection, &[Role::WaitingForConnection]),
    (Key::Saved, &[Role::Saved, Role::Sent]),
    (Key::BatchSize, &[Role::Items, Role::Batches]),
    (Key::Cpu, &[Role::Cpu]),
    (Key::Scheduler, &[Role::Scheduler]),
    (Key::RunQueue, &[Role::RunQueue]),
    (Key::WakeDelay, &[Role::WakeDelay]),
];

// ===== impl Key =====

impl Key {
    /// Its name, what it is called, and its unit, as in the page's JSON.
    pub(super) fn words(self) -> [&'static str; 3] {
        match self {
            Self::Requests => ["requests", "requests", "per_second"],
            Self::Errors => ["errors", "errors", "share"],
            Self::P50 => ["p50", "p50", "seconds"],
            Self::P95 => ["p95", "p95", "seconds"],
            Self::P99 => ["p99", "p99", "seconds"],
            Self::InFlight => ["in_flight", "in flight", "level"],
            Self::Waiting => ["waiting", "waiting", "level"],
            Self::Shed => ["shed", "refused", "share"],
            Self::Open => ["open", "connections open", "level"],
            Self::Idle => ["idle", "idle", "level"],
            Self::WaitingForConnection => [
                "waiting_for_connection",
                "waiting for a connection",
                "level",
            ],
            Self::Saved => ["saved", "calls saved", "share"],
            Self::BatchSize => ["batch_size", "items in a batch", "level"],
            Self::Cpu => ["cpu", "CPU", "share"],
            Self::Scheduler => ["scheduler", "scheduler", "share"],
            Self::RunQueue => ["run_queue", "threads waiting for a core", "level"],
            Self::WakeDelay => ["wake_delay", "wake-up delay", "seconds"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(found: &[Measured], key: Key) -> Option<f64> {
        let found = found.iter().find(|measured| measured.key == key);
        found.expect("there is such a measure").value
    }

    fn counts<const N: usize>(counts: [(Role, u64); N]) -> Vec<Vital> {
        counts.map(|(role, count)| Vital::count(role, count)).into()
    }

    #[test]
    fn rates_and_shares_come_of_two_readings() {
        let before = counts([
            (Role::Requests, 100),
            (Role::Errors, 10),
            (Role::Refused, 5),
            (Role::Admitted, 95),
            (Role::Saved, 0),
            (Role::Sent, 7),
            (Role::Items, 10),
            (Role::Batches, 2),
        ]);
        let now = counts([
            (Role::Requests, 140),
            (Role::Errors, 20),
            (Role::Refused, 15),
            (Role::Admitted, 125),
            (Role::Saved, 30),
            (Role::Sent, 17),
            (Role::Items, 40),
            (Role::Batches, 5),
        ]);
        let found = measures(&now, &before, 2.0);
        assert_eq!(value(&found, Key::Requests), Some(20.0));
        assert_eq!(value(&found, Key::Errors), Some(0.25));
        assert_eq!(value(&found, Key::Shed), Some(0.25));
        assert_eq!(value(&found, Key::Saved), Some(0.75));
        assert_eq!(value(&found, Key::BatchSize), Some(10.0));

        // The first reading knows no rates, but which measures there will be.
        let first = measures(&now, &[], 0.0);
        assert_eq!(first.len(), found.len());
        assert!(first.iter().all(|measured| measured.value.is_none()));
        // Silence is no trouble, and no batch has no size.
        let silence = measures(&now, &now, 1.0);
        assert_eq!(value(&silence, Key::Errors), Some(0.0));
        assert_eq!(value(&silence, Key::Shed), Some(0.0));
        assert_eq!(value(&silence, Key::BatchSize), None);
    }

    #[test]
    fn odd_readings_make_no_odd_measures() {
        let before = counts([(Role::Requests, 50), (Role::Errors, 0)]);
        let now = counts([(Role::Requests, 40), (Role::Errors, 9)]);
        let back = measures(&now, &before, 1.0);
        assert_eq!(value(&back, Key::Requests), None);
        assert_eq!(value(&back, Key::Errors), None);
        let more = counts([(Role::Requests, 51), (Role::Errors, 9)]);
        let more = measures(&more, &before, 1.0);
        assert_eq!(value(&more, Key::Errors), Some(1.0), "at most all");
        let odd = [
            Vital::level(Role::P50, f64::NAN),
            Vital::count(Role::InFlight, 3),
            Vital::level(Role::Errors, 1.0),
            Vital::level(Role::Limit, 9.0),
        ];
        let found = measures(&odd, &odd, 1.0);
        assert_eq!(value(&found, Key::P50), None);
        assert_eq!(value(&found, Key::InFlight), None);
        assert_eq!(found.len(), 2, "no share of requests that nobody counts");
    }

    #[test]
    fn levels_are_as_they_are_and_know_their_limit() {
        let now = [
            Vital::level(Role::Limit, 64.0),
            Vital::level(Role::InFlight, 12.0),
            Vital::level(Role::WakeDelay, 0.001),
        ];
        let found = measures(&now, &[], 0.0);
        assert_eq!(
            found[0],
            Measured {
                key: Key::InFlight,
                value: Some(12.0),
                of: Some(64.0)
            }
        );
        assert_eq!(found[1].value, Some(0.001));
        assert_eq!(found.len(), 2);
    }
}
