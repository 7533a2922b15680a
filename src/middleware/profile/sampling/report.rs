//! A profile, and what it can be turned into.

mod folded;
mod pprof;
mod svg;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::modules::Module;
use crate::base::inspect::Value;

/// Where the CPU time of the process went while a [`Profiler`](super::Profiler) ran.
///
/// One sample stands for `1/hz` seconds on a core.
pub struct Profile {
    pub(super) counts: Counts,
    /// The names of threads.
    pub(super) threads: Vec<String>,
    /// Layer and route of every tag that occurs.
    pub(super) tags: Vec<(Arc<str>, Arc<str>)>,
    pub(super) functions: Vec<Function>,
    pub(super) modules: Vec<Module>,
    pub(super) locations: Vec<Location>,
    pub(super) stacks: Vec<Stack>,
}

/// How a profile came about: what is behind its numbers, and what is not.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Samples a second of CPU time.
    pub hz: u32,
    /// When it began.
    pub began: SystemTime,
    /// How long it lasted.
    pub duration: Duration,
    /// Samples that were taken.
    pub samples: u64,
    /// Of those, the ones with a route.
    pub tagged: u64,
    /// Of those, the ones whose thread changed routes faster than that could be read; they have no route.
    pub torn: u64,
    /// Of those, the ones whose stack is not shown since there were too many different ones; their route and thread are.
    pub dropped: u64,
    /// Samples the kernel had no room for. They are not among the samples.
    pub lost: u64,
    /// How often the kernel paused since sampling took too much time.
    pub throttled: u64,
    /// Threads that were sampled.
    pub threads: u64,
    /// Threads that were not, for want of file descriptors or of memory that may be locked.
    pub missed: u64,
    /// The CPU time of the process meanwhile, the kernel's work for it included, which samples do not show.
    pub cpu: Duration,
    /// Of that, the profiler's own thread, which samples do not show either.
    pub cost: Duration,
}

/// How much of a profile belongs to a route.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RouteShare {
    /// The layer's name.
    pub layer: Arc<str>,
    /// The route.
    pub route: Arc<str>,
    /// Its samples.
    pub samples: u64,
    /// Their share of all samples.
    pub share: f64,
}

/// A stack and how often it was seen.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) tag: Option<usize>,
    pub(super) thread: usize,
    /// From the innermost outwards.
    pub(super) locations: Vec<u32>,
    pub(super) count: u64,
}

/// An address.
#[derive(Debug)]
pub(super) struct Location {
    pub(super) address: u64,
    pub(super) module: Option<usize>,
    /// At least one: the innermost inlined function first.
    pub(super) lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) function: u32,
    /// 0 where it is not known.
    pub(super) line: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Function {
    pub(super) name: Arc<str>,
    pub(super) file: Option<Arc<str>>,
}

// ===== impl Profile =====

impl Profile {
    /// How it came about.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Every route that was seen, the one with most samples first.
    pub fn routes(&self) -> Vec<RouteShare> {
        let mut samples = vec![0; self.tags.len()];
        for stack in &self.stacks {
            if let Some(tag) = stack.tag {
                samples[tag] += stack.count;
            }
        }
        let share = |samples: u64| samples as f64 / self.counts.samples.max(1) as f64;
        let mut routes: Vec<_> = self
            .tags
            .iter()
            .zip(samples)
            .map(|((layer, route), samples)| RouteShare {
                layer: layer.clone(),
                route: route.clone(),
                samples,
                share: share(samples),
            })
            .collect();
        routes.sort_by(|a, b| {
            b.samples
                .cmp(&a.samples)
                .then_with(|| a.route.cmp(&b.route))
        });
        routes
    }

    /// Counts and routes, without the stacks.
    pub fn to_value(&self) -> Value {
        let counts = &self.counts;
        let share = |of: u64| Value::from(of as f64 / counts.samples.max(1) as f64);
        let routes = self.routes().into_iter().map(|route| {
            Value::map([
                ("layer", Value::from(&*route.layer)),
                ("route", Value::from(&*route.route)),
                ("samples", Value::from(route.samples)),
                ("share", Value::from(route.share)),
            ])
        });
        Value::map([
            ("hz", Value::from(counts.hz)),
            ("duration", Value::from(counts.duration)),
            ("samples", Value::from(counts.samples)),
            ("tagged_share", share(counts.tagged)),
            ("torn", Value::from(counts.torn)),
            ("dropped", Value::from(counts.dropped)),
            ("lost", Value::from(counts.lost)),
            ("throttled", Value::from(counts.throttled)),
            ("threads", Value::from(counts.threads)),
            ("missed_threads", Value::from(counts.missed)),
            ("cpu", Value::from(counts.cpu)),
            ("cost", Value::from(counts.cost)),
            ("routes", Value::list(routes)),
        ])
    }

    /// The names on a stack from the outermost function inwards.
    fn frames(&self, stack: &Stack) -> impl Iterator<Item = &str> {
        let locations = stack.locations.iter().rev();
        locations.flat_map(|location| {
            let lines = self.locations[*location as usize].lines.iter().rev();
            lines.map(|line| &*self.functions[line.function as usize].name)
        })
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("counts", &self.counts)
            .field("routes", &self.tags.len())
            .field("stacks", &self.stacks.len())
            .finish_non_exhaustive()
    }
}

// ===== impl Counts =====

impl Counts {
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(super) fn new(hz: u32, began: SystemTime) -> Self {
        Self {
            hz,
            began,
            duration: Duration::ZERO,
            samples: 0,
            tagged: 0,
            torn: 0,
            dropped: 0,
            lost: 0,
            throttled: 0,
            threads: 0,
            missed: 0,
            cpu: Duration::ZERO,
            cost: Duration::ZERO,
        }
    }

    /// What a sample stands for, in nanoseconds.
    fn period(&self) -> u64 {
        1_000_000_000 / u64::from(self.hz)
    }
}

#[cfg(test)]
mod tests;
