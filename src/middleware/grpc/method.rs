use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::scanner::Tally;
use crate::base::clock::nanos;
use crate::base::metrics::Exemplar;
use crate::base::outcome::Code;
use crate::base::stats::{Bounds, Phases, Striped};

/// Who streams in a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // The names are gRPC's own.
pub enum GrpcType {
    Unary,
    ClientStream,
    ServerStream,
    BidiStream,
    /// Learned from traffic, which does not tell; register the method to know.
    #[default]
    Unknown,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Response,
}

/// The numbers of one method.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) kind: GrpcType,
    /// Known before its first call, so every series is shown from the beginning.
    pub(super) registered: bool,
    cells: Striped,
    handling: Bounds,
    phases: Option<Striped>,
    otel: Option<Box<[OnceLock<Striped>; 17]>>,
    exemplars: Option<Box<[Mutex<Option<Exemplar>>]>>,
}

/// What a method keeps beyond the essentials.
#[derive(Debug, Clone)]
pub(super) struct Detail {
    pub(super) handling: Bounds,
    pub(super) phases: bool,
    pub(super) otel: bool,
    pub(super) exemplars: bool,
}

/// Where in a method's cells what is counted: a unary call writes the first line and one of the buckets.
mod at {
    pub(super) const STARTED: usize = 0;
    pub(super) const SUM: usize = 1;
    pub(super) const MESSAGES: usize = 2;
    pub(super) const BYTES: usize = 4;
    pub(super) const COMPRESSED: usize = 6;
    pub(super) const TRUNCATED: usize = 8;
    pub(super) const BLIND: usize = 9;
    pub(super) const CODES: usize = 10;
    pub(super) const BUCKETS: usize = CODES + 17;
}

/// The same for the phases: two stalls, then a histogram with its sum first.
mod phase_at {
    pub(super) const PRODUCER: usize = 0;
    pub(super) const CONSUMER: usize = 1;
    pub(super) const FIRST: usize = 2;
}

/// One of the histograms OpenTelemetry keeps for each status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PerStatus {
    Duration,
    RequestSize,
    ResponseSize,
}

/// What all calls of one status came to.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Code,
    pub(super) counts: Vec<u64>,
    pub(super) sum: u64,
}

// ===== impl GrpcType =====

impl GrpcType {
    /// By who streams.
    pub fn of(client_streams: bool, server_streams: bool) -> Self {
        match (client_streams, server_streams) {
            (false, false) => Self::Unary,
            (true, false) => Self::ClientStream,
            (false, true) => Self::ServerStream,
            (true, true) => Self::BidiStream,
        }
    }

    /// The value of the label `grpc_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ClientStream => "client_stream",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for GrpcType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// ===== impl Method =====

impl Method {
    pub(super) fn new(
        service: &str,
        name: &str,
        kind: GrpcType,
        registered: bool,
        detail: &Detail,
    ) -> Self {
        let buckets = detail.handling.buckets();
        Self {
            service: service.to_owned(),
            name: name.to_owned(),
            kind,
            registered,
            cells: Striped::new(at::BUCKETS + buckets),
            phases: detail
                .phases
                .then(|| Striped::new(phase_at::FIRST + 1 + buckets)),
            otel: detail
                .otel
                .then(|| Box::new([const { OnceLock::new() }; 17])),
            exemplars: detail
                .exemplars
                .then(|| (0..buckets).map(|_| Mutex::default()).collect()),
            handling: detail.handling.clone(),
        }
    }

    #[inline]
    pub(super) fn start(&self) {
        self.cells.local().add(at::STARTED, 1);
    }

    #[inline]
    pub(super) fn passed(&self, direction: Direction, tally: Tally) {
        let cells = self.cells.local();
        let direction = direction as usize;
        if tally.messages > 0 {
            cells.add(at::MESSAGES + direction, tally.messages);
        }
        if tally.bytes > 0 {
            cells.add(at::BYTES + direction, tally.bytes);
        }
        if tally.compressed > 0 {
            cells.add(at::COMPRESSED + direction, tally.compressed);
        }
    }

    pub(super) fn truncated(&self) {
        self.cells.local().add(at::TRUNCATED, 1);
    }

    pub(super) fn blind(&self) {
        self.cells.local().add(at::BLIND, 1);
    }

    #[inline]
    pub(super) fn end(&self, code: Code, took: Duration) {
        let cells = self.cells.local();
        cells.add(at::SUM, nanos(took));
        cells.add(at::BUCKETS + self.handling.of(took), 1);
        // Last, so that whoever sees the call handled sees all of it.
        cells.add(at::CODES + code.index(), 1);
    }

    pub(super) fn end_phases(&self, phases: &Phases) {
        let (Some(cells), Some(first)) = (&self.phases, phases.first) else {
            return;
        };
        let cells = cells.local();
        cells.add(phase_at::PRODUCER, nanos(phases.producer));
        cells.add(phase_at::CONSUMER, nanos(phases.consumer));
        cells.add(phase_at::FIRST, nanos(first));
        cells.add(phase_at::FIRST + 1 + self.handling.of(first), 1);
    }

    /// Keeps `exemplar` for the bucket of `took`, unless another call is doing the same.
    pub(super) fn exemplify(&self, took: Duration, exemplar: Exemplar) {
        let slot = self
            .exemplars
            .as_ref()
            .map(|slots| &slots[self.handling.of(took)]);
        if let Some(mut slot) = slot.and_then(|slot| slot.try_lock().ok()) {
            *slot = Some(exemplar);
        }
    }

