//! What was scraped, and what promtool is told that Prometheus would have stored of it.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A series as a scrape showed it.
#[derive(Debug, Clone)]
pub struct Series {
    pub metric: String,
    /// With their values as they were written, escapes and all.
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// How a series goes on: so much a minute for a counter, a value for a gauge, or away.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Course {
    Grows(f64),
    Is(f64),
    Gone,
}

impl Series {
    pub fn is_counter(&self) -> bool {
        let ends = ["_total", "_bucket", "_sum", "_count"];
        ends.iter().any(|end| self.metric.ends_with(end))
    }

    pub fn has(&self, metric: &str, labels: &[(&str, &str)]) -> bool {
        let has = |(name, value): &(&str, &str)| {
            self.labels.get(*name).is_some_and(|found| found == value)
        };
        self.metric == metric && labels.iter().all(has)
    }

    /// The upper bound of a bucket.
    pub fn bound(&self) -> f64 {
        self.labels["le"].replace('+', "").parse().unwrap()
    }

    /// The series of `job` that takes each course for so many minutes.
    pub fn yaml(&self, job: &str, courses: &[(Course, u64)]) -> String {
        let mut values = String::new();
        let mut last = self.value;
        for (course, minutes) in courses {
            let more = minutes - 1;
            match course {
                Course::Grows(by) => {
                    write!(values, "{}+{by}x{more} ", last + by).unwrap();
                    last += by * *minutes as f64;
                }
                Course::Is(value) => write!(values, "{value}x{more} ").unwrap(),
                Course::Gone => write!(values, "_x{minutes} ").unwrap(),
            }
        }
        let mut labels = format!("job=\"{job}\",instance=\"i\"");
        for (name, value) in &self.labels {
            write!(labels, ",{name}=\"{value}\"").unwrap();
        }
        let name = format!("{}{{{labels}}}", self.metric).replace('\'', "''");
        format!(
            "  - series: '{name}'\n    values: '{}'\n",
            values.trim_end()
        )
    }
}

/// Reads a classic exposition.
pub fn scraped(text: &str) -> Vec<Series> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let read = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let (metric, labels) = name.split_once('{').unwrap_or((name, "}"));
        Series {
            metric: metric.to_owned(),
            labels: pairs(labels.strip_suffix('}').unwrap()),
            value: value.replace('+', "").parse().unwrap(),
        }
    };
    lines.map(read).collect()
}

fn pairs(mut text: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut escaped = false;
        let ends = |c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        };
        let end = rest.find(ends).unwrap();
        pairs.insert(name.to_owned(), rest[..end].to_owned());
        text = rest[end + 1..].trim_start_matches(',');
    }
    pairs
}
