//! What the default is held to, without a word of configuration for any of these servers.

use crate::cells::{At, Mean};
use crate::machine::Dist;
use crate::plan::{CLONES, Done, Kind, SIZES};

/// One number that has to be reached.
#[derive(Debug, Clone)]
pub struct Target {
    pub group: &'static str,
    pub place: String,
    pub want: f64,
    pub got: f64,
    /// Whether more is better.
    pub more: bool,
    /// What helps to judge a miss.
    pub note: String,
}

/// 99th percentiles of the service alone, by distribution, in milliseconds.
pub struct Alone([f64; Dist::ALL.len()]);

// ===== impl Alone =====

impl Alone {
    pub fn measure() -> Self {
        Self(Dist::ALL.map(|dist| dist.p99() * 1e3))
    }

    pub fn of(&self, dist: Dist) -> f64 {
        let index = Dist::ALL.iter().position(|other| *other == dist);
        self.0[index.expect("all distributions are in ALL")]
    }
}

// ===== impl Target =====

impl Target {
    pub fn met(&self) -> bool {
        if self.more {
            self.got >= self.want
        } else {
            self.got <= self.want
        }
    }
}

/// The least goodput at twice the capacity and above.
pub fn goodput(dist: Dist) -> f64 {
    match dist {
        Dist::Bimodal => 0.95,
        _ => 0.97,
    }
}

/// The most that may be refused, in percent, at a load below 1.
pub fn rejected(dist: Dist, load: f64) -> f64 {
    match dist {
        _ if load <= 0.5 => 0.0,
        Dist::Bimodal => 4.0,
        _ => 1.5,
    }
}

/// All targets, where there are runs to hold to them.
pub fn all(done: &[Done], alone: &Alone) -> Vec<Target> {
    let mut all = Vec::new();
    for dist in Dist::ALL {
        for size in SIZES {
            server(&mut all, done, alone, dist, size);
        }
    }
    for size in SIZES {
        for clones in CLONES.into_iter().filter(|clones| *clones > 0) {
            let at = At {
                clones,
                ..At::ours(Dist::Exp, size, 2.0).of(Kind::Clones)
            };
            let Some(mean) = Mean::of(done, at) else {
                continue;
            };
            all.push(Target {
                group: "goodput at 2x through long-lived clones",
                place: format!("exp, C={size}, {clones} clones"),
                want: goodput(Dist::Exp),
                got: mean.goodput,
                more: true,
                note: spread(&mean),
            });
        }
    }
    // Target by target, not server by server.
    let mut groups: Vec<&str> = Vec::new();
    for target in &all {
        if !groups.contains(&target.group) {
            groups.push(target.group);
        }
    }
    all.sort_by_key(|target| groups.iter().position(|group| *group == target.group));
    all
}

fn server(all: &mut Vec<Target>, done: &[Done], alone: &Alone, dist: Dist, size: usize) {
    let mut add = |group, at: At<'_>, want, more, of: &dyn Fn(&Mean) -> (f64, String)| {
        if let Some(mean) = Mean::of(done, at) {
            let (got, note) = of(&mean);
            let place = match at.kind {
                Kind::Cell => format!("{}, C={size}, {}x", dist.name(), at.load),
                _ => format!("{}, C={size}", dist.name()),
            };
            all.push(Target {
                group,
                place,
                want,
                got,
                more,
                note,
            });
        }
    };
    let at = |load| At::ours(dist, size, load);
    let cells = "goodput at 2x, 5x and 10x";
    for load in [2.0, 5.0, 10.0] {
        add(cells, at(load), goodput(dist), true, &|mean| {
            (mean.goodput, spread(mean))
        });
    }
    for (group, load) in [("rejected % at 0.5x", 0.5), ("rejected % at 0.9x", 0.9)] {
        add(group, at(load), rejected(dist, load), false, &|mean| {
            (mean.rejected, String::new())
        });
    }
    for load in [5.0, 10.0] {
        let most = alone.of(dist) + 100.0;
        add("p99 in ms at 5x and 10x", at(load), most, false, &|mean| {
            (mean.p99, String::new())
        });
    }
    let worst = |(_, worst): (f64, f64)| format!("worst seed {worst:.1}");
    let cold = "cold start at 2x: seconds to 90 %, median seed";
    add(cold, at(2.0).of(Kind::Cold), 2.0, false, &|mean| {
        (mean.reached.0, worst(mean.reached))
    });
    let halved = at(0.9).of(Kind::Halved);
    let trough = "trough with half of the workers, of what they can do";
    add(trough, halved, 0.97, true, &|mean| {
        (2.0 * mean.goodput, spread(&mean.doubled()))
    });
    let down = "seconds to 90 % of what half of the workers can do, median seed";
    add(down, halved, 2.0, false, &|mean| {
        (mean.reached.0, worst(mean.reached))
    });
    let back = "seconds back to 90 % when the workers are, median seed";
    add(back, halved, 2.0, false, &|mean| {
        (mean.back.0, worst(mean.back))
    });
}

fn spread(mean: &Mean) -> String {
    format!(
        "± {:.3}; {:.3} ± {:.3} of the capacity realised",
        mean.error, mean.realised, mean.realised_error
    )
}
