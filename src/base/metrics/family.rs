use std::borrow::Cow;
use std::collections::HashMap;
use std::time::SystemTime;

use super::label::Labels;
use crate::base::stats::{Bounds, Counts};

/// All families of one scrape, in the order they were first named.
///
/// Layers of one kind share their names; what they say is put together, and series with equal labels are added up:
/// two servers in one process are one `grpc_server_started_total`.
#[derive(Debug, Default)]
pub struct Families {
    list: Vec<Family>,
    places: HashMap<Cow<'static, str>, usize>,
}

/// A metric with all its series.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Family {
    /// Without the `_total` of counters.
    pub name: Cow<'static, str>,
    /// One sentence, without a full stop where other clients have none.
    pub help: Cow<'static, str>,
    /// What its values mean.
    pub kind: Kind,
    /// Its series, each with labels of its own.
    pub series: Vec<Series>,
    /// Of equal series the greatest counts, not the sum.
    greatest: bool,
}

/// What the values of a family mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the field's own.
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
    Unknown,
}

/// One series: labels and a value.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Series {
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: Value,
}

/// The value of a series.
#[derive(Debug, Clone)]
pub enum Value {
    /// A whole number, printed without a fraction.
    Whole(u64),
    /// Any number.
    Float(f64),
    /// A counter's value with an example.
    Example(f64, Exemplar),
    /// The value of a histogram.
    Histogram(Histogram),
}

/// The value of a histogram: buckets that are not cumulative, and so always add up to the count.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Histogram {
    /// The upper bounds, `+Inf` left out.
    pub bounds: Vec<f64>,
    /// One count more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
    /// An example for each bucket that has one.
    pub exemplars: Vec<Option<Exemplar>>,
    /// The same values in fine buckets, for the formats that carry them.
    pub native: Option<Native>,
}

/// Native buckets: powers of 2^(2^-schema).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Native {
    /// How fine they are, 0 to 5 here.
    pub schema: i32,
    /// Values too small for any bucket.
    pub zero: u64,
    /// Index and count of every bucket that holds something, by rising index.
    pub buckets: Vec<(i32, u64)>,
}

/// An example of a value: a trace to look at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exemplar {
    /// Usually one, `trace_id`. Together at most 128 characters, or OpenMetrics forbids it.
    pub labels: Labels,
    /// The value it is an example of.
    pub value: f64,
    /// When it was seen.
    pub at: Option<SystemTime>,
}

// ===== impl Families =====

impl Families {
    /// No families.
    pub fn new() -> Self {
        Self::default()
    }

    /// The family of this name, made when it is not there. Counters are named without `_total`.
    pub fn family(
        &mut self,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
    ) -> &mut Family {
        let name = name.into();
        let place = *self.places.entry(name.clone()).or_insert_with(|| {
            self.list.push(Family {
                name,
                help: help.into(),
                kind,
                series: Vec::new(),
                greatest: false,
            });
            self.list.len() - 1
        });
        &mut self.list[place]
    }

    /// The families, each with no two series alike.
    pub fn iter(&self) -> impl Iterator<Item = &Family> {
        self.list.iter()
    }

    /// The family of this name.
    pub fn get(&self, name: &str) -> Option<&Family> {
        self.places.get(name).map(|place| &self.list[*place])
    }

    /// Adds all series of `others`.
    pub(crate) fn append(&mut self, others: Self) {
        for other in others.list {
            let family = self.family(other.kind, other.name, other.help);
            family.greatest |= other.greatest;
            family.series.extend(other.series);
        }
    }

    /// Puts series with equal labels together: adds them up, or takes the [greatest](Family::greatest). Families and
    /// histograms that do not fit together keep what came first.
    #[must_use]
    pub fn merged(mut self) -> Self {
        for family in &mut self.list {
            let mut places: HashMap<Labels, usize> = HashMap::with_capacity(family.series.len());
            let mut merged: Vec<Series> = Vec::with_capacity(family.series.len());
            for series in family.series.drain(..) {
                match places.get(&series.labels) {
                    Some(place) if family.greatest => merged[*place].value.raise(series.value),
                    Some(place) => merged[*place].value.add(series.value),
                    None => {
                        places.insert(series.labels.clone(), merged.len());
                        merged.push(series);
                    }
                }
            }
            family.series = merged;
        }
        self
    }
}

