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

use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Buf;
use http::StatusCode;

use super::method::{Direction, Method};
use super::scanner::{Framing, Scanner};
use super::state::{Place, Side, State};
use crate::base::body::{End, Observe};
use crate::base::clock::{Instant, Moment};
use crate::base::cost::Toll;
use crate::base::deadline::Deadline;
use crate::base::header;
use crate::base::metrics::{Exemplar, Labels};
use crate::base::outcome::Code;
use crate::base::stats::{Lease, Pooled, Stopwatch, pooled};

/// Timers fire on whole milliseconds, so what was cut off this close to its deadline was cut off by it.
const SLACK: Duration = Duration::from_millis(1);

/// What the future and the response body of a call carry.
pub struct Call(Pooled<Record>);

/// What is known of a call.
struct Record {
    state: Arc<State>,
    place: Place,
    started: Instant,
    deadline: Option<Deadline>,
    head: Option<Code>,
    status: Option<StatusCode>,
    scanner: Option<Scanner>,
    extra: Option<Box<Extra>>,
    toll: Toll,
}

/// What a request body carries.
pub struct Messages(Pooled<Half>);

/// What is known of a request.
struct Half {
    state: Arc<State>,
    place: Place,
    scanner: Scanner,
    sizes: Option<Sizes>,
}

pooled!(Record);
pooled!(Half);

/// What only some calls need, kept apart so that the others are small to move.
#[derive(Default)]
struct Extra {
    /// The path to admit if the call is answered with OK.
    learn: Option<Box<str>>,
    watch: Option<Stopwatch>,
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
        at: &Moment,
    ) -> Option<(Self, Messages)> {
        let toll = state.cost.call();
        let own = toll.own();
        let [kind, timeout] = header::find(req.headers(), ["content-type", "grpc-timeout"]);
        let options = &state.options;
        let mut place = state.find(path(options.side, req));
        // tonic's server answers a known method whatever the content type, so that is not for the peer to choose.
        let known = (place.is_some() && options.side == Side::Server).then_some(Framing::Plain);
        let Some(framing) = Framing::of(kind).or(known) else {
            state.foreign();
            return None;
        };
        let started = at.now();
        let extra = Extra::of(state, &mut place, started, req);
        let sizes = extra.as_ref().and_then(|extra| extra.sizes.clone());
        let deadline = Deadline::asked(req.extensions(), timeout, started, options.timeout);

        let mut call = Record::of(state.shared(), started);
        call.place = place;
        call.started = started;
        call.deadline = deadline;
        call.head = None;
        call.status = None;
        call.scanner = None;
        call.extra = extra;
        drop(own);
        toll.linger();
        call.toll = toll;
        let mut messages = Half::of(state.shared());
        messages.place = place;
        messages.scanner = Scanner::new(framing);
        messages.sizes = sizes;
        state.method(place).start();
        Some((Self(call), Messages(messages)))
    }
}

// ===== impl Record =====

impl Record {
    /// A record of a call of `state`'s, to be written anew.
    #[inline]
    fn of(state: &Arc<State>, now: Instant) -> Pooled<Self> {
        Pooled::take(
            |spare: &Self| Arc::ptr_eq(&spare.state, state),
            || Self {
                state: state.clone(),
                place: None,
                started: now,
                deadline: None,
                head: None,
                status: None,
                scanner: None,
                extra: None,
                toll: Toll::default(),
            },
        )
    }

    fn watch(&mut self) -> Option<&mut Stopwatch> {
        self.extra.as_mut()?.watch.as_mut()
    }

    fn code<E: 'static>(&self, now: Instant, end: End<'_, E>) -> Code {
        let late = self
            .deadline
            .is_some_and(|deadline| deadline.passed(now + SLACK));
        let answered = self
            .head
            .or_else(|| self.scanner.as_ref().and_then(Scanner::status));
        let by_http = || self.status.map_or(Code::Unknown, Code::from_http);
        let code = match end {
            End::Error(error) => Code::from_error(error),
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
    fn head<B>(&mut self, response: &http::Response<B>, _: &Moment) {
        let call = &mut *self.0;
        let _own = call.toll.own();
        let [kind, status] = header::find(response.headers(), ["content-type", "grpc-status"]);
        call.head = status.map(|status| Code::from_bytes(status.as_bytes()));
        call.status = Some(response.status());
        call.scanner = Framing::of(kind).map(Scanner::new);
    }

    #[inline]
    fn pending(&mut self, at: &Moment) {
        if let Some(watch) = self.0.watch() {
            watch.pending(|| at.now());
        }
    }

    #[inline]
    fn data<D: Buf>(&mut self, data: &D, at: &Moment) {
        let call = &mut *self.0;
        let _own = call.toll.own();
        if let Some(watch) = call.watch() {
            if watch.awaits_first() {
                watch.first(at.now());
            }
            watch.delivered(|| at.now());
        }
        if let Some(scanner) = &mut call.scanner {
            let tally = scanner.scan(data);
            call.state
                .method(call.place)
                .passed(Direction::Response, tally);
            if let Some(extra) = &mut call.extra {
                extra.received += tally.bytes;
            }
        }
    }

    #[inline]
    fn end<E: Display + 'static>(mut self, end: End<'_, E>, at: &Moment) {
        let call = &mut *self.0;
        let _own = std::mem::take(&mut call.toll).own();
        let now = at.now();
        let code = call.code(now, end);
        let took = now.saturating_duration_since(call.started);
        let method = call.state.method(call.place);
        // Whoever takes the record up again finds nothing of this call's.
        let (scanner, extra) = (call.scanner.take(), call.extra.take());
        if let Some(scanner) = &scanner {
            flaws(&call.state, call.place, scanner, end);
        }
        if call.state.options.otel {
            let sizes = extra.as_ref().and_then(|extra| extra.sizes());
            method.end_per_status(code, took, sizes);
        }
        if let Some(extra) = extra {
            extra.end(&call.state, method, now, took, code == Code::Ok);
        }
        method.end(code, took);
    }
}

