//! Each alert fires and clears, over series as Prometheus would have stored them.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::cases::{self, Case, Ill};
use super::exported::everything;
use super::rules::{self, Rule};
use super::series::{Course, Series};
use super::{entry, expect, file, test_rules};
use crate::support::found;

/// Where the fault begins, in minutes.
const START: u64 = 30;

/// A case as promtool is told it.
struct Told {
    series: String,
    expected: String,
    end: u64,
}

fn told(case: &Case, rules: &[Rule], captured: &[Series]) -> Told {
    let rule = rules.iter().find(|rule| rule.name == case.alert);
    let rule = rule.unwrap_or_else(|| panic!("there is no alert {}", case.alert));
    // Ten minutes more than it must hold for, and as long as it may take to clear.
    let spans = [START, rule.hold + 10, case.clears];
    let [sick, cured, end] = [START, START + spans[1], START + spans[1] + spans[2]];
    let sources = rules::sources(&rule.expr, rules);
    let mut series = String::new();
    for (one, courses) in courses(case, captured) {
        if sources.contains(&one.metric) {
            let courses: Vec<_> = courses.into_iter().zip(spans).collect();
            series += &one.yaml(case.alert, &courses);
        }
    }
    // What annotations show must be there.
    let mut firing = format!("ALERTS{{alertname=\"{}\",alertstate=\"firing\"", rule.name);
    for label in rule.shown() {
        write!(firing, ",{label}!=\"\"").unwrap();
    }
    // Of the jobs only its own. Absence has none.
    match rule.expr.starts_with("absent") {
        true => firing += "}",
        false => write!(firing, ",job=\"{}\"}}", case.alert).unwrap(),
    }
    let firing = format!("count({firing}) >= bool 1");
    let mut expected = String::new();
    for (minute, value) in [
        (sick + rule.hold - 1, None),
        (cured - 1, Some(1)),
        (end - 1, None),
    ] {
        expect(&mut expected, &firing, minute, value);
    }
    Told {
        series,
        expected,
        end,
    }
}

/// How each captured series goes on before, during, and after the fault.
fn courses(case: &Case, captured: &[Series]) -> Vec<(Series, [Course; 3])> {
    match &case.ill {
        Ill::Set(sets) => {
            let mut used = vec![false; sets.len()];
            let mut all = Vec::new();
            for series in captured {
                let at = sets.iter().position(|set| set.is_of(series));
                let still = if series.is_counter() {
                    Course::Grows(0.0)
                } else {
                    Course::Is(series.value)
                };
                let courses = at.map_or([still; 3], |at| sets[at].of(series));
                at.into_iter().for_each(|at| used[at] = true);
                all.push((series.clone(), courses));
            }
            assert!(used.iter().all(|used| *used), "{}: {used:?}", case.alert);
            all
        }
        Ill::Driven(scene) => {
            let [before, ill, well] = scene();
            let of = |all: &[Series], one: &Series| {
                let same = |of: &&Series| of.metric == one.metric && of.labels == one.labels;
                all.iter().find(same).map(|series| series.value)
            };
            let mut all = Vec::new();
            // Counters do not vanish, so that the last scrape has them all.
            for series in &well {
                let first = of(&before, series);
                let sick = of(&ill, series);
                let courses = if series.is_counter() {
                    let [first, sick] = [first.unwrap_or(0.0), sick.unwrap_or(0.0)];
                    assert!(first <= sick && sick <= series.value, "{series:?}");
                    let [ill, well] = [sick - first, series.value - sick].map(Course::Grows);
                    [well, ill, well]
                } else {
                    let [well, ill] = [
                        Course::Is(series.value),
                        sick.map_or(Course::Gone, Course::Is),
                    ];
                    [well, ill, well]
                };
                let value = first.unwrap_or(0.0);
                all.push((
                    Series {
                        value,
                        ..series.clone()
                    },
                    courses,
                ));
            }
            all
        }
    }
}

#[test]
fn every_alert_fires_and_clears() {
    if !found("promtool") {
        return;
    }
    let rules = rules::read(&file("rules.yml"));
    let cases = cases::all();
    for rule in rules.iter().filter(|rule| rule.alerts) {
        let of_it = cases.iter().filter(|case| case.alert == rule.name);
        assert_eq!(of_it.count(), 1, "cases of {}", rule.name);
        assert!(
            ["critical", "warning", "info"].contains(&&*rule.severity),
            "{rule:?}"
        );
        assert!(
            rule.summary.len() > 10 && rule.description.len() > 40,
            "{rule:?}"
        );
        let speaks = rule.summary.contains("$value") || rule.description.contains("$value");
        assert!(
            speaks || rule.expr.contains("tower_flow_info"),
            "no number in {rule:?}"
        );
    }
    let captured = everything().0;
    // Jobs do not disturb each other, so that many share a timeline; but nothing is absent while others are there.
    // The few that are long are looked at less often.
    let mut files: BTreeMap<(u64, bool), Vec<Told>> = BTreeMap::new();
    for case in &cases {
        let told = told(case, &rules, &captured);
        let every = if told.end > 80 { 5 } else { 1 };
        let alone = case.alert == "TowerFlowAbsent";
        files.entry((every, alone)).or_default().push(told);
    }
    for ((every, _), all) in files {
        let mut yaml = entry();
        yaml.extend(all.iter().map(|told| &*told.series));
        yaml += "  promql_expr_test:\n";
        yaml.extend(all.iter().map(|told| &*told.expected));
        test_rules("alerts", every, &yaml).unwrap_or_else(|said| panic!("{said}"));
    }
}

#[test]
fn nothing_fires_while_all_is_well() {
    if !found("promtool") {
        return;
    }
    let goes_well = |series: &Series| {
        let is = |label: &str, of: &[&str]| {
            series
                .labels
                .get(label)
                .is_none_or(|value| of.contains(&&**value))
        };
        let bad = [
            "failed",
            "refused",
            "throttled",
            "dropped",
            "rejected",
            "evicted",
            "stale",
            "failures",
        ];
        let worse = [
            "panics",
            "unknown",
            "truncated",
            "slow_polls",
            "blocked_polls",
            "abandoned",
            "malformed",
            "run_queue",
            "nats_lost",
        ];
        is("outcome", &["success", "granted"])
            && is("grpc_code", &["OK"])
            && is("result", &["ok"])
            && is("how", &["shared"])
            && is("role", &["leader", "follower"])
            && !bad
                .iter()
                .chain(&worse)
                .any(|part| series.metric.contains(part))
    };
    let mut yaml = entry();
    for series in everything().0 {
        let course = match series.is_counter() {
            true => Course::Grows(if goes_well(&series) { 30.0 } else { 0.0 }),
            false => Course::Is(series.value),
        };
        yaml += &series.yaml("well", &[(course, 60)]);
    }
    yaml += "  promql_expr_test:\n";
    for minute in [5, 30, 59] {
        expect(&mut yaml, "ALERTS{alertstate=\"firing\"}", minute, None);
    }
    test_rules("well", 1, &yaml).unwrap_or_else(|said| panic!("{said}"));
}
