use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::family::{Kind, Value};
use super::label::Labels;
use crate::base::flow::Flow;

/// All layers of a [`Flow`] as one collector, for a registry of one's own.
///
/// `prometheus_client` takes no exemplars and no native buckets from a collector; both are in what the flow writes
/// itself ([`Flow::encode`]).
#[derive(Debug)]
pub struct FlowCollector(pub(crate) Flow);

impl Collector for FlowCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.layers().iter() {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
                Kind::Gauge | Kind::Info | Kind::Unknown => MetricType::Gauge,
            };
            // An Info goes out as a gauge, under the name its samples have.
            let name = match family.kind {
                Kind::Info => format!("{}{}", family.name, family.kind.suffix()),
                _ => family.name.to_string(),
            };
            let mut metric = encoder.encode_descriptor(&name, &family.help, None, kind)?;
            for series in &family.series {
                let mut metric = metric.encode_family(&series.labels)?;
                match (&series.value, family.kind) {
                    (Value::Histogram(histogram), _) => {
                        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
                        let buckets: Vec<_> =
                            bounds.zip(histogram.counts.iter().copied()).collect();
                        metric.encode_histogram::<NoLabelSet>(
                            histogram.sum,
                            histogram.count(),
                            &buckets,
                            None,
                        )?;
                    }
                    (Value::Whole(value), Kind::Counter) => {
                        metric.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                    (value, Kind::Counter) => {
                        metric.encode_counter::<NoLabelSet, _, u64>(&value.as_f64(), None)?;
                    }
                    (value, _) => metric.encode_gauge(&value.as_f64())?,
                }
            }
        }
        Ok(())
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for label in self.iter() {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
