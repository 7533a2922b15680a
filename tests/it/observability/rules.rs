//! `rules.yml` as far as the tests need it. It keeps to one way of writing YAML, so that lines are enough to read it;
//! the number of rules is compared with promtool's.

use std::collections::BTreeSet;

use super::promql;

#[derive(Debug, Default, Clone)]
pub struct Rule {
    pub name: String,
    pub alerts: bool,
    pub expr: String,
    /// Minutes for which it holds before it fires.
    pub hold: u64,
    pub severity: String,
    pub summary: String,
    pub description: String,
}

impl Rule {
    /// The labels that its annotations show.
    pub fn shown(&self) -> BTreeSet<String> {
        let text = format!("{} {}", self.summary, self.description);
        let after = text.split("$labels.").skip(1);
        let name = |rest: &str| -> String {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        after.map(name).collect()
    }
}

pub fn read(text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        let Some((key, value)) = bare.split_once(": ") else {
            continue;
        };
        let value = match value.trim() {
            "|" | ">-" => {
                let mut block = String::new();
                let deeper = |line: &&str| line.len() - line.trim_start().len() > indent;
                while let Some(line) = lines.next_if(deeper) {
                    block += line.trim();
                    block.push(' ');
                }
                block.trim().to_owned()
            }
            value => value.trim_matches('\'').to_owned(),
        };
        if let Some(kind @ ("alert" | "record")) = key.strip_prefix("- ") {
            rules.push(Rule {
                name: value,
                alerts: kind == "alert",
                ..Rule::default()
            });
            continue;
        }
        let Some(rule) = rules.last_mut() else {
            continue;
        };
        match key {
            "expr" => rule.expr = value,
            "for" => rule.hold = minutes(&value),
            "labels" => {
                let severity = value.trim_matches(['{', '}']).strip_prefix("severity: ");
                rule.severity = severity.unwrap_or_else(|| panic!("{value}")).to_owned();
            }
            "summary" => rule.summary = value,
            "description" => rule.description = value,
            // A group.
            "- name" => {}
            _ if bare.starts_with('#') => {}
            _ => panic!("nobody knows {key:?} in {line:?}"),
        }
    }
    rules
}

fn minutes(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "m" => number,
        "h" => 60 * number,
        _ => panic!("{duration}"),
    }
}

/// The metrics that `expr` reads, those behind recording rules too.
pub fn sources(expr: &str, rules: &[Rule]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for selector in promql::read(expr).selectors {
        match rules.iter().find(|rule| rule.name == selector.metric) {
            Some(rule) => found.extend(sources(&rule.expr, rules)),
            None => drop(found.insert(selector.metric)),
        }
    }
    found
}