    pub(super) fn end_per_status(&self, code: Code, took: Duration, sizes: Option<[u64; 2]>) {
        let Some(otel) = &self.otel else { return };
        let cells = otel[code.index()]
            .get_or_init(|| Striped::new(PerStatus::WIDTH))
            .local();
        let record = |what: PerStatus, value| {
            let at = what.place();
            cells.add(at, value);
            cells.add(at + 1 + what.bounds().index(value), 1);
        };
        record(PerStatus::Duration, nanos(took));
        if let Some([request, response]) = sizes {
            record(PerStatus::RequestSize, request);
            record(PerStatus::ResponseSize, response);
        }
    }

    pub(super) fn started(&self) -> u64 {
        self.cells.sum(at::STARTED)
    }

    /// By code. Read before [`started`](Self::started), so that in flight is never negative.
    pub(super) fn handled(&self) -> [u64; 17] {
        let mut handled = [0; 17];
        self.cells.sum_into(at::CODES, &mut handled);
        handled
    }

    pub(super) fn messages(&self, direction: Direction) -> u64 {
        self.cells.sum(at::MESSAGES + direction as usize)
    }

    pub(super) fn bytes(&self, direction: Direction) -> u64 {
        self.cells.sum(at::BYTES + direction as usize)
    }

    pub(super) fn compressed(&self, direction: Direction) -> u64 {
        self.cells.sum(at::COMPRESSED + direction as usize)
    }

    /// Bodies that ended within a message, and bodies that could not be looked into.
    pub(super) fn flaws(&self) -> [u64; 2] {
        [at::TRUNCATED, at::BLIND].map(|cell| self.cells.sum(cell))
    }

    /// The buckets of the handling time and its sum.
    pub(super) fn handling(&self) -> (Vec<u64>, Duration) {
        let mut counts = vec![0; self.handling.buckets()];
        self.cells.sum_into(at::BUCKETS, &mut counts);
        (counts, Duration::from_nanos(self.cells.sum(at::SUM)))
    }

    pub(super) fn exemplars(&self) -> Vec<Option<Exemplar>> {
        let slots = self.exemplars.iter().flatten();
        slots
            .map(|slot| slot.lock().ok().and_then(|slot| slot.clone()))
            .collect()
    }

    /// The buckets of the time to the first message, its sum, and both stalls.
    pub(super) fn phases(&self) -> Option<(Vec<u64>, Duration, [Duration; 2])> {
        let cells = self.phases.as_ref()?;
        let mut counts = vec![0; self.handling.buckets()];
        cells.sum_into(phase_at::FIRST + 1, &mut counts);
        let stalls = [phase_at::PRODUCER, phase_at::CONSUMER];
        let stalls = stalls.map(|cell| Duration::from_nanos(cells.sum(cell)));
        Some((
            counts,
            Duration::from_nanos(cells.sum(phase_at::FIRST)),
            stalls,
        ))
    }

    /// A histogram for each status that was ever seen.
    pub(super) fn per_status(&self, what: PerStatus) -> Vec<Ended> {
        let seen = Code::ALL
            .into_iter()
            .zip(self.otel.iter().flat_map(|codes| codes.iter()));
        seen.filter_map(|(code, cells)| {
            let cells = cells.get()?;
            let mut counts = vec![0; what.bounds().buckets()];
            cells.sum_into(what.place() + 1, &mut counts);
            let sum = cells.sum(what.place());
            Some(Ended { code, counts, sum })
        })
        .collect()
    }
}

// ===== impl PerStatus =====

impl PerStatus {
    const WIDTH: usize = 43 + 2 * 16;

    fn place(self) -> usize {
        match self {
            Self::Duration => 0,
            Self::RequestSize => 43,
            Self::ResponseSize => 43 + 16,
        }
    }

    /// The buckets of gRPC proposal A66.
    pub(super) fn bounds(self) -> &'static Bounds {
        static LATENCY: OnceLock<Bounds> = OnceLock::new();
        static SIZE: OnceLock<Bounds> = OnceLock::new();
        match self {
            Self::Duration => LATENCY.get_or_init(|| {
                Bounds::seconds([
                    0.0, 1e-5, 5e-5, 1e-4, 3e-4, 6e-4, 8e-4, 0.001, 0.002, 0.003, 0.004, 0.005,
                    0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08,
                    0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 2.0, 5.0, 10.0,
                    20.0, 50.0, 100.0,
                ])
            }),
            Self::RequestSize | Self::ResponseSize => SIZE.get_or_init(|| {
                Bounds::whole([
                    0.0,
                    1024.0,
                    2048.0,
                    4096.0,
                    16384.0,
                    65536.0,
                    262_144.0,
                    1_048_576.0,
                    4_194_304.0,
                    16_777_216.0,
                    67_108_864.0,
                    268_435_456.0,
                    1_073_741_824.0,
                    4_294_967_296.0,
                ])
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_status_histograms_fit_their_cells() {
        let widths = [
            PerStatus::Duration,
            PerStatus::RequestSize,
            PerStatus::ResponseSize,
        ];
        let mut next = 0;
        for what in widths {
            assert_eq!(what.place(), next);
            next += 1 + what.bounds().buckets();
        }
        assert_eq!(next, PerStatus::WIDTH);
    }
}
