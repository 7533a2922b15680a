//! A `prometheus_client` registry, read into the model.
//!
//! That crate writes OpenMetrics text and nothing else that every scraper reads. Its own output is a small, regular
//! language, so reading it back is short, and what users register is then served in every format.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use super::family::{Exemplar, Families, Histogram, Kind, Value};
use super::label::Labels;

/// Adds everything in `registry` to `families`. A collector of the user's that fails ends the list where it failed.
pub(crate) fn registry(registry: &Registry, families: &mut Families) {
    let mut text = String::new();
    // Whatever was written before a collector failed is whole lines but for the last.
    let failed = encode_registry(&mut text, registry).is_err();
    let whole = match text.rfind('\n') {
        Some(end) if failed => &text[..=end],
        _ => &text,
    };
    let mut reader = Reader::default();
    for line in whole.lines() {
        reader.line(line, families);
    }
    reader.finish(families);
}

#[derive(Default)]
struct Reader {
    name: String,
    help: String,
    kind: Option<Kind>,
    /// The histogram whose lines are passing.
    open: Option<(Labels, Histogram)>,
}

impl Reader {
    fn line(&mut self, line: &str, families: &mut Families) {
        if let Some(comment) = line.strip_prefix("# ") {
            let (word, rest) = comment.split_once(' ').unwrap_or((comment, ""));
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            match word {
                "HELP" => {
                    self.finish(families);
                    self.name = name.to_owned();
                    // That crate writes the text of a HELP line as it is.
                    self.help = rest.to_owned();
                    self.kind = None;
                }
                "TYPE" => self.kind = Some(Kind::from_openmetrics(rest)),
                _ => {}
            }
        } else {
            // A line of another shape is not of that crate's making; it is left out.
            let _ = self.sample(line, families);
        }
    }

    fn sample(&mut self, line: &str, families: &mut Families) -> Option<()> {
        let kind = self.kind?;
        let suffix_at = line.strip_prefix(self.name.as_str())?;
        let split = suffix_at.find(['{', ' '])?;
        let (suffix, rest) = suffix_at.split_at(split);
        let (mut labels, rest) = parse_labels(rest)?;
        let (value, rest) = rest
            .trim_start()
            .split_once(' ')
            .unwrap_or((rest.trim_start(), ""));
        let value = parse_value(value)?;
        let exemplar = rest.strip_prefix("# ").and_then(parse_exemplar);

        if kind == Kind::Histogram {
            let bound = labels.iter().position(|(name, _)| name == "le");
            let bound = bound.and_then(|place| parse_value(&labels.remove(place).1));
            let labels = raw_labels(labels);
            if self.open.as_ref().is_some_and(|(open, _)| *open != labels) {
                self.finish(families);
            }
            let (_, histogram) = self
                .open
                .get_or_insert_with(|| (labels, Histogram::default()));
            match (suffix, bound) {
                ("_sum", _) => histogram.sum = value,
                ("_bucket", Some(bound)) => {
                    let before: u64 = histogram.counts.iter().sum();
                    histogram.counts.push((value as u64).saturating_sub(before));
                    histogram.exemplars.push(exemplar);
                    if bound.is_finite() {
                        histogram.bounds.push(bound);
                    }
                }
                _ => {}
            }
            return Some(());
        }
        let family = families.family(kind, self.name.clone(), self.help.clone());
        let value = match exemplar {
            Some(exemplar) => Value::Example(value, exemplar),
            None => Value::Float(value),
        };
        family.push(raw_labels(labels), value);
        Some(())
    }

    fn finish(&mut self, families: &mut Families) {
        if let Some((labels, mut histogram)) = self.open.take() {
            // A histogram with native buckets only says nothing here but its sum.
            histogram.counts.resize(histogram.bounds.len() + 1, 0);
            families
                .family(Kind::Histogram, self.name.clone(), self.help.clone())
                .push(labels, histogram);
        }
    }
}

type RawLabels = Vec<(String, String)>;

/// The registry's own labels: names it accepted are taken as they are, but for those no format could carry.
fn raw_labels(labels: RawLabels) -> Labels {
    let mut seen = Vec::new();
    labels
        .into_iter()
        .filter(|(name, _)| {
            let fresh = !seen.contains(name);
            seen.push(name.clone());
            let head = name.as_bytes().first();
            fresh
                && name != "le"
                && !name.starts_with("__")
                && head.is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
        .collect()
}

fn parse_labels(text: &str) -> Option<(RawLabels, &str)> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return Some((labels, text));
    };
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.strip_prefix(',').unwrap_or(rest).split_once("=\"")?;
        let mut escaped = false;
        let end = after.bytes().position(|byte| {
            let end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            end
        })?;
        labels.push((name.to_owned(), unescaped(&after[..end])));
        rest = &after[end + 1..];
    }
}

fn parse_exemplar(text: &str) -> Option<Exemplar> {
    let (labels, rest) = parse_labels(text)?;
    let mut numbers = rest.split_whitespace();
    let mut exemplar = Exemplar::new(raw_labels(labels), parse_value(numbers.next()?)?)?;
    exemplar.at = numbers
        .next()
        .and_then(|at| at.parse().ok())
        .and_then(|at| std::time::Duration::try_from_secs_f64(at).ok())
        .map(|at| std::time::UNIX_EPOCH + at);
    Some(exemplar)
}

fn parse_value(text: &str) -> Option<f64> {
    // Rust reads inf, +Inf, NaN and all else this format writes.
    text.parse().ok()
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        out.push(match char {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    out
}
