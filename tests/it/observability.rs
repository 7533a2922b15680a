//! `examples/observability`: the dashboard and the rules against what the layers really export, read by promtool.

mod alerts;
mod cases;
mod dashboard;
mod exported;
mod faults;
mod names;
mod promql;
mod rules;
mod series;
mod served;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use crate::support::{found, scratch};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/observability");

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(DIR).join(name)).unwrap()
}

fn promtool(args: &[&str], dir: impl AsRef<Path>) -> Result<String, String> {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(dir)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(said.into_owned()),
        false => Err(said.into_owned()),
    }
}

#[test]
fn promtool_takes_the_rules_and_the_configuration() {
    if !found("promtool") {
        return;
    }
    let said = promtool(&["check", "rules", "rules.yml"], DIR).unwrap();
    let rules = rules::read(&file("rules.yml"));
    let count = format!("SUCCESS: {} rules found", rules.len());
    assert!(
        said.contains(&count),
        "{said}, and {} read here",
        rules.len()
    );
    promtool(&["check", "config", "prometheus.yml"], DIR).unwrap();
}

// ===== what promtool is told =====

/// The head of a test whose series have a sample a minute.
fn entry() -> String {
    "- interval: 1m\n  input_series:\n".to_owned()
}

/// That `expr` is `value`, or nothing, at that minute.
fn expect(yaml: &mut String, expr: &str, minute: u64, value: Option<u64>) {
    let expr = expr.replace('\'', "''");
    writeln!(yaml, "  - expr: '{expr}'\n    eval_time: {minute}m").unwrap();
    match value {
        Some(value) => {
            writeln!(
                yaml,
                "    exp_samples: [{{labels: '{{}}', value: {value}}}]"
            )
            .unwrap();
        }
        None => yaml.push_str("    exp_samples: []\n"),
    }
}

/// Lets promtool evaluate the rules every so many minutes.
fn test_rules(name: &str, every: u64, tests: &str) -> Result<String, String> {
    let dir = scratch(name);
    let rules = Path::new(DIR).join("rules.yml");
    let head = format!(
        "rule_files: ['{}']\nevaluation_interval: {every}m\ntests:\n",
        rules.display()
    );
    std::fs::write(dir.join("tests.yml"), head + tests).unwrap();
    promtool(&["test", "rules", "tests.yml"], dir)
}
