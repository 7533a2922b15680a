//! The dashboard by itself: whole, and with something to show in every panel.

use std::collections::BTreeSet;

use serde_json::Value;

use super::exported::{everything, in_time};
use super::series::Course;
use super::{entry, expect, file, rules, test_rules};
use crate::support::found;

pub fn dashboard() -> Value {
    serde_json::from_str(&file("dashboard.json")).unwrap()
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().unwrap()
}

/// All expressions and legends of the dashboard, variables filled in as Grafana would.
pub fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let targets = panels(dashboard)
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let filled = |query: &Value| {
        let expr = query["expr"].as_str().unwrap();
        let expr = expr
            .replace("$__rate_interval", "5m")
            .replace("$job", ".+")
            .replace("$instance", ".+");
        assert!(!expr.contains('$'), "{expr}");
        let legend = query["legendFormat"].as_str().unwrap_or_default();
        (expr, legend.to_owned())
    };
    targets.chain(annotations).map(filled).collect()
}

/// Grafana's names for what is measured here.
const UNITS: [&str; 8] = [
    "Bps",
    "cps",
    "mps",
    "ops",
    "percentunit",
    "reqps",
    "s",
    "short",
];

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard.get("id").is_none_or(Value::is_null));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: Vec<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "service", "job", "instance"]);

    let mut ids = BTreeSet::new();
    let mut rows = Vec::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty(), "{panel}");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let grid = ["x", "y", "w", "h"].map(|at| panel["gridPos"][at].as_u64().unwrap());
        let [x, y, w, h] = grid;
        assert!(w > 0 && h > 0 && x + w <= 24, "{title}: {grid:?}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies on another at {cell:?}");
        }
        if panel["type"] == "row" {
            rows.push((y, title));
            continue;
        }
        let said = panel["description"].as_str().unwrap();
        assert!(said.ends_with('.') && said.len() > 10, "{title}: {said:?}");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        assert!(UNITS.contains(&unit), "{title} is in {unit:?}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for source in targets.iter().chain([panel]).map(|one| &one["datasource"]) {
            assert_eq!(source["uid"], "${datasource}", "{title}");
        }
        for target in targets {
            let needs = panel["type"] == "timeseries" || panel["type"] == "heatmap";
            let legend = target["legendFormat"].as_str().unwrap();
            assert!(!needs || !legend.is_empty(), "{title}");
        }
    }
    assert!(rows.is_sorted(), "rows stand where they are listed");
    for kind in everything().1 {
        let found = rows.iter().any(|(_, title)| *title == kind);
        assert!(found, "no row for the layer {kind} among {rows:?}");
    }
}

#[test]
fn every_panel_and_every_rule_has_something_to_say() {
    if !found("promtool") {
        return;
    }
    let rules = rules::read(&file("rules.yml"));
    let recorded = rules.iter().filter(|rule| !rule.alerts);
    let mut exprs: Vec<_> = queries(&dashboard())
        .into_iter()
        .map(|(expr, _)| expr)
        .collect();
    exprs.extend(recorded.map(|rule| rule.name.clone()));
    // That of annotations: it shows what fires, and nothing does.
    exprs.retain(|expr| !expr.starts_with("ALERTS"));
    let mut yaml = entry();
    for series in in_time() {
        let by = f64::from(u8::from(series.is_counter()));
        let course = if by > 0.0 {
            Course::Grows(by)
        } else {
            Course::Is(series.value)
        };
        yaml += &series.yaml("seen", &[(course, 20)]);
    }
    yaml += "  promql_expr_test:\n";
    for expr in exprs {
        // Which of them fails is told by what promtool prints.
        expect(
            &mut yaml,
            &format!("(count({expr}) > bool 0) == 1"),
            15,
            Some(1),
        );
    }
    test_rules("panels", 1, &yaml).unwrap_or_else(|said| panic!("{said}"));
}
