//! The tables as Markdown, and all of it as JSON.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cells::{At, Mean};
use crate::machine::Dist;
use crate::plan::{CLONES, Done, Extent, Kind, LOADS, MIDDLE, SIZES};
use crate::policies::{self, Entry};
use crate::targets::{self, Alone, Target};

/// What is reported on.
pub struct Report<'a> {
    pub done: &'a [Done],
    pub policies: &'a [Entry],
    pub extent: Extent,
    pub alone: Alone,
    pub targets: Vec<Target>,
}

// ===== impl Report =====

impl<'a> Report<'a> {
    pub fn new(done: &'a [Done], policies: &'a [Entry], extent: Extent) -> Self {
        let alone = Alone::measure();
        Self {
            done,
            policies,
            extent,
            targets: targets::all(done, &alone),
            alone,
        }
    }

    pub fn markdown(&self) -> String {
        let Extent {
            seeds,
            other_seeds,
            seconds,
            ..
        } = self.extent;
        let mut out = format!(
            "A server of C workers, 50 ms a request on average. 10 s at 0.5x, then {seconds} s at the load shown, scored \
             from 5 s after\nthe step. Clients go away after 1 s. Seeds: {seeds} for `{}`, {other_seeds} for the \
             others. Cells: goodput as a part\nof the nominal capacity (p50/p99 in ms of those let in; rejected \
             %).\n",
            policies::OURS
        );
        self.comparison(&mut out);
        self.ours(&mut out);
        self.sizes(&mut out);
        self.scenarios(&mut out);
        self.clones(&mut out);
        self.misses(&mut out);
        out
    }

    /// Every policy at every load, one size, exponential.
    fn comparison(&self, out: &mut String) {
        title(out, &format!("Every policy, C={MIDDLE}, exponential"));
        header(out, "policy", LOADS.map(|load| format!("{load}x")));
        for policy in self.policies {
            let cells = LOADS.map(|load| {
                let mean = self.mean(At::cell(policy.name, Dist::Exp, MIDDLE, load));
                mean.map_or_else(none, |mean| cell(&mean))
            });
            row(out, policy.name, cells);
        }
    }

    /// Our default, everywhere.
    fn ours(&self, out: &mut String) {
        if self.mean(At::ours(Dist::Exp, MIDDLE, 2.0)).is_none() {
            return;
        }
        title(
            out,
            &format!("`{}`, every server; missed targets in bold", policies::OURS),
        );
        header(out, "service", LOADS.map(|load| format!("{load}x")));
        for dist in Dist::ALL {
            for size in SIZES {
                let cells = LOADS.map(|load| {
                    let mean = self.mean(At::ours(dist, size, load));
                    mean.map_or_else(none, |mean| self.judged(&mean, dist, load))
                });
                row(out, &format!("{}, C={size}", dist.name()), cells);
            }
        }
        title(
            out,
            "The same, as a part of the capacity realised: what a run draws does not take 50 ms on average",
        );
        let loads = [2.0, 5.0, 10.0];
        let columns = SIZES.map(|size| loads.map(|load| format!("C={size}, {load}x")));
        header(out, "service", columns.into_iter().flatten());
        for dist in Dist::ALL {
            let cells = SIZES.map(|size| {
                loads.map(|load| {
                    let mean = self.mean(At::ours(dist, size, load));
                    mean.map_or_else(none, |mean| {
                        format!("{:.3} ± {:.3}", mean.realised, mean.realised_error)
                    })
                })
            });
            row(out, dist.name(), cells.into_iter().flatten());
        }
    }

    fn judged(&self, mean: &Mean, dist: Dist, load: f64) -> String {
        let bold = |text: String, missed| if missed { format!("**{text}**") } else { text };
        let goodput = bold(
            format!("{:.3}", mean.goodput),
            load >= 2.0 && mean.goodput < targets::goodput(dist),
        );
        let p99 = bold(
            format!("{:.0}", mean.p99),
            load >= 5.0 && mean.p99 > self.alone.of(dist) + 100.0,
        );
        let rejected = bold(
            format!("{:.1}", mean.rejected),
            load < 1.0 && mean.rejected > targets::rejected(dist, load),
        );
        format!("{goodput} ({:.0}/{p99}; {rejected})", mean.p50)
    }