// ===== impl Family =====

impl Family {
    /// Of series with equal labels takes the greatest instead of the sum: for what cannot be added, such as quantiles.
    pub fn greatest(&mut self) -> &mut Self {
        self.greatest = true;
        self
    }

    /// Adds a series.
    pub fn push(&mut self, labels: Labels, value: impl Into<Value>) {
        self.series.push(Series {
            labels,
            value: value.into(),
        });
    }
}

// ===== impl Kind =====

impl Kind {
    pub(super) fn as_openmetrics(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn from_openmetrics(text: &str) -> Self {
        match text {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "info" => Self::Info,
            _ => Self::Unknown,
        }
    }

    /// What the samples of such a family end in, where that is always the same.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram | Self::Unknown => "",
        }
    }
}

// ===== impl Value =====

impl Value {
    /// The value as a number; the count of a histogram.
    pub fn as_f64(&self) -> f64 {
        match self {
            Self::Whole(value) => *value as f64,
            Self::Float(value) | Self::Example(value, _) => *value,
            Self::Histogram(histogram) => histogram.count() as f64,
        }
    }

    fn raise(&mut self, other: Self) {
        if other.as_f64() > self.as_f64() {
            *self = other;
        }
    }

    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Histogram(sum), Self::Histogram(other)) => sum.add(other),
            (Self::Whole(sum), Self::Whole(other)) => *sum += other,
            (Self::Histogram(_), _) | (_, Self::Histogram(_)) => {}
            (sum, other) => *sum = Self::Float(sum.as_f64() + other.as_f64()),
        }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<Histogram> for Value {
    fn from(value: Histogram) -> Self {
        Self::Histogram(value)
    }
}

// ===== impl Histogram =====

impl Histogram {
    /// A histogram over `bounds`. `counts` are the buckets' own, not cumulative, the one of `+Inf` included.
    ///
    /// # Panics
    ///
    /// When there are not as many counts as buckets.
    pub fn new(bounds: &Bounds, counts: Vec<u64>, sum: f64) -> Self {
        assert_eq!(counts.len(), bounds.buckets(), "one count for each bucket");
        Self {
            bounds: bounds.as_slice().to_vec(),
            counts,
            sum,
            ..Self::default()
        }
    }

    /// Adds fine buckets of the same values.
    #[must_use]
    pub fn with_native(mut self, fine: &Counts, schema: i32) -> Self {
        let (zero, buckets) = fine.native(schema);
        self.native = Some(Native {
            schema,
            zero,
            buckets,
        });
        self
    }

    /// How many values: what its buckets add up to.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Bounds with cumulative counts, `+Inf` last.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut sum = 0;
        bounds.zip(&self.counts).map(move |(bound, count)| {
            sum += count;
            (bound, sum)
        })
    }

    fn add(&mut self, other: Self) {
        if self.bounds != other.bounds {
            return;
        }
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        self.sum += other.sum;
        if self.exemplars.is_empty() {
            self.exemplars = other.exemplars;
        }
        match (&mut self.native, other.native) {
            (Some(sum), Some(other)) if sum.schema == other.schema => sum.add(other),
            (native, _) => *native = None,
        }
    }
}

// ===== impl Native =====

impl Native {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.zero + self.buckets.iter().map(|(_, count)| count).sum::<u64>()
    }

    fn add(&mut self, other: Self) {
        self.zero += other.zero;
        for (index, count) in other.buckets {
            match self.buckets.binary_search_by_key(&index, |bucket| bucket.0) {
                Ok(place) => self.buckets[place].1 += count,
                Err(place) => self.buckets.insert(place, (index, count)),
            }
        }
    }
}

// ===== impl Exemplar =====

impl Exemplar {
    /// An example of `value`, seen now. `None` when its labels are longer than the 128 characters OpenMetrics allows.
    pub fn new(labels: Labels, value: f64) -> Option<Self> {
        let length: usize = labels
            .iter()
            .map(|(name, value)| name.chars().count() + value.chars().count())
            .sum();
        (length <= 128).then(|| Self {
            labels,
            value,
            at: Some(crate::base::clock::wall()),
        })
    }
}
