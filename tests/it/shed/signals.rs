//! Outside signals and the dry run: test 15. The state machines have their own tests beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use tokio_test::{assert_pending, task};
use tower::{Layer, Service};
use tower_flow::error::Reason;
use tower_flow::priority::Priority;
use tower_flow::shed::limit::Fixed;
use tower_flow::shed::{Ask, Queue, ShedHandle, ShedLayer};
use tower_flow::signal::{LagSignal, Pressure, PressureState, Signal};
use tower_flow::{BoxError, Rejection};

use super::{Desk, ms, secs};

/// A signal that says what the test sets, or panics.
#[derive(Debug, Clone, Default)]
struct Dial(Arc<AtomicU64>);

impl Dial {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

impl Signal for Dial {
    fn name(&self) -> &str {
        "dial"
    }

    fn sample(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        assert!(value != -1.0, "told to");
        (value != -2.0).then_some(value)
    }
}

fn pressed(dial: &Dial) -> Pressure {
    Pressure::new(dial.clone())
        .warn(0.0)
        .critical(1.0)
        .dwell(Duration::ZERO, secs(5))
        .every(ms(100))
}

/// Asks once at each priority, and tells which were let in.
async fn ask(
    handle: &ShedHandle,
    service: &(impl Service<Priority, Error = BoxError> + Clone),
) -> [bool; 4] {
    tokio::time::advance(ms(101)).await;
    handle.snapshot();
    Priority::ALL.map(|level| {
        let polled = task::spawn(service.clone().call(level)).poll();
        if let Poll::Ready(Err(error)) = &polled {
            let rejection = Rejection::find(error.as_ref()).unwrap();
            assert_eq!(rejection.reason(), Reason::Pressure);
        }
        polled.is_pending()
    })
}

fn by_level(level: &Priority) -> Ask<'_> {
    Ask::new().priority(*level)
}