    /// Every policy on other servers.
    fn sizes(&self, out: &mut String) {
        title(out, "Every policy, other servers, and one that shrinks");
        let columns = [
            "exp, C=4, 2x",
            "exp, C=16, 2x",
            "exp, C=128, 2x",
            "bimodal, C=16, 2x",
            "bimodal, C=16, 10x",
            "exp, C=16, 0.9x, half of the workers: of what they can do",
        ];
        header(out, "policy", columns.map(String::from));
        for policy in self.policies {
            let at = |dist, size, load| At::cell(policy.name, dist, size, load);
            let places = [
                at(Dist::Exp, 4, 2.0),
                at(Dist::Exp, 16, 2.0),
                at(Dist::Exp, 128, 2.0),
                at(Dist::Bimodal, 16, 2.0),
                at(Dist::Bimodal, 16, 10.0),
                at(Dist::Exp, 16, 0.9).of(Kind::Halved),
            ];
            let cells = places.map(|at| {
                let mean = self.mean(at);
                mean.map_or_else(none, |mean| match at.kind {
                    Kind::Halved => format!("{:.3}", mean.doubled().goodput),
                    _ => format!("{:.3} ({:.0}/{:.0})", mean.goodput, mean.p50, mean.p99),
                })
            });
            row(out, policy.name, cells);
        }
    }

    /// Cold starts, lost workers, slower service.
    fn scenarios(&self, out: &mut String) {
        title(
            out,
            "Changes: goodput in the first 10 s, or of what is possible in the trough (seconds to 90 %; and back)",
        );
        let columns = [
            "cold start at 2x, C=4",
            "C=16",
            "C=128",
            "half of the workers for 20 s at 0.9x, C=16",
            "twice the service time for 20 s at 0.9x, C=16",
        ];
        header(out, "policy", columns.map(String::from));
        for policy in self.policies {
            let at = |size| At::cell(policy.name, Dist::Exp, size, 2.0);
            row(out, policy.name, self.changes(at));
        }
        if self.mean(At::ours(Dist::Exp, MIDDLE, 2.0)).is_none() {
            return;
        }
        title(
            out,
            &format!(
                "`{}`: the same with every service; a server with half of its workers of each size; median seed, \
                 worst seed",
                policies::OURS
            ),
        );
        let columns = SIZES.map(|size| {
            [Kind::Cold, Kind::Halved].map(|kind| format!("{}, C={size}", kind.name()))
        });
        header(out, "service", columns.into_iter().flatten());
        for dist in Dist::ALL {
            let cells = SIZES.map(|size| {
                let at = At::ours(dist, size, 2.0);
                let cold = self.mean(at.of(Kind::Cold)).map_or_else(none, |mean| {
                    format!("{:.3} ({})", mean.goodput, seconds(mean.reached))
                });
                let halved = self.mean(at.of(Kind::Halved)).map_or_else(none, |mean| {
                    let (down, back) = (seconds(mean.reached), seconds(mean.back));
                    format!("{:.3} ({down}; {back})", mean.doubled().goodput)
                });
                [cold, halved]
            });
            row(out, dist.name(), cells.into_iter().flatten());
        }
    }

