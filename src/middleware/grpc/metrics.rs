use std::time::Duration;

use super::method::{Direction, Ended, Method, PerStatus};
use super::state::{Side, State};
use crate::base::metrics::{Families, Histogram, Kind, Labels};
use crate::base::outcome::Code;

pub(super) fn collect(state: &State, families: &mut Families) {
    let metrics = Metrics {
        state,
        side: state.options.side,
    };
    let methods = state.all();
    if state.options.go {
        methods
            .iter()
            .for_each(|method| metrics.go(method, families));
    }
    if state.options.otel {
        methods
            .iter()
            .for_each(|method| metrics.otel(method, families));
    }
    methods
        .iter()
        .for_each(|method| metrics.ours(method, families));
    let labels = state
        .options
        .labels
        .clone()
        .with("grpc_side", metrics.side.as_str());
    families
        .family(
            Kind::Counter,
            "tower_flow_grpc_foreign_requests",
            "Requests that are no gRPC and pass uncounted",
        )
        .push(labels, state.foreign_calls());
}

struct Metrics<'a> {
    state: &'a State,
    side: Side,
}

impl Metrics<'_> {
    /// The names, labels and texts of go-grpc-middleware's Prometheus provider.
    fn go(&self, method: &Method, families: &mut Families) {
        let labels = self.method_labels(method);
        let server = self.side == Side::Server;
        let name = |what: &str| format!("grpc_{}_{what}", self.side.as_str());
        let text = |server_text, client_text| if server { server_text } else { client_text };

        let codes = method.handled();
        let received = method.messages(self.received());
        let sent = method.messages(self.sent());
        let (counts, sum) = method.handling();

        let help = text(
            "Total number of RPCs started on the server.",
            "Total number of RPCs started on the client.",
        );
        families
            .family(Kind::Counter, name("started"), help)
            .push(labels.clone(), method.started());
        let help = text(
            "Total number of RPCs completed on the server, regardless of success or failure.",
            "Total number of RPCs completed by the client, regardless of success or failure.",
        );
        let family = families.family(Kind::Counter, name("handled"), help);
        for (code, count) in Code::ALL.into_iter().zip(codes) {
            if count > 0 || method.registered {
                family.push(labels.clone().with("grpc_code", code.as_go()), count);
            }
        }
        let help = text(
            "Total number of RPC stream messages received on the server.",
            "Total number of RPC stream messages received by the client.",
        );
        families
            .family(Kind::Counter, name("msg_received"), help)
            .push(labels.clone(), received);
        let help = text(
            "Total number of gRPC stream messages sent by the server.",
            "Total number of gRPC stream messages sent by the client.",
        );
        families
            .family(Kind::Counter, name("msg_sent"), help)
            .push(labels.clone(), sent);
        let help = text(
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
            "Histogram of response latency (seconds) of the gRPC until it is finished by the application.",
        );
        let mut histogram = self.histogram(counts, sum);
        histogram.exemplars = method.exemplars();
        families
            .family(Kind::Histogram, name("handling_seconds"), help)
            .push(labels, histogram);
    }

    /// The instruments of gRPC proposal A66, named as the OpenTelemetry exporter for Prometheus names them.
    fn otel(&self, method: &Method, families: &mut Families) {
        let labels = self.otel_labels(method);
        let (prefix, what) = match self.side {
            Side::Server => ("grpc_server_call", "RPC"),
            Side::Client => ("grpc_client_attempt", "RPC attempt"),
        };
        // Before the calls that started, of which they are a part.
        let durations = method.per_status(PerStatus::Duration);
        families
            .family(
                Kind::Counter,
                format!("{prefix}_started"),
                format!("Number of {what}s started"),
            )
            .push(labels.clone(), method.started());
        let mut push = |name: String, help: String, of: PerStatus, all: &[Ended]| {
            let scale = if of == PerStatus::Duration { 1e9 } else { 1.0 };
            let family = families.family(Kind::Histogram, name, help);
            for ended in all {
                let labels = labels.clone().with("grpc_status", ended.code.as_otel());
                let counts = ended.counts.clone();
                family.push(
                    labels,
                    Histogram::new(of.bounds(), counts, ended.sum as f64 / scale),
                );
            }
        };
        let help = format!("End-to-end time taken to complete an {what}");
        push(
            format!("{prefix}_duration_seconds"),
            help,
            PerStatus::Duration,
            &durations,
        );
        if self.side == Side::Client {
            let help = "Time taken by gRPC to complete an RPC from the application's perspective"
                .to_owned();
            let name = "grpc_client_call_duration_seconds".to_owned();
            push(name, help, PerStatus::Duration, &durations);
        }
        if self.state.options.sizes {
            let (received, sent) = match self.side {
                Side::Server => (PerStatus::RequestSize, PerStatus::ResponseSize),
                Side::Client => (PerStatus::ResponseSize, PerStatus::RequestSize),
            };
            for (way, of) in [("sent", sent), ("rcvd", received)] {
                let name = format!("{prefix}_{way}_total_compressed_message_size_bytes");
                let help = format!("Compressed message bytes {way} per {what}");
                push(name, help, of, &method.per_status(of));
            }
        }
    }

    /// What neither of them has.
    fn ours(&self, method: &Method, families: &mut Families) {
        let labels = self
            .method_labels(method)
            .with("grpc_side", self.side.as_str());
        let handled: u64 = method.handled().iter().sum();
        let started = method.started();
        families
            .family(
                Kind::Gauge,
                "tower_flow_grpc_in_flight",
                "RPCs started and not completed",
            )
            .push(labels.clone(), started.saturating_sub(handled));
        for (way, direction) in [("received", self.received()), ("sent", self.sent())] {
            let labels = || labels.clone().with("direction", way);
            families
                .family(
                    Kind::Counter,
                    "tower_flow_grpc_message_bytes",
                    "Bytes of gRPC messages as on the wire, without their headers",
                )
                .push(labels(), method.bytes(direction));
            families
                .family(
                    Kind::Counter,
                    "tower_flow_grpc_compressed_messages",
                    "gRPC messages flagged as compressed",
                )
                .push(labels(), method.compressed(direction));
        }
        let [truncated, blind] = method.flaws();
        families
            .family(
                Kind::Counter,
                "tower_flow_grpc_truncated_streams",
                "Bodies that ended within a message",
            )
            .push(labels.clone(), truncated);
        families
            .family(
                Kind::Counter,
                "tower_flow_grpc_unscanned_streams",
                "Bodies whose frames could not be looked into, so their messages are not counted",
            )
            .push(labels.clone(), blind);
        if let Some((counts, sum, stalls)) = method.phases() {
            families
                .family(
                    Kind::Histogram,
                    "tower_flow_grpc_first_byte_seconds",
                    "From the call to the first message",
                )
                .push(labels.clone(), self.histogram(counts, sum));
            let family = families.family(
                Kind::Counter,
                "tower_flow_grpc_stream_stall_seconds",
                "Time response bodies waited for their producer or consumer",
            );
            for (stall, time) in ["producer", "consumer"].into_iter().zip(stalls) {
                family.push(labels.clone().with("stall", stall), time.as_secs_f64());
            }
        }
    }

    fn histogram(&self, counts: Vec<u64>, sum: Duration) -> Histogram {
        Histogram::new(
            &self.state.options.detail.handling,
            counts,
            sum.as_secs_f64(),
        )
    }

    fn received(&self) -> Direction {
        match self.side {
            Side::Server => Direction::Request,
            Side::Client => Direction::Response,
        }
    }

    fn sent(&self) -> Direction {
        match self.side {
            Side::Server => Direction::Response,
            Side::Client => Direction::Request,
        }
    }

    fn method_labels(&self, method: &Method) -> Labels {
        self.state
            .options
            .labels
            .clone()
            .with("grpc_type", method.kind.as_str())
            .with("grpc_service", method.service.clone())
            .with("grpc_method", method.name.clone())
    }

    fn otel_labels(&self, method: &Method) -> Labels {
        let name = match &*method.service {
            "other" if method.name == "other" => method.name.clone(),
            service => format!("{service}/{}", method.name),
        };
        let labels = self.state.options.labels.clone().with("grpc_method", name);
        match self.side {
            Side::Server => labels,
            Side::Client => labels.with("grpc_target", self.state.options.target.clone()),
        }
    }
}
