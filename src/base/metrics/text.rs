//! The text formats, and which one a scraper gets.

use std::fmt::{self, Display, Formatter, Write};
use std::time::UNIX_EPOCH;

use super::family::{Exemplar, Families, Family, Histogram, Kind, Value};
use super::label::Labels;

/// A format metrics are served in.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`: what every scraper reads.
    Classic,
    /// `application/openmetrics-text; version=1.0.0`: with exemplars.
    OpenMetrics,
    /// Delimited `io.prometheus.client.MetricFamily` messages: with exemplars and native histograms.
    #[cfg(feature = "protobuf")]
    Protobuf,
}

// ===== impl Format =====

impl Format {
    /// The format a scraper likes best of those this crate writes, by its `Accept` header; classic text when it does
    /// not say, or says something unreadable.
    ///
    /// ```
    /// use tower_flow::metrics::Format;
    ///
    /// let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
    /// assert_eq!(Format::negotiate(accept), Format::OpenMetrics);
    /// assert_eq!(Format::negotiate("*/*"), Format::Classic);
    /// ```
    pub fn negotiate(accept: &str) -> Self {
        let mut best = (0.0, Self::Classic);
        for offer in accept.split(',') {
            let mut parts = offer.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let get = |name: &str| {
                let mut found = parameters
                    .iter()
                    .filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
                found
                    .next()
                    .map(|(_, value)| value.trim().trim_matches('"'))
            };
            let format = match media.to_ascii_lowercase().as_str() {
                "application/openmetrics-text"
                    if matches!(get("version"), None | Some("1.0.0" | "0.0.1")) =>
                {
                    Self::OpenMetrics
                }
                "text/plain" if matches!(get("version"), None | Some("0.0.4")) => Self::Classic,
                "text/*" | "*/*" => Self::Classic,
                #[cfg(feature = "protobuf")]
                "application/vnd.google.protobuf"
                    if get("proto") == Some("io.prometheus.client.MetricFamily")
                        && get("encoding") == Some("delimited") =>
                {
                    Self::Protobuf
                }
                _ => continue,
            };
            let weight: f64 = get("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
            // Of two liked equally the first offered wins.
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    /// The `Content-Type` to serve it with.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            #[cfg(feature = "protobuf")]
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// Writes `families` in this format.
    pub fn encode(self, families: &Families) -> Vec<u8> {
        match self {
            Self::Classic => Text::Classic.encode(families).into_bytes(),
            Self::OpenMetrics => Text::OpenMetrics.encode(families).into_bytes(),
            #[cfg(feature = "protobuf")]
            Self::Protobuf => super::protobuf::encode(families),
        }
    }
}

/// The two text formats; what sets them apart is asked of this one value.
#[derive(Clone, Copy, PartialEq)]
enum Text {
    Classic,
    OpenMetrics,
}

// ===== impl Text =====

impl Text {
    fn encode(self, families: &Families) -> String {
        let mut out = String::with_capacity(4096);
        for family in families.iter() {
            self.family(&mut out, family)
                .expect("a String takes all that is written");
        }
        if self == Self::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }

    fn family(self, out: &mut String, family: &Family) -> fmt::Result {
        let suffix = family.kind.suffix();
        let (described, kind) = match (self, family.kind) {
            (Self::OpenMetrics, kind) => ("", kind.as_openmetrics()),
            (Self::Classic, Kind::Info) => (suffix, "gauge"),
            (Self::Classic, Kind::Unknown) => ("", "untyped"),
            (Self::Classic, kind) => (suffix, kind.as_openmetrics()),
        };
        let name = &*family.name;
        let help = Escaped(&family.help, self == Self::OpenMetrics);
        writeln!(out, "# HELP {name}{described} {help}")?;
        writeln!(out, "# TYPE {name}{described} {kind}")?;
        for series in &family.series {
            let labels = &series.labels;
            match &series.value {
                Value::Histogram(histogram) => self.histogram(out, name, labels, histogram)?,
                Value::Whole(value) => {
                    writeln!(out, "{name}{suffix}{} {value}", Set(labels, None))?
                }
                Value::Float(value) => {
                    writeln!(out, "{name}{suffix}{} {}", Set(labels, None), Float(*value))?
                }
                Value::Example(value, exemplar) => {
                    write!(out, "{name}{suffix}{} {}", Set(labels, None), Float(*value))?;
                    self.exemplar(out, Some(exemplar))?;
                }
            }
        }
        Ok(())
    }

    fn histogram(
        self,
        out: &mut String,
        name: &str,
        labels: &Labels,
        histogram: &Histogram,
    ) -> fmt::Result {
        for (index, (bound, count)) in histogram.cumulative().enumerate() {
            let bound = self.bound(bound);
            write!(out, "{name}_bucket{} {count}", Set(labels, Some(&bound)))?;
            self.exemplar(out, histogram.exemplars.get(index).and_then(Option::as_ref))?;
        }
        let labels = Set(labels, None);
        writeln!(out, "{name}_sum{labels} {}", Float(histogram.sum))?;
        writeln!(out, "{name}_count{labels} {}", histogram.count())
    }

    fn exemplar(self, out: &mut String, exemplar: Option<&Exemplar>) -> fmt::Result {
        if let (Self::OpenMetrics, Some(exemplar)) = (self, exemplar) {
            // An empty set is written too: the braces are not optional here.
            let labels = if exemplar.labels.is_empty() {
                "{}"
            } else {
                Default::default()
            };
            write!(
                out,
                " # {labels}{} {}",
                Set(&exemplar.labels, None),
                Float(exemplar.value)
            )?;
            if let Some(since) = exemplar
                .at
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            {
                write!(out, " {}.{:03}", since.as_secs(), since.subsec_millis())?;
            }
        }
        writeln!(out)
    }

    /// OpenMetrics wants its bounds as floats that show it; classic scrapers know them without.
    fn bound(self, bound: f64) -> String {
        let shown = Float(bound).to_string();
        if self == Self::OpenMetrics && bound.is_finite() && !shown.contains(['.', 'e']) {
            shown + ".0"
        } else {
            shown
        }
    }
}

/// A label set in braces; nothing at all when it is empty.
struct Set<'a>(&'a Labels, Option<&'a str>);

impl Display for Set<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bound = self.1.map(|bound| ("le", bound));
        let mut before = '{';
        for (name, value) in self.0.iter().chain(bound) {
            write!(f, "{before}{name}=\"{}\"", Escaped(value, true))?;
            before = ',';
        }
        if before == ',' {
            f.write_str("}")
        } else {
            Ok(())
        }
    }
}

/// Text with backslash and newline escaped, and quotes where the flag says so.
struct Escaped<'a>(&'a str, bool);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(place) = rest.find(['\\', '\n', '"']) {
            f.write_str(&rest[..place])?;
            f.write_str(match rest.as_bytes()[place] {
                b'\\' => "\\\\",
                b'\n' => "\\n",
                _ if self.1 => "\\\"",
                _ => "\"",
            })?;
            rest = &rest[place + 1..];
        }
        f.write_str(rest)
    }
}

/// A number as Prometheus spells it.
struct Float(f64);

impl Display for Float {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == f64::INFINITY {
            f.write_str("+Inf")
        } else if self.0 == f64::NEG_INFINITY {
            f.write_str("-Inf")
        } else {
            write!(f, "{}", self.0)
        }
    }
}
