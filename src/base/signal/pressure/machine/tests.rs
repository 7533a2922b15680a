use PressureState::{Active, Inactive, Warning};
use proptest::prelude::*;

use super::*;
use crate::base::clock;

const UP: u64 = 1000;
const DOWN: u64 = 5000;
const STALE: u64 = 750;

fn machine() -> Machine {
    Machine::new(Settings {
        warn: 0.0,
        critical: 1.0,
        up: Duration::from_millis(UP),
        down: Duration::from_millis(DOWN),
        stale_after: Duration::from_millis(STALE),
    })
}

/// Observes each value at its millisecond and compares the state.
fn follow(steps: &[(u64, Option<f64>, PressureState)]) -> Machine {
    let (start, mut machine) = (clock::now(), machine());
    for (at, value, state) in steps {
        let now = start + Duration::from_millis(*at);
        assert_eq!(machine.observe(now, *value), *state, "at {at}");
    }
    machine
}

#[test]
fn the_level_runs_from_warn_to_critical() {
    let settings = Settings {
        warn: 0.7,
        critical: 0.95,
        ..machine().settings
    };
    assert_eq!(
        [0.0, 0.7, 0.95, 7.0, f64::MAX].map(|value| settings.level(value)),
        [0.0, 0.0, 1.0, 1.0, 1.0]
    );
    assert!((settings.level(0.825) - 0.5).abs() < 1e-9);
}

#[test]
fn it_rises_and_falls_step_by_step_after_its_dwell() {
    let machine = follow(&[
        (0, Some(0.49), Inactive),
        (250, Some(1.0), Warning),
        (500, Some(1.0), Warning),
        (1249, Some(1.0), Warning),
        (1250, Some(0.9), Active),
        (1500, Some(0.8), Active),
        (6250, Some(0.8), Active),
        (6500, Some(0.79), Warning),
        (6750, Some(0.3), Warning),
        (11_499, Some(0.3), Warning),
        (11_500, Some(0.4), Warning),
        (11_750, Some(0.39), Inactive),
    ]);
    assert_eq!(
        (machine.samples, machine.stale, machine.failures),
        (12, 0, 0)
    );
}

#[test]
fn pressure_counts_only_while_not_inactive() {
    let mut machine = follow(&[(0, Some(0.45), Inactive)]);
    assert_eq!((machine.level, machine.pressure()), (0.45, 0.0));
    machine.observe(clock::now(), Some(0.6));
    assert_eq!((machine.state, machine.pressure()), (Warning, 0.6));
    machine.observe(clock::now(), Some(0.1));
    assert_eq!((machine.state, machine.pressure()), (Warning, 0.1));
}

#[test]
fn silence_is_stale_once_and_fails_open() {
    let machine = follow(&[
        (0, Some(1.0), Warning),
        (250, None, Warning),
        (749, None, Warning),
        (750, None, Inactive),
        (1000, None, Inactive),
        (1500, Some(1.0), Inactive),
        (1750, Some(1.0), Warning),
        (2000, None, Warning),
        (9000, None, Inactive),
    ]);
    assert_eq!(
        (machine.stale, machine.failures, machine.value),
        (2, 0, None)
    );
    assert_eq!(machine.level, 0.0);
}

#[test]
fn who_never_spoke_is_stale_too() {
    assert_eq!(
        follow(&[(0, None, Inactive), (749, None, Inactive)]).stale,
        0
    );
    assert_eq!(
        follow(&[(0, None, Inactive), (750, None, Inactive)]).stale,
        1
    );
}

#[test]
fn nonsense_fails_open_at_once_and_is_counted() {
    for nonsense in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
        let machine = follow(&[
            (0, Some(1.0), Warning),
            (1000, Some(1.0), Active),
            (1250, Some(nonsense), Inactive),
            (2249, Some(1.0), Inactive),
            (2250, Some(1.0), Warning),
        ]);
        assert_eq!((machine.failures, machine.samples), (1, 5));
    }
}

fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        4 => (0.0..1.2f64).prop_map(Some),
        2 => prop_oneof![Just(0.0), Just(1.0)].prop_map(Some),
        1 => any::<f64>().prop_map(Some),
        1 => Just(None),
    ]
}

proptest! {
    #[test]
    fn flapping_crosses_at_most_once_a_dwell(steps in proptest::collection::vec((0u64..2000, value()), 1..200)) {
        let (mut machine, mut now) = (machine(), clock::now());
        let (mut before, mut crossed) = (Inactive, None::<Instant>);
        for (wait, value) in steps {
            now += Duration::from_millis(wait);
            let opened = machine.failures + machine.stale;
            let state = machine.observe(now, value);
            let opened = machine.failures + machine.stale > opened;
            if opened {
                prop_assert_eq!((state, machine.value), (Inactive, None));
            }
            if state != before {
                let dwell = if state > before { UP } else { DOWN };
                let waited = crossed.is_none_or(|crossed| now - crossed >= Duration::from_millis(dwell));
                prop_assert!(waited || opened, "{before} to {state}");
                prop_assert!(opened || (state as i8 - before as i8).abs() == 1);
                (before, crossed) = (state, Some(now));
            }
            let pressure = machine.pressure();
            prop_assert!((0.0..=1.0).contains(&pressure), "{}", pressure);
            prop_assert!(state != Inactive || pressure == 0.0);
        }
    }

    #[test]
    fn any_levels_give_a_number(warn in 0.0..f64::MAX, critical in 0.0..f64::MAX, value in 0.0..=f64::MAX) {
        prop_assume!(critical > warn);
        let settings = Settings { warn, critical, ..machine().settings };
        prop_assert!((0.0..=1.0).contains(&settings.level(value)));
    }
}
