//! The protobuf exposition: delimited `io.prometheus.client.MetricFamily` messages.
//!
//! Numbers are those of the public `metrics.proto`.

use std::time::UNIX_EPOCH;

use super::family::{Exemplar, Families, Family, Histogram, Kind, Native, Value};
use super::label::Labels;
use crate::base::protobuf::{Message, varint, zigzag};

pub(super) fn encode(families: &Families) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families.iter() {
        let message = Message::default().family(family);
        let message = message.into_bytes();
        varint(&mut out, message.len() as u64);
        out.extend(message);
    }
    out
}

impl Message {
    fn family(self, family: &Family) -> Self {
        let suffix = family.kind.suffix();
        let kind = match family.kind {
            Kind::Counter => 0,
            Kind::Gauge | Kind::Info => 1,
            Kind::Unknown => 3,
            Kind::Histogram => 4,
        };
        let message = self
            .text(1, &format!("{}{suffix}", family.name))
            .text(2, &family.help)
            .whole(3, kind);
        family.series.iter().fold(message, |message, series| {
            let metric = Self::default().labels(&series.labels);
            let metric = match (&series.value, family.kind) {
                (Value::Histogram(histogram), _) => {
                    metric.nested(7, Self::default().histogram(histogram))
                }
                (Value::Example(value, exemplar), Kind::Counter) => {
                    let exemplar = Self::default().exemplar(exemplar);
                    metric.nested(3, Self::default().double(1, *value).nested(2, exemplar))
                }
                (value, Kind::Counter) => {
                    metric.nested(3, Self::default().double(1, value.as_f64()))
                }
                (value, Kind::Unknown) => {
                    metric.nested(5, Self::default().double(1, value.as_f64()))
                }
                (value, _) => metric.nested(2, Self::default().double(1, value.as_f64())),
            };
            message.nested(4, metric)
        })
    }

    fn labels(self, labels: &Labels) -> Self {
        labels.iter().fold(self, |message, (name, value)| {
            message.nested(1, Self::default().text(1, name).text(2, value))
        })
    }

    fn histogram(self, histogram: &Histogram) -> Self {
        // Both kinds of buckets share one count, and a scraper takes offence where the native ones do not add up to it.
        let count = histogram
            .native
            .as_ref()
            .map_or(histogram.count(), Native::count);
        let message = self.whole(1, count).double(2, histogram.sum);
        let message = histogram
            .cumulative()
            // +Inf is the count, which the message has.
            .take(histogram.bounds.len())
            .enumerate()
            .fold(message, |message, (index, (bound, count))| {
                let bucket = Self::default().whole(1, count).double(2, bound);
                let bucket = match histogram.exemplars.get(index).and_then(Option::as_ref) {
                    Some(exemplar) => bucket.nested(3, Self::default().exemplar(exemplar)),
                    None => bucket,
                };
                message.nested(3, bucket)
            });
        match &histogram.native {
            Some(native) => message.native(native),
            None => message,
        }
    }

    fn native(self, native: &Native) -> Self {
        /// 2^-25 s, the end of the fine histogram's first bucket.
        const ZERO_THRESHOLD: f64 = 1.0 / (1 << 25) as f64;
        let mut message = self
            .signed(5, i64::from(native.schema))
            .double(6, ZERO_THRESHOLD)
            .whole(7, native.zero);
        // A span is a run of neighbouring buckets: how far it lies behind the last one, and how long it is.
        let mut spans: Vec<(i64, u64)> = Vec::new();
        let mut next = None;
        for (index, _) in &native.buckets {
            let index = i64::from(*index);
            match (next, spans.last_mut()) {
                (Some(next), Some(span)) if next == index => span.1 += 1,
                (next, _) => spans.push((index - next.unwrap_or(0), 1)),
            }
            next = Some(index + 1);
        }
        if spans.is_empty() {
            // Without any span a scraper would take the histogram for a classic one.
            spans.push((0, 0));
        }
        for (offset, length) in spans {
            message = message.nested(12, Self::default().signed(1, offset).whole(2, length));
        }
        let mut deltas = Vec::new();
        let mut before = 0;
        for (_, count) in &native.buckets {
            varint(&mut deltas, zigzag(*count as i64 - before));
            before = *count as i64;
        }
        message.bytes(13, &deltas)
    }

    fn exemplar(self, exemplar: &Exemplar) -> Self {
        let message = self.labels(&exemplar.labels).double(2, exemplar.value);
        match exemplar
            .at
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        {
            Some(since) => {
                let stamp = Self::default()
                    .whole(1, since.as_secs())
                    .whole(2, u64::from(since.subsec_nanos()));
                message.nested(3, stamp)
            }
            None => message,
        }
    }
}
