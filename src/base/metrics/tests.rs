use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family as ClientFamily;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram as ClientHistogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use proptest::prelude::*;

use super::*;
use crate::Flow;
use crate::stats::{Bounds, Exponential};

fn text(format: Format, families: &Families) -> String {
    String::from_utf8(format.encode(families)).unwrap()
}

fn sample() -> Families {
    let mut families = Families::new();
    let hostile = Labels::new().with("path", "a\"b\\c\nd");
    families
        .family(Kind::Counter, "calls", "Calls, \"all\" of\nthem")
        .push(hostile, 7u64);
    families
        .family(Kind::Gauge, "busy", "Busy")
        .push(Labels::new(), -1.5);
    let mut histogram = Histogram::new(&Bounds::seconds([0.5, 1.0]), vec![1, 0, 2], 9.25);
    let trace = Exemplar::new(Labels::new().with("trace_id", "abc"), 0.25).unwrap();
    histogram.exemplars = vec![Some(Exemplar { at: None, ..trace }), None, None];
    families
        .family(Kind::Histogram, "took_seconds", "Took")
        .push(Labels::new(), histogram);
    families
        .family(Kind::Info, "build", "Build")
        .push(Labels::new().with("v", "1"), 1u64);
    families
}

#[test]
fn classic_text_is_as_scrapers_know_it() {
    let expected = r#"# HELP calls_total Calls, "all" of\nthem
# TYPE calls_total counter
calls_total{path="a\"b\\c\nd"} 7
# HELP busy Busy
# TYPE busy gauge
busy -1.5
# HELP took_seconds Took
# TYPE took_seconds histogram
took_seconds_bucket{le="0.5"} 1
took_seconds_bucket{le="1"} 1
took_seconds_bucket{le="+Inf"} 3
took_seconds_sum 9.25
took_seconds_count 3
# HELP build_info Build
# TYPE build_info gauge
build_info{v="1"} 1
"#;
    assert_eq!(text(Format::Classic, &sample()), expected);
}

#[test]
fn openmetrics_text_differs_where_it_must() {
    let expected = r#"# HELP calls Calls, \"all\" of\nthem
# TYPE calls counter
calls_total{path="a\"b\\c\nd"} 7
# HELP busy Busy
# TYPE busy gauge
busy -1.5
# HELP took_seconds Took
# TYPE took_seconds histogram
took_seconds_bucket{le="0.5"} 1 # {trace_id="abc"} 0.25
took_seconds_bucket{le="1.0"} 1
took_seconds_bucket{le="+Inf"} 3
took_seconds_sum 9.25
took_seconds_count 3
# HELP build Build
# TYPE build info
build_info{v="1"} 1
# EOF
"#;
    assert_eq!(text(Format::OpenMetrics, &sample()), expected);
}

#[test]
fn the_scraper_gets_what_it_likes_best() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                      application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::negotiate(prometheus), Format::OpenMetrics);
    for accept in [
        "",
        "*/*",
        "text/plain",
        "text/html, */*;q=0.8",
        "garbage;;;q=,",
        "text/plain;version=\"0.0.4\"",
    ] {
        assert_eq!(Format::negotiate(accept), Format::Classic, "{accept}");
    }
    assert_eq!(
        Format::negotiate("application/openmetrics-text; version=9.0"),
        Format::Classic
    );
    assert_eq!(
        Format::negotiate("application/openmetrics-text;q=0, text/plain;q=0.1"),
        Format::Classic
    );
    #[cfg(feature = "protobuf")]
    {
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        assert_eq!(
            Format::negotiate(&format!("{native},{prometheus}")),
            Format::Protobuf
        );
        assert_eq!(
            Format::negotiate("application/vnd.google.protobuf"),
            Format::Classic
        );
    }
}

#[test]
fn equal_series_of_two_layers_are_added_up() {
    let mut families = Families::new();
    for _ in 0..2 {
        let label = || Labels::new().with("a", "b");
        families
            .family(Kind::Counter, "calls", "Calls")
            .push(label(), 3u64);
        let fine = Exponential::new();
        fine.record(Duration::from_millis(300));
        let histogram = Histogram::new(&Bounds::seconds([1.0]), vec![1, 0], 0.3);
        let histogram = histogram.with_native(&fine.counts(), 3);
        families
            .family(Kind::Histogram, "took", "Took")
            .push(label(), histogram);
    }
    let families = families.merged();
    assert_eq!(families.get("calls").unwrap().series.len(), 1);
    assert_eq!(families.get("calls").unwrap().series[0].value.as_f64(), 6.0);
    let Value::Histogram(histogram) = &families.get("took").unwrap().series[0].value else {
        panic!()
    };
    assert_eq!((histogram.count(), &*histogram.counts), (2, &[2, 0][..]));
    assert_eq!(histogram.native.as_ref().unwrap().buckets, [(-13, 2)]);
}

