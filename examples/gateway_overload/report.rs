//! The tables, as Markdown and as JSON, and what they say of the targets.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cell::{Act, Cell, Outcome};
use crate::front::Front;
use crate::random::Service;

/// All cells that ran.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) cells: Vec<(Cell, Outcome)>,
    /// Cells that could not run, and why.
    pub(crate) problems: Vec<String>,
}

// ===== impl Report =====

impl Report {
    pub(crate) fn markdown(&self, seconds: u64) -> String {
        let mut text = format!(
            "Clients arrive by themselves and leave after 1 s; work goes on. Jobs take 50 ms on average. Goodput is good \
             answers in capacities: slots ÷ mean time of the jobs that got a slot, which the backend's plan makes exact. \
             Each cell: 2 s at 0.5×, 2 s to settle, {seconds} s counted. Times from when a request was due.\n"
        );
        self.loads(&mut text);
        self.halved(&mut text);
        self.critical(&mut text);
        self.refusals(&mut text);
        let late: usize = self.cells.iter().map(|(_, outcome)| outcome.late).sum();
        let offered: usize = self.cells.iter().map(|(_, outcome)| outcome.offered).sum();
        let _ = writeln!(
            text,
            "\n{late} requests of more than {offered} were sent over 50 ms late{}",
            if late * 1000 > offered {
                ": this machine is too small or too busy, and the times above are not to be trusted."
            } else {
                "."
            }
        );
        let missed = self.missed();
        if !missed.is_empty() {
            text.push_str("\nOf what `gateway --shed` is to reach, missed:\n");
            for line in missed {
                let _ = writeln!(text, "- {line}");
            }
        }
        for problem in self.broken() {
            let _ = writeln!(text, "\n**broken**: {problem}");
        }
        text
    }

