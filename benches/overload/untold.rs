//! A front that is told nothing: neither how large the server is nor how long its clients wait. What a proxy sees.
//!
//! `-- --untold` runs this table alone, with ten seeds, or one with `TOWER_FLOW_ROUNDS` below 60. Two seconds at 0.5x,
//! two to settle, twelve counted.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tower::Layer;
use tower::util::BoxCloneService;
use tower_flow::shed::{Ask, ShedLayer};

use crate::machine::{self, Dist, End, Job, Machine, PATIENCE, Policy, Scenario};

const SIZES: [usize; 3] = [4, 16, 64];
const DISTS: [Dist; 2] = [Dist::Exp, Dist::Bimodal];
const STEP: f64 = 2.0;
const FROM: f64 = 4.0;
const UNTIL: f64 = 16.0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Load(f64),
    /// At 0.9x half of the workers leave for good when the counting begins.
    Halved,
    /// At 3x one in five is critical.
    Critical,
}

const ACTS: [Act; 6] = [
    Act::Load(0.9),
    Act::Load(2.0),
    Act::Load(5.0),
    Act::Load(10.0),
    Act::Halved,
    Act::Critical,
];

/// What stands in front; the last two show what is possible to whoever knows the server, and to whoever refuses nobody.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Front {
    Ours,
    Told,
    Open,
}

const FRONTS: [Front; 3] = [Front::Ours, Front::Told, Front::Open];

#[derive(Debug, Clone, Copy)]
struct Run {
    front: Front,
    dist: Dist,
    size: usize,
    act: Act,
    seed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// Answers in time as a part of what the server could do with the requests it was given.
    goodput: f64,
    /// The same of the first two seconds.
    at_once: f64,
    refused: f64,
    left: f64,
    p50: f64,
    p99: f64,
    /// The critical among them: the part answered in time, and the 99th percentile.
    critical: f64,
    critical_p99: f64,
}

// ===== impl Front =====

impl Front {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "tower-flow",
            Self::Told => "fixed(C)",
            Self::Open => "none",
        }
    }

    fn policy(self, size: usize) -> Policy {
        fn ask(job: &Job) -> Ask<'_> {
            Ask::new().priority(job.priority)
        }
        let layer = match self {
            Self::Ours => ShedLayer::adaptive(),
            Self::Told => ShedLayer::fixed(size),
            Self::Open => return BoxCloneService::new(Machine),
        };
        BoxCloneService::new(layer.triage_by(ask).layer(Machine))
    }
}

// ===== impl Act =====

impl Act {
    fn name(self) -> String {
        match self {
            Self::Load(load) => format!("{load}x"),
            Self::Halved => "0.9x, halved".into(),
            Self::Critical => "3x, 20 % critical".into(),
        }
    }
}

// ===== impl Run =====

impl Run {
    fn go(self) -> Outcome {
        let load = match self.act {
            Act::Load(load) => load,
            Act::Halved => 0.9,
            Act::Critical => 3.0,
        };
        let mut scenario = Scenario::step(self.dist, self.size, load, self.seed, 0.0);
        (scenario.step_at, scenario.until) = (STEP, UNTIL + 1.0);
        if self.act == Act::Halved {
            scenario.halved = Some((FROM, f64::INFINITY));
        }
        if self.act == Act::Critical {
            scenario.critical = 0.2;
        }
        let ends = machine::run(scenario, || self.front.policy(self.size));
        let part = if self.act == Act::Halved { 2.0 } else { 1.0 };
        let goodput = |to| part * machine::score(&ends, &scenario, FROM, to).realised;
        let score = machine::score(&ends, &scenario, FROM, UNTIL);
        let (_, left, p50, p99) = answered(&ends, |_| true);
        let (critical, _, _, critical_p99) = answered(&ends, |end| end.critical);
        Outcome {
            goodput: goodput(UNTIL),
            at_once: goodput(FROM + 2.0),
            refused: score.rejected,
            left: 100.0 * left,
            p50,
            p99,
            critical,
            critical_p99,
        }
    }
}

/// The part answered in time, the part that went away, and how long good answers took.
fn answered(ends: &[End], which: impl Fn(&End) -> bool) -> (f64, f64, f64, f64) {
    let counted = |end: &&End| (FROM..UNTIL).contains(&end.arrived) && which(end);
    let asked: Vec<_> = ends.iter().filter(counted).collect();
    let latencies = asked.iter().filter_map(|end| end.latency);
    let (mut good, late): (Vec<_>, Vec<_>) = latencies.partition(|latency| *latency < PATIENCE);
    good.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let rank = (good.len() as f64 * part) as usize;
        good.get(rank).map_or(f64::NAN, |latency| latency * 1e3)
    };
    let all = asked.len().max(1) as f64;
    (
        good.len() as f64 / all,
        late.len() as f64 / all,
        at(0.5),
        at(0.99),
    )
}

/// Runs all of it on `threads` threads: the table.
pub fn table(seeds: u64, threads: usize) -> String {
    let mut cells = Vec::new();
    for front in FRONTS {
        for dist in DISTS {
            for size in SIZES {
                for act in ACTS {
                    let slow = front == Front::Open && act != Act::Load(0.9);
                    if !slow {
                        cells.push((front, dist, size, act));
                    }
                }
            }
        }
    }
    let runs: Vec<_> = cells
        .iter()
        .flat_map(|(front, dist, size, act)| {
            (1..=seeds).map(|seed| Run {
                front: *front,
                dist: *dist,
                size: *size,
                act: *act,
                seed,
            })
        })
        .collect();
    let (next, done) = (
        AtomicUsize::new(0),
        Mutex::new(vec![Outcome::default(); runs.len()]),
    );
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    let Some(run) = runs.get(index) else { break };
                    let result = run.go();
                    done.lock().expect("no run panics while it reports")[index] = result;
                }
            });
        }
    });
    let done = done.into_inner().expect("all threads are joined");
    let mut out = String::from(
        "| front | service | C | load | goodput (worst) | at once | refused % | left % | p50 | p99 | critical | its p99 |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for ((front, dist, size, act), results) in cells.iter().zip(done.chunks(seeds as usize)) {
        let mean =
            |of: fn(&Outcome) -> f64| results.iter().map(of).sum::<f64>() / results.len() as f64;
        let worst = results
            .iter()
            .map(|result| result.goodput)
            .fold(f64::INFINITY, f64::min);
        let when = |on: bool, text: String| if on { text } else { "–".into() };
        let _ = writeln!(
            out,
            "| {} | {} | {size} | {} | {:.3} ({worst:.3}) | {} | {:.2} | {:.2} | {:.0} | {:.0} | {} | {} |",
            front.name(),
            dist.name(),
            act.name(),
            mean(|result| result.goodput),
            when(
                *act == Act::Halved,
                format!("{:.3}", mean(|result| result.at_once))
            ),
            mean(|result| result.refused),
            mean(|result| result.left),
            mean(|result| result.p50),
            mean(|result| result.p99),
            when(
                *act == Act::Critical,
                format!("{:.4}", mean(|result| result.critical))
            ),
            when(
                *act == Act::Critical,
                format!("{:.0}", mean(|result| result.critical_p99))
            ),
        );
    }
    out
}