    fn changes<'b>(&self, at: impl Fn(usize) -> At<'b>) -> Vec<String> {
        let cold = SIZES.map(|size| {
            let mean = self.mean(at(size).of(Kind::Cold));
            mean.map_or_else(none, |mean| {
                format!("{:.3} ({})", mean.goodput, time(mean.reached.0))
            })
        });
        let changed = [Kind::Halved, Kind::Slowed].map(|kind| {
            let mean = self.mean(at(MIDDLE).of(kind));
            mean.map_or_else(none, |mean| {
                let (down, back) = (time(mean.reached.0), time(mean.back.0));
                format!("{:.3} ({down}; {back})", mean.doubled().goodput)
            })
        });
        cold.into_iter().chain(changed).collect()
    }

    /// Long-lived clones.
    fn clones(&self, out: &mut String) {
        title(out, "Long-lived clones, exponential, 2x: goodput");
        let columns = CLONES.map(|clones| match clones {
            0 => "a clone for each request".into(),
            1 => "1 clone".into(),
            _ => format!("{clones} clones"),
        });
        header(out, "policy", columns);
        for policy in [policies::OURS, policies::TOWER] {
            for size in SIZES {
                let at = At::cell(policy, Dist::Exp, size, 2.0).of(Kind::Clones);
                let cells = CLONES.map(|clones| self.mean(At { clones, ..at }));
                if cells.iter().any(Option::is_some) {
                    let cells = cells
                        .map(|mean| mean.map_or_else(none, |mean| format!("{:.3}", mean.goodput)));
                    row(out, &format!("{policy}, C={size}"), cells);
                }
            }
        }
    }

    fn misses(&self, out: &mut String) {
        if self.targets.is_empty() {
            return;
        }
        title(out, "Targets");
        if !self.extent.whole {
            line(
                out,
                "One seed and short runs: this says little about targets.\n",
            );
        }
        header(out, "target", ["met".into(), "of".into()]);
        let mut groups: Vec<_> = self.targets.iter().map(|target| target.group).collect();
        groups.dedup();
        for group in groups {
            let here = self.targets.iter().filter(|target| target.group == group);
            let met = here.clone().filter(|target| target.met()).count();
            row(out, group, [met.to_string(), here.count().to_string()]);
        }
        let met = self.targets.iter().filter(|target| target.met()).count();
        line(
            out,
            &format!("\nTargets met: {met} of {}.\n", self.targets.len()),
        );
        for target in self.targets.iter().filter(|target| !target.met()) {
            let Target {
                group,
                place,
                want,
                got,
                note,
                ..
            } = target;
            let digits = if *want < 1.0 { 4 } else { 1 };
            let note = match note.as_str() {
                "" => String::new(),
                note => format!(" ({note})"),
            };
            let off = (got - want).abs();
            line(
                out,
                &format!(
                    "- {group}: {place}: {got:.digits$} where {want:.digits$} is wanted, off by {off:.digits$}{note}"
                ),
            );
        }
    }

    fn mean(&self, at: At<'_>) -> Option<Mean> {
        Mean::of(self.done, at)
    }

    pub fn json(&self) -> Value {
        let cells = self.done.iter().filter(|done| done.run.kind == Kind::Cell);
        let rows: Vec<_> = cells
            .map(|done| {
                let (scenario, score) = (&done.run.scenario, &done.score);
                json!({
                    "policy": done.run.policy.name,
                    "dist": scenario.dist.name(),
                    "c": scenario.size,
                    "load": scenario.load,
                    "seed": scenario.seed,
                    "goodput": score.goodput,
                    "p50_ms": score.p50,
                    "p99_ms": score.p99,
                    "rejected": score.rejected,
                })
            })
            .collect();
        let others = self.done.iter().filter(|done| done.run.kind != Kind::Cell);
        let scenarios: Vec<_> = others
            .map(|done| {
                let (scenario, score) = (&done.run.scenario, &done.score);
                // An infinity becomes null as a NaN does: it never came to that, or it was not asked.
                json!({
                    "scenario": done.run.kind.name(),
                    "policy": done.run.policy.name,
                    "dist": scenario.dist.name(),
                    "c": scenario.size,
                    "load": scenario.load,
                    "clones": scenario.clones,
                    "seed": scenario.seed,
                    "goodput": score.goodput,
                    "p50_ms": score.p50,
                    "p99_ms": score.p99,
                    "rejected": score.rejected,
                    "reached_s": done.reached,
                    "back_s": done.back,
                })
            })
            .collect();
        let targets: Vec<_> = self
            .targets
            .iter()
            .map(|target| {
                json!({
                    "target": target.group,
                    "place": target.place,
                    "want": target.want,
                    "got": target.got,
                    "met": target.met(),
                })
            })
            .collect();
        json!({ "rows": rows, "scenarios": scenarios, "targets": targets })
    }
}

/// Where the JSON goes.
pub fn path() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"));
    target.join("overload.json")
}

fn cell(mean: &Mean) -> String {
    let Mean {
        goodput,
        p50,
        p99,
        rejected,
        ..
    } = mean;
    format!("{goodput:.3} ({p50:.0}/{p99:.0}; {rejected:.1})")
}

fn time(seconds: f64) -> String {
    if seconds.is_finite() {
        format!("{seconds:.1} s")
    } else {
        "never".into()
    }
}

fn seconds((median, worst): (f64, f64)) -> String {
    format!("{}, {}", time(median), time(worst))
}

fn none() -> String {
    "-".into()
}

fn title(out: &mut String, text: &str) {
    line(out, &format!("\n### {text}\n"));
}

fn header(out: &mut String, first: &str, columns: impl IntoIterator<Item = String>) {
    let columns: Vec<_> = columns.into_iter().collect();
    let under = "|---:".repeat(columns.len());
    row(out, first, columns);
    line(out, &format!("|---{under}|"));
}

fn row(out: &mut String, first: &str, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<_> = cells.into_iter().collect();
    line(out, &format!("| {first} | {} |", cells.join(" | ")));
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a string takes all");
}