// ===== impl Extra =====

impl Extra {
    #[inline]
    fn of<B>(
        state: &State,
        place: &mut Place,
        now: Instant,
        req: &http::Request<B>,
    ) -> Option<Box<Self>> {
        let options = &state.options;
        let plain = !options.sizes && !options.detail.phases && options.trace_id.is_none();
        if plain && place.is_some() {
            return None;
        }
        let learn = match place {
            Some(_) => None,
            None => state.learnable(path(options.side, req)),
        };
        if plain && learn.is_none() {
            return None;
        }
        if options.side == Side::Client && is_generated(req) {
            *place = place.or_else(|| state.admit(learn.as_ref()?));
        }
        let trace_id = options.trace_id.as_ref();
        Some(Box::new(Self {
            learn,
            watch: options.detail.phases.then(|| Stopwatch::start(now)),
            sizes: options.sizes.then(Sizes::default),
            received: 0,
            trace_id: trace_id.and_then(|of| of(req.headers(), req.extensions())),
        }))
    }

    /// The bytes of request and response.
    fn sizes(&self) -> Option<[u64; 2]> {
        let request = self.sizes.as_ref()?;
        Some([request.load(Ordering::Relaxed), self.received])
    }

    fn end(self, state: &State, method: &Method, now: Instant, took: Duration, ok: bool) {
        if let Some(watch) = self.watch {
            method.end_phases(&watch.stop(now));
        }
        if let Some(trace_id) = self.trace_id {
            let labels = Labels::new().with("trace_id", trace_id);
            if let Some(exemplar) = Exemplar::new(labels, took.as_secs_f64()) {
                method.exemplify(took, exemplar);
            }
        }
        // Any other answer may come from a layer that knows nothing of methods, to any path a stranger makes up.
        if let (Some(path), true) = (self.learn, ok) {
            state.admit(&path);
        }
    }
}

#[inline]
fn flaws<E>(state: &State, place: Place, scanner: &Scanner, end: End<'_, E>) {
    if scanner.is_truncated() && !matches!(end, End::Dropped) {
        state.method(place).truncated();
    }
    if scanner.is_blind() {
        state.method(place).blind();
    }
}

/// The path of the method: what a client's origin puts before it is not part of it.
#[inline]
fn path<B>(side: Side, req: &http::Request<B>) -> &str {
    let path = req.uri().path();
    if side == Side::Server {
        return path;
    }
    let slashes = path.rmatch_indices('/');
    slashes
        .map(|(at, _)| at)
        .nth(1)
        .map_or(path, |at| &path[at..])
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
            .field("method", &self.0.state.method(self.0.place).name)
            .finish_non_exhaustive()
    }
}

// ===== impl Messages =====

impl Half {
    /// A record of a request of `state`'s, to be written anew.
    #[inline]
    fn of(state: &Arc<State>) -> Pooled<Self> {
        Pooled::take(
            |spare: &Self| Arc::ptr_eq(&spare.state, state),
            || Self {
                state: state.clone(),
                place: None,
                scanner: Scanner::new(Framing::Plain),
                sizes: None,
            },
        )
    }
}

/// A request only adds to the counters. It never ends the call: a server may answer before it has read everything.
impl Observe for Messages {
    #[inline]
    fn data<D: Buf>(&mut self, data: &D, _: &Moment) {
        let half = &mut *self.0;
        let tally = half.scanner.scan(data);
        half.state
            .method(half.place)
            .passed(Direction::Request, tally);
        if let Some(sizes) = &half.sizes {
            sizes.fetch_add(tally.bytes, Ordering::Relaxed);
        }
    }

    #[inline]
    fn end<E: Display + 'static>(mut self, end: End<'_, E>, _: &Moment) {
        let half = &mut *self.0;
        flaws(&half.state, half.place, &half.scanner, end);
        half.sizes = None;
    }
}

impl Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("scanner", &self.0.scanner)
            .finish_non_exhaustive()
    }
}
