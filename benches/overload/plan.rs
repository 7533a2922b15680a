//! What is run: every policy in every cell of the table, and the scenarios beside it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::machine::{self, Dist, Scenario, Score};
use crate::policies::{self, Entry};

pub const LOADS: [f64; 7] = [0.5, 0.9, 1.0, 1.2, 2.0, 5.0, 10.0];
pub const SIZES: [usize; 3] = [4, 16, 128];
/// The size whose cells all policies are shown with.
pub const MIDDLE: usize = 16;
/// Long-lived clones; 0 is a clone for each request.
pub const CLONES: [usize; 4] = [0, 1, 100, 1000];

/// How much of it is run.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Seeds of our default, and of all others.
    pub seeds: u64,
    pub other_seeds: u64,
    /// Seconds after the step.
    pub seconds: f64,
    /// Whether the others run with all sizes and the distributions of our own choosing too.
    pub whole: bool,
}

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A cell of the table.
    Cell,
    /// Twice the capacity from the first moment.
    Cold,
    /// Half of the workers are away from 30 s to 50 s.
    Halved,
    /// Everything takes twice as long from 30 s to 50 s.
    Slowed,
    /// Twice the capacity through long-lived clones.
    Clones,
}

#[derive(Clone, Copy)]
pub struct Run {
    pub kind: Kind,
    pub policy: Entry,
    pub scenario: Scenario,
}

/// What came of a run. Seconds are infinite when it never came to that.
#[derive(Clone, Copy)]
pub struct Done {
    pub run: Run,
    pub score: Score,
    /// Seconds to 90 % of what was possible after the change.
    pub reached: f64,
    /// Seconds to 90 % of what was possible after the change was undone.
    pub back: f64,
}

// ===== impl Extent =====

impl Extent {
    pub fn of(rounds: usize) -> Self {
        if rounds >= 60 {
            Self {
                seeds: 10,
                other_seeds: 2,
                seconds: 30.0,
                whole: true,
            }
        } else {
            Self {
                seeds: 1,
                other_seeds: 1,
                seconds: 10.0,
                whole: false,
            }
        }
    }
}

// ===== impl Kind =====

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cell => "cell",
            Self::Cold => "cold start at 2x",
            Self::Halved => "half of the workers",
            Self::Slowed => "twice the service time",
            Self::Clones => "long-lived clones at 2x",
        }
    }
}

// ===== impl Run =====

impl Run {
    fn go(self) -> Done {
        let Self {
            kind,
            policy,
            scenario,
        } = self;
        let ends = machine::run(scenario, || (policy.make)(scenario.size));
        let end = scenario.until - 1.0;
        let score = |from, to| machine::score(&ends, &scenario, from, to);
        // `part` of the workers, with the requests that came: with heavy tails the nominal capacity may not be there.
        let reaches = |from, to, part: f64| {
            let possible = part * machine::MEAN / machine::needed(&ends, from, to);
            machine::recovery(&ends, &scenario, from, to, possible.min(scenario.load))
        };
        let (score, reached, back) = match kind {
            Kind::Cell | Kind::Clones => (
                score(scenario.step_at + 5.0, end),
                reaches(scenario.step_at, end, 1.0),
                f64::NAN,
            ),
            Kind::Cold => (score(0.0, 10.0), reaches(0.0, end, 1.0), f64::NAN),
            Kind::Halved | Kind::Slowed => (
                score(32.0, 49.0),
                reaches(30.0, 50.0, 0.5),
                reaches(50.0, end, 1.0),
            ),
        };
        Done {
            run: self,
            score,
            reached,
            back,
        }
    }

    /// How many requests it takes.
    fn cost(&self) -> f64 {
        let Scenario {
            size,
            before,
            load,
            step_at,
            until,
            ..
        } = self.scenario;
        size as f64 * (before * step_at + load * (until - step_at))
    }
}

/// All runs of these policies, in the order they are reported in.
pub fn plan(policies: &[Entry], extent: Extent) -> Vec<Run> {
    let mut runs = Vec::new();
    for policy in policies {
        let ours = policy.name == policies::OURS;
        let seeds = 1..=if ours {
            extent.seeds
        } else {
            extent.other_seeds
        };
        let everywhere = ours || extent.whole;
        let sizes = if everywhere { &SIZES[..] } else { &[MIDDLE] };
        let dists = if everywhere {
            &Dist::ALL[..]
        } else {
            &[Dist::Exp, Dist::Lowvar, Dist::Bimodal]
        };
        let mut add = |kind, scenario| {
            let policy = *policy;
            runs.extend(seeds.clone().map(|seed| Run {
                kind,
                policy,
                scenario: Scenario { seed, ..scenario },
            }));
        };
        for dist in dists {
            for size in sizes {
                for load in LOADS {
                    add(
                        Kind::Cell,
                        Scenario::step(*dist, *size, load, 0, extent.seconds),
                    );
                }
            }
        }
        // The scenarios: ours everywhere, the others where they can be compared.
        for dist in dists
            .iter()
            .filter(|dist| ours || matches!(dist, Dist::Exp))
        {
            for size in sizes {
                let cold = Scenario::step(*dist, *size, 2.0, 0, 15.0);
                let cold = Scenario {
                    before: 2.0,
                    step_at: 0.0,
                    until: 15.0,
                    ..cold
                };
                add(Kind::Cold, cold);
                let change = Scenario::step(*dist, *size, 0.9, 0, 60.0);
                if ours || *size == MIDDLE {
                    let halved = Some((30.0, 50.0));
                    add(Kind::Halved, Scenario { halved, ..change });
                    let slowed = Some((30.0, 50.0));
                    add(Kind::Slowed, Scenario { slowed, ..change });
                }
            }
        }
        if ours || policy.name == policies::TOWER {
            for size in sizes {
                for clones in CLONES {
                    let twice = Scenario::step(Dist::Exp, *size, 2.0, 0, extent.seconds);
                    add(Kind::Clones, Scenario { clones, ..twice });
                }
            }
        }
    }
    runs
}

/// Runs them all on `threads` threads; what came of each, in the order of the plan.
pub fn go(runs: &[Run], threads: usize) -> Vec<Done> {
    // The longest first, so that no thread is left alone with one at the end.
    let mut order: Vec<_> = (0..runs.len()).collect();
    order.sort_by(|a, b| runs[*b].cost().total_cmp(&runs[*a].cost()));
    let all: f64 = runs.iter().map(Run::cost).sum();
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let done = Mutex::new((vec![None; runs.len()], 0.0, Duration::ZERO));
    let work = || {
        while let Some(index) = order.get(next.fetch_add(1, Relaxed)) {
            let run = runs[*index];
            let result = run.go();
            let mut done = done.lock().expect("no run panics while it reports");
            done.0[*index] = Some(result);
            done.1 += run.cost();
            let took = started.elapsed();
            if took > done.2 + Duration::from_secs(10) {
                done.2 = took;
                let part = 100.0 * done.1 / all;
                eprintln!("{part:3.0} % after {:.0} s", took.as_secs_f64());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    eprintln!(
        "{} runs in {:.0} s",
        runs.len(),
        started.elapsed().as_secs_f64()
    );
    let (done, ..) = done.into_inner().expect("all threads are joined");
    done.into_iter().flatten().collect()
}
