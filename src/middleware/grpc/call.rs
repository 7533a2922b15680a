//! One call from its request to its true end.
//!
//! ```text
//! Waiting ── Err, Drop ──────────────────────────────────────────────┐
//!    │ headers                                                       ▼
//!    └─► Streaming ── trailers, None, Err, end of stream, Drop ──► Done(code)
//! ```
//!
//! The code is, in this order: the headers' `grpc-status`; that of the trailers, in or behind the body; what the error
//! says; for a drop, a panic, the deadline or the caller; for an answer without any, the HTTP status.

use std::convert::Infallible;
use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Buf;
use http::StatusCode;

use super::method::Direction;
use super::scanner::{Framing, Scanner};
use super::state::{Place, Side, State};
use crate::base::body::{End, Observe};
use crate::base::clock::{self, Instant};
use crate::base::deadline::Deadline;
use crate::base::metrics::{Exemplar, Labels};
use crate::base::outcome::Code;
use crate::base::stats::{Lease, Stopwatch};

/// Timers fire on whole milliseconds, so what was cut off this close to its deadline was cut off by it.
const SLACK: Duration = Duration::from_millis(1);

/// What the future and the response body of a call carry.
pub struct Call {
    state: Lease<State>,
    place: Place,
    /// The path to admit if the call turns out to be of a method that exists.
    learn: Option<Box<str>>,
    started: Instant,
    deadline: Option<Deadline>,
    head: Option<Code>,
    status: Option<StatusCode>,
    scanner: Option<Scanner>,
    watch: Option<Stopwatch>,
    extra: Option<Box<Extra>>,
}

/// What a request body carries.
pub struct Messages {
    state: Lease<State>,
    place: Place,
    scanner: Scanner,
    sizes: Option<Sizes>,
}

/// What only some layers ask for.
struct Extra {
    sizes: Option<Sizes>,
    received: u64,
    trace_id: Option<String>,
}

/// The bytes of the request, shared by the two halves of a call.
type Sizes = Arc<AtomicU64>;

// ===== impl Call =====

impl Call {
    /// Starts a call; `None` when the request is no gRPC.
    #[inline]
    pub(super) fn start<B>(
        state: &Lease<State>,
        req: &http::Request<B>,
    ) -> Option<(Self, Messages)> {
        let framing = Framing::of(req.headers())?;
        let options = &state.options;
        let path = req.uri().path();
        let (mut place, mut learn) = (state.find(path), None);
        if place.is_none() {
            if options.side == Side::Client && is_generated(req) {
                place = state.learnable(path).and_then(|path| state.admit(&path));
            } else {
                learn = state.learnable(path);
            }
        }
        let started = clock::now();
        let sizes = options.sizes.then(Sizes::default);
        let trace_id = options
            .trace_id
            .as_ref()
            .and_then(|of| of(req.headers(), req.extensions()));
        let extra = (sizes.is_some() || trace_id.is_some()).then(|| {
            Box::new(Extra {
                sizes: sizes.clone(),
                received: 0,
                trace_id,
            })
        });
        let call = Self {
            state: state.clone(),
            place,
            learn,
            started,
            deadline: Deadline::of(req, started, options.timeout),
            head: None,
            status: None,
            scanner: None,
            watch: options.detail.phases.then(|| Stopwatch::start(started)),
            extra,
        };
        let messages = Messages {
            state: state.clone(),
            place,
            scanner: Scanner::new(framing),
            sizes,
        };
        state.method(place).start();
        Some((call, messages))
    }

    fn code<E: 'static>(&self, now: Instant, end: &End<'_, E>) -> Code {
        let late = self
            .deadline
            .is_some_and(|deadline| deadline.passed(now + SLACK));
        let answered = self
            .head
            .or_else(|| self.scanner.as_ref().and_then(Scanner::status));
        let by_http = || self.status.map_or(Code::Unknown, Code::from_http);
        let code = match end {
            End::Error(error) => Code::from_error(*error),
            End::Trailers(trailers) => answered
                .or_else(|| Code::from_headers(trailers))
                .unwrap_or_else(by_http),
            End::Complete => answered.unwrap_or_else(by_http),
            End::Dropped if std::thread::panicking() => Code::Internal,
            End::Dropped => match (answered, self.status) {
                (Some(code), _) => code,
                // The answer is an error page: whoever dropped it had seen enough.
                (None, Some(status)) if status != StatusCode::OK => Code::from_http(status),
                _ if late => Code::DeadlineExceeded,
                _ => Code::Cancelled,
            },
        };
        // A server that gives up on a call says CANCELLED; gRPC asks the client to look at its own deadline again.
        if late && code == Code::Cancelled && self.state.options.side == Side::Client {
            return Code::DeadlineExceeded;
        }
        code
    }
}

