//! Runs that differ in nothing but their seed, taken together.

use crate::machine::Dist;
use crate::plan::{Done, Kind};
use crate::policies;

/// Which runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct At<'a> {
    pub kind: Kind,
    pub policy: &'a str,
    pub dist: Dist,
    pub size: usize,
    pub load: f64,
    pub clones: usize,
}

/// Means over the seeds.
#[derive(Debug, Clone, Copy)]
pub struct Mean {
    pub goodput: f64,
    /// Its standard error; 0 with one seed.
    pub error: f64,
    pub realised: f64,
    pub realised_error: f64,
    pub p50: f64,
    pub p99: f64,
    pub rejected: f64,
    /// The median seed and the worst.
    pub reached: (f64, f64),
    pub back: (f64, f64),
}

// ===== impl At =====

impl<'a> At<'a> {
    pub fn cell(policy: &'a str, dist: Dist, size: usize, load: f64) -> Self {
        Self {
            kind: Kind::Cell,
            policy,
            dist,
            size,
            load,
            clones: 0,
        }
    }

    pub fn of(self, kind: Kind) -> Self {
        let load = match kind {
            Kind::Halved | Kind::Slowed => 0.9,
            _ => 2.0,
        };
        Self { kind, load, ..self }
    }

    pub fn ours(dist: Dist, size: usize, load: f64) -> At<'static> {
        At::cell(policies::OURS, dist, size, load)
    }
}

// ===== impl Mean =====

impl Mean {
    /// `None` when there was no such run.
    pub fn of(all: &[Done], at: At<'_>) -> Option<Self> {
        let here = all.iter().filter(|done| {
            let scenario = &done.run.scenario;
            at == At {
                kind: done.run.kind,
                policy: done.run.policy.name,
                dist: scenario.dist,
                size: scenario.size,
                load: scenario.load,
                clones: scenario.clones,
            }
        });
        let here: Vec<_> = here.collect();
        if here.is_empty() {
            return None;
        }
        let count = here.len() as f64;
        let mean = |of: fn(&Done) -> f64| here.iter().map(|done| of(done)).sum::<f64>() / count;
        let error = |of: fn(&Done) -> f64| {
            let middle = mean(of);
            let squares: f64 = here.iter().map(|done| (of(done) - middle).powi(2)).sum();
            (squares / (count - 1.0).max(1.0) / count).sqrt()
        };
        let ranks = |of: fn(&Done) -> f64| {
            let mut all: Vec<_> = here.iter().map(|done| of(done)).collect();
            all.sort_by(f64::total_cmp);
            (all[(all.len() - 1) / 2], all[all.len() - 1])
        };
        Some(Self {
            goodput: mean(|done| done.score.goodput),
            error: error(|done| done.score.goodput),
            realised: mean(|done| done.score.realised),
            realised_error: error(|done| done.score.realised),
            p50: mean(|done| done.score.p50),
            p99: mean(|done| done.score.p99),
            rejected: mean(|done| done.score.rejected),
            reached: ranks(|done| done.reached),
            back: ranks(|done| done.back),
        })
    }

    /// As a part of what a server can do that has half of its workers, or takes twice as long.
    pub fn doubled(self) -> Self {
        Self {
            goodput: 2.0 * self.goodput,
            error: 2.0 * self.error,
            realised: 2.0 * self.realised,
            realised_error: 2.0 * self.realised_error,
            ..self
        }
    }
}
