use super::*;

/// A service with so many workers, each taking 50 ms, asked for more than it can do or less.
struct Service {
    workers: f64,
    offered: f64,
    trip: f64,
    now: f64,
    limit: usize,
    highest: usize,
}

impl Service {
    fn new(bdp: &Bdp, workers: f64, offered: f64) -> Self {
        Self {
            workers,
            offered,
            trip: 0.05,
            now: 0.0,
            limit: bdp.start(),
            highest: bdp.start(),
        }
    }

    /// What a window of this length shows.
    fn window(&self, elapsed: f64) -> Window {
        let demand = self.offered * self.trip;
        let busy = if demand > self.workers {
            f64::INFINITY
        } else {
            demand
        }
        .min(self.limit as f64);
        let throughput = busy.min(self.workers) / self.trip;
        let count = (throughput * elapsed) as u64;
        Window {
            now: seconds(self.now + elapsed),
            elapsed: seconds(elapsed),
            limit: self.limit,
            completions: count,
            samples: count,
            mean: seconds(busy / throughput),
            error: 0.1 / (count.max(1) as f64).sqrt(),
            most_in_flight: busy.round() as usize,
            offered: (self.offered * elapsed) as u64,
            refused: ((self.offered - throughput) * elapsed) as u64,
            ..Default::default()
        }
    }

    fn run(&mut self, bdp: &mut Bdp, time: f64) {
        let end = self.now + time;
        let mut elapsed = 0.1;
        while self.now < end {
            match bdp.look(&self.window(elapsed)) {
                Step::Wait(more) => elapsed += more.as_secs_f64(),
                Step::Close(next) => {
                    self.now += elapsed + next.settle.as_secs_f64();
                    self.limit = next.limit;
                    self.highest = self.highest.max(next.limit);
                    elapsed = next.look.as_secs_f64();
                }
            }
        }
    }
}

fn floor(bdp: &Bdp) -> f64 {
    bdp.facts()
        .floor
        .expect("known after a while")
        .as_secs_f64()
}

#[test]
fn finds_the_size_of_a_service_at_once() {
    for workers in [4.0, 16.0, 128.0, 1000.0] {
        let mut bdp = Bdp::default();
        let mut service = Service::new(&bdp, workers, workers * 40.0);
        service.run(&mut bdp, 3.0);
        service.run(&mut bdp, 20.0);
        let limit = service.limit as f64;
        assert!(
            (0.9..1.7).contains(&(limit / workers)),
            "{limit} for {workers}"
        );
        assert!(
            (0.045..0.06).contains(&floor(&bdp)),
            "{} for {workers}",
            floor(&bdp)
        );
    }
}

#[test]
fn an_idle_time_moves_nothing() {
    let mut bdp = Bdp::default();
    let mut service = Service::new(&bdp, 128.0, 100.0);
    service.run(&mut bdp, 600.0);
    assert_eq!((service.limit, service.highest), (16, 16));
    assert!((floor(&bdp) - 0.05).abs() < 0.001);
}

#[test]
fn follows_a_service_that_becomes_slower() {
    let mut bdp = Bdp::default();
    let mut service = Service::new(&bdp, 128.0, 5120.0);
    service.run(&mut bdp, 10.0);
    service.trip = 0.1;
    service.run(&mut bdp, 40.0);
    assert!(floor(&bdp) > 0.085, "{}", floor(&bdp));
    assert!(service.limit >= 128, "{}", service.limit);
}

#[test]
fn follows_workers_that_stop_and_return() {
    let mut bdp = Bdp::default();
    let mut service = Service::new(&bdp, 64.0, 5120.0);
    service.run(&mut bdp, 10.0);
    service.workers = 32.0;
    service.run(&mut bdp, 10.0);
    assert!((30..56).contains(&service.limit), "{}", service.limit);
    service.workers = 64.0;
    service.run(&mut bdp, 5.0);
    assert!((62..112).contains(&service.limit), "{}", service.limit);
}

#[test]
fn failures_that_say_nothing_raise_nothing() {
    let mut bdp = Bdp::default();
    let failing = Window {
        now: Duration::from_secs(5),
        elapsed: Duration::from_secs(5),
        limit: 16,
        most_in_flight: 16,
        offered: 90_000,
        ignored: 90_000,
        ..Default::default()
    };
    assert_eq!(bdp.look(&failing), Step::Wait(AGAIN));
}

#[test]
fn nothing_but_overloads_lowers_it_once_a_window() {
    let mut bdp = Bdp::default();
    let window = Window {
        elapsed: Duration::from_secs(1),
        limit: 100,
        overloads: 500,
        ..Default::default()
    };
    let cut = bdp.look(&window);
    let settled = Next::of(50, LEAST).after(Duration::from_millis(500));
    assert_eq!(cut, Step::Close(settled), "still looking");
    bdp.phase = Phase::Steady;
    let cut = bdp.look(&window);
    assert_eq!(cut, Step::Close(Next::of(80, LEAST)), "it knew better");
}

#[test]
fn never_leaves_its_bounds() {
    let mut bdp = Bdp::default().initial(3).bounds(2..=40);
    let mut service = Service::new(&bdp, 128.0, 5120.0);
    service.run(&mut bdp, 20.0);
    assert_eq!(service.highest, 40);
}

#[test]
#[should_panic(expected = "not 0")]
fn a_least_of_zero_panics() {
    let _ = Bdp::default().bounds(0..=10);
}

#[test]
#[should_panic(expected = "the least limit, 5, must not be above the highest, 4")]
#[allow(clippy::reversed_empty_ranges)]
fn crossed_bounds_panic() {
    let _ = Bdp::default().bounds(5..=4);
}

#[test]
fn a_limit_of_one_grows_again_once_the_service_recovers() {
    let mut limit = Bdp::default();
    let mut now = Duration::ZERO;
    let mut in_force = limit.start();
    let steady = |in_force: usize, now: Duration, length: Duration, stalled: bool| {
        let served = if stalled {
            0.0
        } else {
            in_force.min(16) as f64 / 0.05
        };
        let served = (served * length.as_secs_f64()) as u64;
        Window {
            now,
            elapsed: length,
            limit: in_force,
            completions: served,
            samples: served,
            mean: Duration::from_millis(50).mul_f64((in_force as f64 / 16.0).max(1.0)),
            error: 0.01,
            most_in_flight: in_force,
            offered: 1_000,
            refused: 500,
            overloads: if stalled { 500 } else { 0 },
            ..Window::default()
        }
    };
    let mut run = |seconds: u64, stalled: bool, in_force: &mut usize| {
        let until = now + Duration::from_secs(seconds);
        let mut length = Duration::from_millis(100);
        while now < until {
            now += Duration::from_millis(100);
            match limit.look(&steady(*in_force, now, length, stalled)) {
                Step::Wait(_) => length += Duration::from_millis(100),
                Step::Close(next) => {
                    now += next.settle;
                    (*in_force, length) = (next.limit, Duration::from_millis(100));
                }
            }
        }
    };
    run(20, false, &mut in_force);
    run(60, true, &mut in_force);
    assert!(in_force <= 2, "stalled: {in_force}");
    run(60, false, &mut in_force);
    assert!(in_force >= 16, "stuck at {in_force}");
}