impl Observe for Call {
    #[inline]
    fn head<B>(&mut self, response: &http::Response<B>) {
        self.head = Code::from_headers(response.headers());
        self.status = Some(response.status());
        self.scanner = Framing::of(response.headers()).map(Scanner::new);
    }

    fn pending(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.pending(clock::now);
        }
    }

    #[inline]
    fn data<D: Buf>(&mut self, data: &D) {
        if let Some(watch) = &mut self.watch {
            if watch.awaits_first() {
                watch.first(clock::now());
            }
            watch.delivered(clock::now);
        }
        if let Some(scanner) = &mut self.scanner {
            let tally = scanner.scan(data);
            self.state
                .method(self.place)
                .passed(Direction::Response, tally);
            if let Some(extra) = &mut self.extra {
                extra.received += tally.bytes;
            }
        }
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>) {
        let now = clock::now();
        let code = self.code(now, &end);
        let took = now.saturating_duration_since(self.started);
        let method = self.state.method(self.place);
        if let Some(watch) = self.watch {
            method.end_phases(&watch.stop(now));
        }
        if let Some(scanner) = &self.scanner {
            flaws(method, scanner, &end);
        }
        if self.state.options.otel {
            let sizes = self.extra.as_ref().and_then(|extra| {
                let request = extra.sizes.as_ref()?.load(Ordering::Relaxed);
                Some([request, extra.received])
            });
            method.end_per_status(code, took, sizes);
        }
        if let Some(trace_id) = self.extra.and_then(|extra| extra.trace_id) {
            let labels = Labels::new().with("trace_id", trace_id);
            if let Some(exemplar) = Exemplar::new(labels, took.as_secs_f64()) {
                method.exemplify(took, exemplar);
            }
        }
        method.end(code, took);
        if let (Some(path), true) = (self.learn, exists(code, &end)) {
            self.state.admit(&path);
        }
    }
}

/// Whether a call that ended so was of a method somebody serves.
fn exists<E>(code: Code, end: &End<'_, E>) -> bool {
    code != Code::Unimplemented && !matches!(end, End::Dropped)
}

#[inline]
fn flaws<E>(method: &super::method::Method, scanner: &Scanner, end: &End<'_, E>) {
    if scanner.is_truncated() && !matches!(end, End::Dropped) {
        method.truncated();
    }
    if scanner.is_blind() {
        method.blind();
    }
}

/// Generated clients mark their requests; such a path is no attacker's.
#[cfg(feature = "tonic")]
fn is_generated<B>(req: &http::Request<B>) -> bool {
    req.extensions()
        .get::<tonic::GrpcMethod<'static>>()
        .is_some()
}

#[cfg(not(feature = "tonic"))]
fn is_generated<B>(_: &http::Request<B>) -> bool {
    false
}

impl Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.state.method(self.place).name)
            .finish_non_exhaustive()
    }
}

// ===== impl Messages =====

/// A request only adds to the counters. It never ends the call: a server may answer before it has read everything.
impl Observe for Messages {
    #[inline]
    fn data<D: Buf>(&mut self, data: &D) {
        let tally = self.scanner.scan(data);
        self.state
            .method(self.place)
            .passed(Direction::Request, tally);
        if let Some(sizes) = &self.sizes {
            sizes.fetch_add(tally.bytes, Ordering::Relaxed);
        }
    }

    #[inline]
    fn end<E: Display + 'static>(self, end: End<'_, E>) {
        flaws::<Infallible>(
            self.state.method(self.place),
            &self.scanner,
            &match end {
                End::Dropped => End::Dropped,
                _ => End::Complete,
            },
        );
    }
}

impl Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("scanner", &self.scanner)
            .finish_non_exhaustive()
    }
}