fn busy_registry() -> Registry {
    let mut registry = Registry::with_prefix("app");
    let counter = ClientFamily::<Vec<(String, String)>, Counter>::default();
    counter
        .get_or_create(&vec![("who".into(), "a\"\\\n,}={".into())])
        .inc_by(3);
    counter
        .get_or_create(&vec![("who".into(), "b".into())])
        .inc();
    registry.register("hits", "Hits", counter);
    let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    gauge.set(f64::NEG_INFINITY);
    registry.register("level", "Level of a thing", gauge);
    let histogram = ClientHistogram::new([0.1, 1.0]);
    [0.05, 0.5, 0.6, 7.0]
        .into_iter()
        .for_each(|value| histogram.observe(value));
    registry.register_with_unit("wait", "Wait", Unit::Seconds, histogram);
    let traced = HistogramWithExemplars::new([1.0].into_iter());
    traced.observe(
        0.5,
        Some(vec![("trace_id".to_owned(), "t1".to_owned())]),
        None,
    );
    registry.register("traced", "Traced", traced);
    registry.register(
        "build",
        "Build",
        Info::new(vec![("v".to_owned(), "9".to_owned())]),
    );
    registry.register("fixed", "Fixed", ConstCounter::new(1.5));
    registry
}

#[test]
fn a_registry_survives_the_way_through_the_model() {
    let registry = busy_registry();
    let mut families = Families::new();
    import::registry(&registry, &mut families);
    let ours = text(Format::OpenMetrics, &families);
    let mut theirs = String::new();
    encode(&mut theirs, &registry).unwrap();
    // Their UNIT lines are left out, their whole numbers are floats of ours.
    let normal = |text: &str| {
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("# UNIT"))
            .map(|line| line.replace(".0 ", " ").trim_end_matches(".0").to_owned())
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(
        normal(&ours),
        normal(&theirs)
            .iter()
            .map(|l| l.replace("-inf", "-Inf"))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_flow_serves_its_own_registry_and_fits_into_another() {
    let flow = Flow::new("orders");
    let refunds = Counter::<u64>::default();
    refunds.inc_by(4);
    flow.register(|registry| registry.register("refunds", "Refunds", refunds));
    let classic = String::from_utf8(flow.encode(Format::Classic)).unwrap();
    assert!(
        classic.contains("# TYPE refunds_total counter\nrefunds_total 4\n"),
        "{classic}"
    );
    assert!(
        classic.contains("tower_flow_info{service=\"orders\",version="),
        "{classic}"
    );

    let mut registry = Registry::default();
    registry.register_collector(Box::new(flow.collector()));
    let mut theirs = String::new();
    encode(&mut theirs, &registry).unwrap();
    assert!(theirs.contains("orders"), "{theirs}");
}

#[test]
fn a_failing_collector_does_not_take_the_rest_along() {
    #[derive(Debug)]
    struct Broken;
    impl prometheus_client::collector::Collector for Broken {
        fn encode(
            &self,
            _: prometheus_client::encoding::DescriptorEncoder<'_>,
        ) -> Result<(), std::fmt::Error> {
            Err(std::fmt::Error)
        }
    }
    let flow = Flow::new("orders");
    flow.register(|registry| {
        registry.register("fine", "Fine", Gauge::<i64>::default());
        registry.register_collector(Box::new(Broken));
    });
    let classic = String::from_utf8(flow.encode(Format::Classic)).unwrap();
    assert!(classic.contains("\nfine 0\n"), "{classic}");
}

proptest! {
    #[test]
    fn no_label_text_breaks_a_line(value in "\\PC*|[\"\\\\\n{}=, ]*") {
        let mut families = Families::new();
        families.family(Kind::Gauge, "x", value.clone()).push(Labels::new().with("v", value.clone()), 1u64);
        for format in [Format::Classic, Format::OpenMetrics] {
            let text = text(format, &families);
            let lines = text.split('\n').count();
            prop_assert_eq!(lines, if format == Format::Classic { 4 } else { 5 }, "{}", text);
        }
    }

    #[test]
    fn accept_headers_never_panic(accept in "\\PC{0,80}") {
        Format::negotiate(&accept);
    }
}