    fn loads(&self, text: &mut String) {
        let cells = self.of(|act| matches!(act, Act::Load(_)));
        if cells.is_empty() {
            return;
        }
        text.push_str(
            "\n| front | slots | service | load | as drawn | goodput | refused % | left % | p50 ms | p99 ms | broken | late |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for (cell, outcome) in cells {
            let Act::Load(times) = cell.act else { continue };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {times}× | {:.3} | {:.3} | {:.2} | {:.2} | {} | {} | {} | {} |",
                cell.front.name(),
                cell.slots,
                cell.service.name(),
                outcome.asked,
                outcome.goodput,
                100.0 * outcome.refused,
                100.0 * outcome.left,
                ms(outcome.p50),
                ms(outcome.p99),
                outcome.broken,
                outcome.late,
            );
        }
    }

    fn halved(&self, text: &mut String) {
        let cells = self.of(|act| act == Act::Halved);
        if cells.is_empty() {
            return;
        }
        text.push_str(
            "\nAt 0.9× half of the slots go away; in capacities of the rest:\n\n\
             | front | slots | service | goodput of the first 2 s | of all | refused % | left % | p50 ms | p99 ms |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for (cell, outcome) in cells {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.3} | {:.3} | {:.1} | {:.1} | {} | {} |",
                cell.front.name(),
                cell.slots,
                cell.service.name(),
                outcome.at_once.unwrap_or_default(),
                outcome.goodput,
                100.0 * outcome.refused,
                100.0 * outcome.left,
                ms(outcome.p50),
                ms(outcome.p99),
            );
        }
    }

    fn critical(&self, text: &mut String) {
        let cells = self.of(|act| act == Act::Critical);
        if cells.is_empty() {
            return;
        }
        text.push_str(
            "\nAt 3× a fifth is critical:\n\n\
             | front | slots | service | critical answered | their p99 ms | goodput of all |\n|---|---|---|---|---|---|\n",
        );
        for (cell, outcome) in cells {
            let (good, p99) = outcome.critical.unwrap_or_default();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {good:.4} | {} | {:.3} |",
                cell.front.name(),
                cell.slots,
                cell.service.name(),
                ms(p99),
                outcome.goodput,
            );
        }
    }

    fn refusals(&self, text: &mut String) {
        let cells = self.of(|act| act == Act::Refusals);
        if cells.is_empty() {
            return;
        }
        text.push_str(
            "\nAt 50×, all CPU time of the front for each refusal:\n\n\
             | front | µs per refusal | refused % | goodput |\n|---|---|---|---|\n",
        );
        for (cell, outcome) in cells {
            let cpu = outcome
                .cpu
                .map(|cpu| format!("{:.1}", cpu.as_secs_f64() * 1e6));
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {:.3} |",
                cell.front.name(),
                cpu.unwrap_or("not told here".into()),
                100.0 * outcome.refused,
                outcome.goodput,
            );
        }
    }

    fn of(&self, wanted: impl Fn(Act) -> bool) -> Vec<&(Cell, Outcome)> {
        self.cells
            .iter()
            .filter(|(cell, _)| wanted(cell.act))
            .collect()
    }

    /// The targets that the gateway, told nothing, has not reached.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let nginx = self.cells.iter().find_map(|(cell, outcome)| {
            let same = cell.front == Front::Nginx && cell.act == Act::Refusals;
            same.then_some(outcome.cpu).flatten()
        });
        let ours = self
            .cells
            .iter()
            .filter(|(cell, _)| cell.front == Front::Shed);
        for (cell, outcome) in ours {
            let at = format!("{} slots, {}", cell.slots, cell.service.name());
            let mut check = |met: bool, what: String| {
                if !met {
                    missed.push(format!("{at}: {what}"));
                }
            };
            match cell.act {
                Act::Load(times) if times < 1.0 => {
                    let refused = 100.0 * outcome.refused;
                    check(
                        refused <= 0.3,
                        format!("{refused:.2} % refused at {times}×, 0.3 % at most"),
                    );
                }
                Act::Load(times) => {
                    let goodput = outcome.goodput;
                    check(
                        goodput >= 0.98,
                        format!("goodput {goodput:.3} at {times}×, 0.98 at least"),
                    );
                    // The times that can be reached depend on the service, and are known for one.
                    if cell.slots == 16 && cell.service == Service::Exponential {
                        let (p50, p99) = (ms(outcome.p50), ms(outcome.p99));
                        check(
                            p50 <= 84 && p99 <= 271,
                            format!("p50/p99 {p50}/{p99} ms at {times}×, 84/271 ms at most"),
                        );
                    }
                }
                Act::Halved => {
                    let (first, all) = (outcome.at_once.unwrap_or_default(), outcome.goodput);
                    check(
                        first.min(all) >= 0.98,
                        format!(
                            "goodput {first:.3} at once and {all:.3} after halving, 0.98 at least"
                        ),
                    );
                }
                Act::Critical => {
                    let (good, p99) = outcome.critical.unwrap_or_default();
                    let p99 = ms(p99);
                    // As above: that is what the service alone takes, if it is exponential.
                    let quick = p99 <= 232 || cell.service == Service::Bimodal;
                    check(
                        good >= 0.99 && quick,
                        format!("critical {good:.4} at p99 {p99} ms, 0.99 at 232 ms is the target"),
                    );
                }
                Act::Refusals => {
                    if let Some((ours, nginx)) = outcome.cpu.zip(nginx) {
                        check(
                            ours <= nginx,
                            format!("{ours:.1?} of CPU a refusal, nginx takes {nginx:.1?}"),
                        );
                    }
                }
            }
        }
        missed
    }

    /// What must not happen however slow the machine is.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = self.problems.clone();
        for (cell, outcome) in &self.cells {
            let sheds = matches!(cell.front, Front::Shed | Front::Limit);
            if let Some(problem) = outcome.problem.as_ref().filter(|_| sheds) {
                broken.push(format!("{cell:?}: {} answers, {problem}", outcome.broken));
            }
        }
        broken
    }

    pub(crate) fn json(&self, seconds: u64) -> Value {
        let rows: Vec<_> = self
            .cells
            .iter()
            .map(|(cell, outcome)| row(cell, outcome))
            .collect();
        json!({
            "seconds": seconds,
            "rows": rows,
            "missed": self.missed(),
            "problems": self.broken(),
        })
    }
}

fn row(cell: &Cell, outcome: &Outcome) -> Value {
    let (act, load) = match cell.act {
        Act::Load(times) => ("load", Some(times)),
        Act::Halved => ("halved", None),
        Act::Critical => ("critical", None),
        Act::Refusals => ("refusals", None),
    };
    json!({
        "front": cell.front.flag(),
        "slots": cell.slots,
        "service": cell.service.name(),
        "act": act,
        "load": load,
        "offered": outcome.offered,
        "offered_capacities": outcome.asked,
        "goodput": outcome.goodput,
        "goodput_at_once": outcome.at_once,
        "refused": outcome.refused,
        "left": outcome.left,
        "broken": outcome.broken,
        "p50_ms": outcome.p50.as_secs_f64() * 1e3,
        "p99_ms": outcome.p99.as_secs_f64() * 1e3,
        "critical": outcome.critical.map(|(good, _)| good),
        "critical_p99_ms": outcome.critical.map(|(_, p99)| p99.as_secs_f64() * 1e3),
        "cpu_us_per_refusal": outcome.cpu.map(|cpu| cpu.as_secs_f64() * 1e6),
        "late": outcome.late,
        "problem": outcome.problem,
    })
}

fn ms(time: Duration) -> u128 {
    (time.as_micros() + 500) / 1000
}
