//! Expressions name nothing but what is there.

use std::collections::BTreeSet;

use super::dashboard::{dashboard, queries};
use super::exported::{Known, any, in_time, known};
use super::{file, promql, rules};

#[test]
fn expressions_name_only_what_is_exported() {
    let rules = rules::read(&file("rules.yml"));
    let mut known = known(&in_time());
    for rule in rules.iter().filter(|rule| !rule.alerts) {
        check(&rule.expr, "", &known);
        let mut level = promql::read(&rule.expr).by.swap_remove(0);
        level.retain(|label| label != "le");
        let named = rule.name.split(':').next().unwrap();
        assert_eq!(level.join("_"), named, "the level of {}", rule.name);
        known.insert(rule.name.clone(), any(level).collect());
    }
    for rule in rules.iter().filter(|rule| rule.alerts) {
        check(&rule.expr, "", &known);
    }
    for (expr, legend) in queries(&dashboard()) {
        check(&expr, &legend, &known);
    }
    for variable in dashboard()["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            let inner = query.strip_prefix("label_values(").unwrap();
            let (selector, label) = inner.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            check(selector, &format!("{{{{{label}}}}}"), &known);
        }
    }
}

/// That `expr` and `legend` name nothing but what is `known`.
fn check(expr: &str, legend: &str, known: &Known) {
    let names = promql::read(expr);
    assert!(!names.selectors.is_empty(), "{expr}");
    let mut all = BTreeSet::new();
    for selector in &names.selectors {
        let metric = &selector.metric;
        let labels = known.get(metric);
        let labels = labels.unwrap_or_else(|| panic!("nobody exports {metric}: {expr}"));
        for (label, value) in &selector.labels {
            let seen = labels.get(label);
            let seen = seen.unwrap_or_else(|| panic!("{metric} has no {label}: {expr}"));
            // All that is matched are lists of values, or a variable of the dashboard.
            let is_list = !seen.is_empty() && !value.starts_with('$');
            for value in value.split('|').filter(|_| is_list) {
                assert!(seen.contains(value), "{metric} is never {value}: {expr}");
            }
        }
        all.extend(labels.keys());
    }
    let by: BTreeSet<_> = names.by.iter().flatten().collect();
    for label in by.iter().copied().chain(&names.matched) {
        assert!(all.contains(label), "nothing has {label}: {expr}");
    }
    for shown in legend.split("{{").skip(1) {
        let label = shown.split("}}").next().unwrap().to_owned();
        let is_left = if by.is_empty() {
            all.contains(&label)
        } else {
            by.contains(&label)
        };
        assert!(is_left, "{legend} shows {label}: {expr}");
    }
}
