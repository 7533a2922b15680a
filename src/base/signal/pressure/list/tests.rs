use std::sync::Arc;
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::base::signal::{LagSignal, Signal};

const MS: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Says(fn() -> Option<f64>);

impl Signal for Says {
    fn name(&self) -> &str {
        "says"
    }

    fn sample(&self) -> Option<f64> {
        self.0()
    }
}

/// Tells that it is asked, and answers when it is let go.
#[derive(Debug)]
struct Hangs(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);

impl Signal for Hangs {
    fn name(&self) -> &str {
        "hangs"
    }

    fn sample(&self) -> Option<f64> {
        self.0.send(()).unwrap();
        let _ = self.1.lock().unwrap().recv();
        Some(1.0)
    }
}

fn lag(name: &str) -> (LagSignal, Pressure) {
    let lag = LagSignal::new(name);
    (lag.clone(), Pressure::new(lag).warn(0.0).critical(1.0))
}

#[tokio::test(start_paused = true)]
async fn each_is_sampled_when_it_is_due_and_the_highest_counts() {
    let ((slow, a), (fast, b)) = (lag("slow"), lag("fast"));
    let pressures = Pressures::new([a.every(1000 * MS), b.every(300 * MS)]);
    let start = clock::now();
    slow.push(0.6);
    fast.push(0.95);
    let expected = Combined {
        pressure: 0.95,
        state: PressureState::Warning,
    };
    assert_eq!(pressures.combined(start), Combined::default());
    assert_eq!(pressures.poll(start), expected);
    fast.push(0.0);
    slow.push(0.7);
    assert!(!pressures.due(start + 299 * MS));
    assert_eq!(pressures.poll(start + 299 * MS), expected);
    assert_eq!(pressures.poll(start + 300 * MS).pressure, 0.6);
    assert_eq!(pressures.poll(start + 1000 * MS).pressure, 0.7);
    let samples: Vec<_> = pressures.snapshot().iter().map(|s| s.samples).collect();
    assert_eq!(samples, [2, 3]);
}

#[test]
fn a_signal_that_panics_or_talks_nonsense_fails_open_and_stops_no_other() {
    let (lag, good) = lag("good");
    lag.push(0.7);
    let bad = |name, says| {
        Pressure::new(Says(says))
            .warn(0.0)
            .critical(1.0)
            .named(name)
    };
    let pressures = Pressures::new([
        bad("panics", || panic!("a sensor fell off")),
        bad("nan", || Some(f64::NAN)),
        bad("negative", || Some(-1.0)),
        bad("silent", || None),
        good,
    ]);
    let now = clock::now();
    for n in 0..2 {
        assert_eq!(pressures.poll(now + 750 * n * MS).pressure, 0.7);
    }
    let counts: Vec<_> = pressures
        .snapshot()
        .iter()
        .map(|s| (s.samples, s.stale, s.failures))
        .collect();
    assert_eq!(
        counts,
        [(2, 0, 2), (2, 0, 2), (2, 0, 2), (2, 1, 0), (2, 0, 0)]
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_sampled_for_long_presses_nobody() {
    let (lag, pressure) = lag("lag");
    lag.push(0.7);
    let pressures = Pressures::new([pressure]);
    let now = clock::now();
    pressures.poll(now);
    assert_eq!(pressures.combined(now + 1000 * MS).pressure, 0.7);
    assert_eq!(pressures.combined(now + 1001 * MS), Combined::default());
    assert_eq!(
        pressures.poll(now + 1001 * MS).pressure,
        0.7,
        "sampled anew"
    );
}

#[test]
fn a_signal_that_hangs_holds_up_nobody_else() {
    let ((asked, is_asked), (let_go, go)) = (mpsc::channel(), mpsc::channel());
    let pressure = Pressure::new(Hangs(asked, Mutex::new(go)))
        .warn(0.0)
        .critical(1.0);
    let pressures = Arc::new(Pressures::new([pressure]));
    let now = clock::now();
    let sampler = std::thread::spawn({
        let pressures = pressures.clone();
        move || pressures.poll(now)
    });
    is_asked.recv().unwrap();
    assert_eq!(pressures.poll(now), Combined::default());
    assert_eq!(pressures.snapshot()[0].samples, 0);
    let_go.send(()).unwrap();
    assert_eq!(sampler.join().unwrap().state, PressureState::Warning);

    // It hangs again: what it said before is forgotten in time.
    let sampler = std::thread::spawn({
        let pressures = pressures.clone();
        move || pressures.poll(now + 250 * MS)
    });
    is_asked.recv().unwrap();
    assert_eq!(pressures.poll(now + 500 * MS).pressure, 1.0);
    assert_eq!(pressures.poll(now + 1500 * MS), Combined::default());
    drop(let_go);
    sampler.join().unwrap();
}

#[test]
fn nothing_is_never_due() {
    let pressures = Pressures::new([]);
    let now = clock::now();
    assert!(pressures.is_empty() && !pressures.due(now + 1_000_000 * MS));
    assert_eq!(pressures.poll(now), Combined::default());
}

#[test]
#[should_panic(expected = "critical at 0.5, which is not above warn at 0.7")]
fn levels_the_wrong_way_round_are_refused() {
    Pressures::new([lag("lag").1.warn(0.7).critical(0.5)]);
}

#[test]
#[should_panic(expected = "needs both levels: warn is Some(0.5), critical None")]
fn a_level_that_is_missing_is_refused() {
    Pressures::new([Pressure::new(LagSignal::new("lag")).warn(0.5)]);
}

#[test]
#[should_panic(expected = "warn level -0.5")]
fn a_level_below_zero_is_refused() {
    let _ = lag("lag").1.warn(-0.5);
}

#[test]
#[should_panic(expected = "critical level NaN")]
fn a_level_that_is_no_number_is_refused() {
    let _ = lag("lag").1.critical(f64::NAN);
}

#[test]
#[should_panic(expected = "not each 999µs")]
fn sampling_without_pause_is_refused() {
    let _ = lag("lag").1.every(Duration::from_micros(999));
}

#[test]
#[should_panic(expected = r#"two pressures are called "lag""#)]
fn one_name_for_two_is_refused() {
    Pressures::new([lag("lag").1, lag("lag").1]);
}

#[tokio::test]
async fn those_built_in_are_in_order() {
    let list = vec![Pressure::cpu()];
    #[cfg(feature = "signal")]
    let list = [list, vec![Pressure::scheduler(), Pressure::wakeup()]].concat();
    #[cfg(feature = "timing")]
    let list = {
        use crate::base::stats::{Sliding, Window};
        let window = Arc::new(Sliding::new(Window::default()));
        let p95 = crate::base::signal::LatencySignal::new("p95", window, 0.95);
        [list, vec![Pressure::latency(p95, 20 * MS)]].concat()
    };
    let pressures = Pressures::new(list);
    assert_eq!(pressures.poll(clock::now()), Combined::default());
}

proptest! {
    #[test]
    fn number_and_state_fit_into_one_word(pressure in 0.0..=1.0f64, state in 0usize..3) {
        let state = [PressureState::Inactive, PressureState::Warning, PressureState::Active][state];
        for pressure in [pressure, 0.0, 1.0, f64::MIN_POSITIVE] {
            let combined = Combined { pressure, state };
            prop_assert_eq!(Combined::unpack(combined.pack()), combined);
        }
    }
}
