//! One cell: a front, a backend and a load, and what came of them.

use std::path::Path;
use std::time::{Duration, Instant};

use tower_flow::BoxError;

use crate::backend::Backend;
use crate::front::Front;
use crate::load::{Answer, End, Load, send};
use crate::random::{MEAN, Service};

/// At half its capacity a front warms up for so long;
const WARM: Duration = Duration::from_secs(2);
/// then the load steps up, and nothing is counted for so long.
const SETTLE: Duration = Duration::from_secs(2);
/// What "at once" is taken to mean once capacity is halved.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Offered in capacities while only refusals are of interest: one in so many can be served.
const FLOOD: f64 = 50.0;

/// What is done to a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Act {
    /// So many times its capacity is asked for.
    Load(f64),
    /// Nine tenths of its capacity are asked for, and then half of its slots are gone.
    Halved,
    /// Three times its capacity is asked for, and a fifth of it is critical.
    Critical,
    /// Nearly all are refused.
    Refusals,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) front: Front,
    pub(crate) slots: usize,
    pub(crate) service: Service,
    pub(crate) act: Act,
}

/// What was counted in a cell.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) offered: usize,
    /// The same in capacities, which differs from what was meant by the luck of arrivals and jobs.
    pub(crate) asked: f64,
    /// Good answers in capacities.
    pub(crate) goodput: f64,
    /// The same within the first two seconds of halved capacity.
    pub(crate) at_once: Option<f64>,
    /// Shares of what was offered.
    pub(crate) refused: f64,
    pub(crate) left: f64,
    pub(crate) broken: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Of the critical ones, the share that got a good answer, and the p99 of those.
    pub(crate) critical: Option<(f64, Duration)>,
    /// CPU time of the front for each refusal.
    pub(crate) cpu: Option<Duration>,
    /// Requests that were sent more than 50 ms after they were due.
    pub(crate) late: usize,
    pub(crate) problem: Option<String>,
}

// ===== impl Cell =====

impl Cell {
    /// Counts for so long. The gateway is this program.
    pub(crate) fn run(
        self,
        gateway: &Path,
        long: Duration,
        seed: u64,
    ) -> Result<Outcome, BoxError> {
        let seed = self.seed() ^ seed << 40;
        let backend = Backend::start(self.slots, self.service, seed)?;
        let critical = self.act == Act::Critical;
        let mut front = self
            .front
            .start(gateway, self.slots, backend.addr(), critical)?;
        let capacity = self.slots as f64 / MEAN.as_secs_f64();
        let (times, before) = match self.act {
            Act::Load(times) => (times, SETTLE),
            // All of it is counted: at first, and after.
            Act::Halved => (0.9, SETTLE + long),
            Act::Critical => (3.0, SETTLE),
            Act::Refusals => (FLOOD, SETTLE),
        };
        let load = Load {
            target: front.addr(),
            seed: seed ^ 0xface,
            spans: vec![
                (0.5 * capacity, WARM),
                (times * capacity, before + long + Duration::from_millis(200)),
            ],
            critical: critical.then_some(0.2),
        };
        let start = Instant::now() + Duration::from_millis(20);
        let clients = std::thread::Builder::new()
            .name("clients".into())
            .spawn(move || send(&load, start))?;
        let (from, to) = (WARM + before, WARM + before + long);
        wait(start + from);
        if self.act == Act::Halved {
            backend.slots().send_replace(self.slots / 2);
        }
        let cpu_before = front.cpu();
        wait(start + to);
        let cpu = front
            .cpu()
            .zip(cpu_before)
            .map(|(after, before)| after.saturating_sub(before));
        let answers = clients.join().map_err(|_| "the clients panicked")??;
        let slots = match self.act {
            Act::Halved => self.slots / 2,
            _ => self.slots,
        };
        // Capacity is that of the jobs this window happened to get, so that luck with them is not counted.
        let per_job = |from: Duration, to: Duration| {
            let mean = backend.mean(start + from, start + to);
            let capacity = slots as f64 * (to - from).as_secs_f64();
            mean.unwrap_or(MEAN.as_secs_f64()) / capacity
        };
        let goodput = |from: Duration, to: Duration| {
            let ended = |answer: &&Answer| (from..to).contains(&(answer.due + answer.took));
            let good = answers
                .all
                .iter()
                .filter(|a| a.end == End::Good)
                .filter(ended);
            good.count() as f64 * per_job(from, to)
        };
        let mut outcome = Outcome {
            goodput: goodput(from, to),
            at_once: (self.act == Act::Halved).then(|| goodput(from, from + AT_ONCE.min(long))),
            problem: answers.problem.clone(),
            ..Outcome::of(&answers.all, from, to)
        };
        outcome.asked = outcome.offered as f64 * per_job(from, to);
        let refused = (outcome.refused * outcome.offered as f64).round() as u32;
        outcome.cpu = cpu.filter(|_| refused > 0).map(|cpu| cpu / refused);
        if !front.alive()? {
            outcome.problem = Some("the front is gone".into());
        }
        Ok(outcome)
    }

    /// Every front gets the same arrivals and the same jobs.
    fn seed(self) -> u64 {
        let act = match self.act {
            Act::Load(times) => (times * 10.0) as u64,
            Act::Halved => 1001,
            Act::Critical => 1002,
            Act::Refusals => 1003,
        };
        act << 32 | (self.slots as u64) << 8 | self.service as u64
    }
}

fn wait(until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

// ===== impl Outcome =====

impl Outcome {
    /// What clients can tell of those that were due within this span.
    fn of(answers: &[Answer], from: Duration, to: Duration) -> Self {
        let within: Vec<_> = answers
            .iter()
            .filter(|answer| (from..to).contains(&answer.due))
            .collect();
        let count = |end: End| within.iter().filter(|answer| answer.end == end).count();
        let share = |count: usize| count as f64 / within.len().max(1) as f64;
        let critical: Vec<_> = within.iter().copied().filter(|a| a.critical).collect();
        let times = Times::of(&within);
        Self {
            offered: within.len(),
            refused: share(count(End::Refused)),
            left: share(count(End::Left)),
            broken: count(End::Broken),
            p50: times.quantile(0.5),
            p99: times.quantile(0.99),
            critical: (!critical.is_empty()).then(|| {
                let times = Times::of(&critical);
                let good = times.0.len() as f64 / critical.len() as f64;
                (good, times.quantile(0.99))
            }),
            late: answers.iter().filter(|answer| answer.late).count(),
            ..Self::default()
        }
    }
}

/// How long good answers took, shortest first.
struct Times(Vec<Duration>);

// ===== impl Times =====

impl Times {
    fn of(answers: &[&Answer]) -> Self {
        let good = answers.iter().filter(|answer| answer.end == End::Good);
        let mut times: Vec<_> = good.map(|answer| answer.took).collect();
        times.sort_unstable();
        Self(times)
    }

    fn quantile(&self, q: f64) -> Duration {
        let rank = (q * self.0.len() as f64).ceil() as usize;
        let time = self.0.get(rank.max(1) - 1);
        time.copied().unwrap_or_default()
    }
}