#[tokio::test(start_paused = true)]
async fn pressure_sheds_what_can_wait_first_and_lowers_the_limit_and_never_raises_it() {
    let dial = Dial::default();
    let layer = ShedLayer::fixed(100).pressure(pressed(&dial)).max_cut(0.5);
    let layer = layer.triage_by(by_level);
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    assert_eq!(ask(&handle, &service).await, [true; 4]);
    assert_eq!(handle.snapshot().limit_effective, 100);

    dial.set(0.5);
    assert_eq!(ask(&handle, &service).await, [false, true, true, true]);
    assert_eq!(handle.snapshot().limit_effective, 75);

    dial.set(1.0);
    ask(&handle, &service).await;
    assert_eq!(ask(&handle, &service).await, [false, false, true, true]);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.limit, snapshot.limit_effective), (100, 50));
    assert_eq!(snapshot.pressures[0].state, PressureState::Active);

    // Far beyond critical is critical; it goes down a step at a time, each after its dwell.
    dial.set(1e300);
    ask(&handle, &service).await;
    assert_eq!(handle.snapshot().limit_effective, 50);
    dial.set(0.0);
    ask(&handle, &service).await;
    assert_ne!(
        handle.snapshot().pressures[0].state,
        PressureState::Inactive
    );
    for _ in 0..120 {
        ask(&handle, &service).await;
    }
    assert_eq!(handle.snapshot().limit_effective, 100);
    assert_eq!(ask(&handle, &service).await, [true; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_stops_panics_or_says_nonsense_presses_nobody_and_is_counted() {
    for nonsense in [f64::NAN, f64::NEG_INFINITY, f64::INFINITY, -7.0, -1.0, -2.0] {
        let dial = Dial::default();
        let layer = ShedLayer::fixed(100).pressure(pressed(&dial));
        let layer = layer.triage_by(by_level);
        let handle = layer.handle();
        let service = layer.layer(Desk::default());
        dial.set(1.0);
        for _ in 0..3 {
            ask(&handle, &service).await;
        }
        assert!(handle.snapshot().limit_effective < 100);
        dial.set(nonsense);
        for _ in 0..20 {
            ask(&handle, &service).await;
        }
        let snapshot = handle.snapshot();
        assert_eq!(snapshot.limit_effective, 100, "{nonsense} fails open");
        let signal = &snapshot.pressures[0];
        assert!(
            signal.stale + signal.failures > 0,
            "{nonsense} is counted: {signal:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lag_that_is_no_longer_pushed_presses_nobody() {
    let lag = LagSignal::new("orders").max_age(secs(10));
    let pressure = Pressure::new(lag.clone()).warn(100.0).critical(1_000.0);
    let layer = ShedLayer::fixed(100).pressure(pressure.dwell(Duration::ZERO, Duration::ZERO));
    let handle = layer.handle();
    lag.push(1_000.0);
    for _ in 0..4 {
        tokio::time::advance(ms(251)).await;
        handle.snapshot();
    }
    assert_eq!(handle.snapshot().limit_effective, 10);
    tokio::time::advance(secs(15)).await;
    handle.snapshot();
    tokio::time::advance(secs(1)).await;
    assert_eq!(handle.snapshot().limit_effective, 100);
}

#[tokio::test(start_paused = true)]
async fn part_of_a_priority_is_shed_by_whose_request_it_is() {
    let dial = Dial::default();
    let layer = ShedLayer::new(Fixed::new(1_000_000)).pressure(pressed(&dial));
    let layer =
        layer.triage_by(|tenant: &u64| Ask::new().priority(Priority::Sheddable).cohort(*tenant));
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    dial.set(0.75);
    tokio::time::advance(ms(101)).await;
    handle.snapshot();
    tokio::time::advance(ms(101)).await;
    handle.snapshot();
    let shed = |tenant: u64| task::spawn(service.clone().call(tenant)).poll().is_ready();
    let first: Vec<_> = (0..1_000).map(shed).collect();
    let again: Vec<_> = (0..1_000).map(shed).collect();
    assert_eq!(first, again, "the same ones each time");
    let part = first.iter().filter(|shed| **shed).count();
    assert!(
        (400..600).contains(&part),
        "{part} of 1,000 at half of a level"
    );
}

#[test]
#[should_panic(expected = "warn")]
fn a_pressure_without_levels_is_refused_where_it_is_written() {
    let _ = ShedLayer::adaptive().pressure(Pressure::new(Dial::default()));
}

// ===== the dry run =====

/// A trace of arrivals and ends that does not depend on what the layer does with it.
async fn replay(dry: bool, queue: Queue) -> (Vec<(Reason, u64)>, usize) {
    let layer = ShedLayer::fixed(4).queue(queue).dry_run(dry);
    let handle = layer.handle();
    let service = layer.layer(tower::service_fn(async |took: Duration| {
        tokio::time::sleep(took).await;
        Ok::<_, BoxError>(())
    }));
    let mut calls = Vec::new();
    let mut refused = 0;
    for n in 0u64..2_000 {
        let burst = n % 97 / 30;
        for _ in 0..burst {
            let took = ms(1 + n * 7 % 23);
            let mut call = task::spawn(service.clone().call(took));
            match call.poll() {
                Poll::Pending => calls.push(call),
                Poll::Ready(ended) => refused += usize::from(ended.is_err()),
            }
        }
        tokio::time::sleep(ms(1)).await;
        calls.retain_mut(|call| call.poll().is_pending());
    }
    let snapshot = handle.snapshot();
    if dry {
        assert_eq!(snapshot.refused, []);
        return (snapshot.would_refuse, refused);
    }
    let counts = snapshot.refused.iter();
    (
        counts.map(|(reason, _, count)| (*reason, *count)).collect(),
        refused,
    )
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_lets_everything_through_and_counts_exactly_what_it_would_refuse() {
    let (enforced, refused) = replay(false, Queue::none()).await;
    let (dry, let_through) = replay(true, Queue::none()).await;
    assert!(refused > 100);
    assert_eq!(let_through, 0);
    assert_eq!(enforced, dry);
    // With a queue, those who would wait run at once and end sooner than they would: fewer are counted, never more.
    let (enforced, _) = replay(false, Queue::fifo().max(2)).await;
    let (dry, let_through) = replay(true, Queue::fifo().max(2)).await;
    assert_eq!(let_through, 0);
    let sum = |counts: &[(Reason, u64)]| counts.iter().map(|(_, count)| count).sum::<u64>();
    assert!(
        sum(&dry) > 0 && sum(&dry) <= sum(&enforced),
        "{dry:?} {enforced:?}"
    );
}

#[tokio::test]
async fn the_dry_run_is_switched_while_it_runs() {
    let layer = ShedLayer::fixed(1).queue(Queue::none());
    let handle = layer.handle();
    let service = layer.layer(Desk::default());
    let mut held = task::spawn(service.clone().call(()));
    assert_pending!(held.poll());
    handle.dry_run(true);
    let mut passed = task::spawn(service.clone().call(()));
    assert_pending!(passed.poll());
    assert_eq!(handle.snapshot().would_refuse, [(Reason::Limit, 1)]);
    handle.dry_run(false);
    assert!(task::spawn(service.clone().call(())).poll().is_ready());
    drop((held, passed));
    assert_eq!(handle.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn traffic_that_is_refused_altogether_still_sees_the_signal_go() {
    let dial = Dial::default();
    let layer = ShedLayer::fixed(100).pressure(pressed(&dial));
    let layer = layer.triage_by(by_level);
    let service = layer.layer(Desk::default());
    dial.set(1.0);
    let asked = async |times: usize| {
        let mut let_in = 0;
        for _ in 0..times {
            tokio::time::advance(ms(10)).await;
            let polled = task::spawn(service.clone().call(Priority::Sheddable)).poll();
            let_in += usize::from(polled.is_pending());
        }
        let_in
    };
    asked(1_000).await;
    assert_eq!(asked(100).await, 0);
    dial.set(-2.0);
    asked(2_000).await;
    assert_eq!(
        asked(100).await,
        100,
        "nobody but the refused could have looked"
    );
}
