use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Dial, NEVER, Phase, known};
use crate::base::clock::{Instant, nanos};
use crate::base::inspect::Value;

/// What one request spent where: an extension of its response.
///
/// It can be read while the body still runs; [`end`](Self::end) is known afterwards. Clones are the same request.
///
/// ```
/// # use tower_flow::phases::Timings;
/// fn tell<B>(response: &http::Response<B>) {
///     if let Some(timings) = response.extensions().get::<Timings>() {
///         println!("{}", timings.to_value());
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Timings(Arc<Request>);

/// Durations are in nanoseconds since the call, [`NEVER`] where there is none.
struct Request {
    start: Instant,
    queue: u64,
    wait: u64,
    first_byte: u64,
    idle: u64,
    reused: bool,
    /// How long each phase of the dial took.
    spent: [u64; Phase::ALL.len()],
    /// When each was over.
    done: [u64; Phase::ALL.len()],
    /// Written once.
    end: AtomicU64,
}

// ===== impl Request =====

impl Request {
    fn new(
        start: Instant,
        granted: Instant,
        first_byte: Instant,
        reused_idle: Option<Duration>,
        dial: Option<&Dial>,
    ) -> Self {
        let since = |at: Instant| nanos(at.saturating_duration_since(start));
        let wait = since(granted);
        // A connection may have been dialled for somebody else, before this request began: what was over by then took
        // none of its time, though it is the phase's duration all the same.
        let within = |at: Instant| since(at).min(wait);
        Self {
            start,
            queue: dial.map_or(wait, |dial| within(dial.started())),
            wait,
            first_byte: since(first_byte),
            idle: reused_idle.map_or(NEVER, nanos),
            reused: dial.is_none(),
            spent: Phase::ALL.map(|phase| dial.map_or(NEVER, |dial| dial.spent(phase))),
            done: Phase::ALL.map(|phase| {
                let ended = dial.and_then(|dial| dial.ended(phase));
                ended.map_or(NEVER, within)
            }),
            end: AtomicU64::new(NEVER),
        }
    }
}

// ===== impl Timings =====

impl Timings {
    /// Of a request made at `start` that was `granted` a connection and then had its `first_byte`.
    ///
    /// `dial` is that of a connection nobody used before; without it the connection was reused. `reused_idle` is how
    /// long the connection lay idle before the request took it, if it did.
    pub fn new(
        start: Instant,
        granted: Instant,
        first_byte: Instant,
        reused_idle: Option<Duration>,
        dial: Option<&Dial>,
    ) -> Self {
        Self(Arc::new(Request::new(
            start,
            granted,
            first_byte,
            reused_idle,
            dial,
        )))
    }

    /// The same, in the memory of `old` if nobody else holds that any more.
    #[cfg(feature = "pool")]
    pub(crate) fn again(
        old: Option<Self>,
        start: Instant,
        granted: Instant,
        first_byte: Instant,
        reused_idle: Option<Duration>,
        dial: Option<&Dial>,
    ) -> Self {
        let new = Request::new(start, granted, first_byte, reused_idle, dial);
        let Some(mut old) = old else {
            return Self(Arc::new(new));
        };
        match Arc::get_mut(&mut old.0) {
            Some(place) => *place = new,
            None => old.0 = Arc::new(new),
        }
        old
    }

    /// Notes the end of the response's body; the first end counts.
    pub fn finish(&self, at: Instant) {
        let end = nanos(at.saturating_duration_since(self.0.start));
        let _ = self
            .0
            .end
            .compare_exchange(NEVER, end, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// From the call until it had a connection: in the queue, and while the connection was made.
    pub fn wait(&self) -> Duration {
        Duration::from_nanos(self.0.wait)
    }

    /// Whether an earlier request had used the connection, or others were using it.
    pub fn reused(&self) -> bool {
        self.0.reused
    }

    /// How long the connection had been idle, if it had.
    pub fn idle(&self) -> Option<Duration> {
        known(self.0.idle)
    }

    /// How long looking up the host took, on a new connection.
    pub fn dns(&self) -> Option<Duration> {
        self.spent(Phase::Dns)
    }

    /// How long connecting took, on a new connection.
    pub fn connect(&self) -> Option<Duration> {
        self.spent(Phase::Connect)
    }

    /// How long the TLS handshake took, on a new connection.
    pub fn tls(&self) -> Option<Duration> {
        self.spent(Phase::Tls)
    }

    /// How long HTTP/2's preface took until the peer's SETTINGS, on a new connection.
    pub fn handshake(&self) -> Option<Duration> {
        self.spent(Phase::Handshake)
    }

    /// From the call to the response's headers.
    pub fn first_byte(&self) -> Duration {
        Duration::from_nanos(self.0.first_byte)
    }

    /// From the call to the end of the response's body; `None` until then.
    pub fn end(&self) -> Option<Duration> {
        known(self.0.end.load(Ordering::Relaxed))
    }

    /// How long `phase` took; `None` when it did not happen.
    pub fn phase(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Wait => Some(self.wait()),
            phase => self.spent(phase),
        }
    }

    /// The moments since the call, in seconds, by the names curl gives them: `time_queue`, `time_namelookup`,
    /// `time_connect`, `time_appconnect`, `time_pretransfer`, `time_starttransfer`, `time_total`. As text it is JSON.
    ///
    /// As with curl each contains those before it. What did not happen or is not known yet is null, where curl would
    /// write zero; so are the steps of making a connection on one that was reused. `time_queue` is the time before
    /// the connection's dial began, or before a used connection came free; `time_pretransfer` is when the request
    /// could be written.
    pub fn to_value(&self) -> Value {
        let seconds = |nanos| known(nanos).map_or(Value::Null, Value::from);
        let done = |phase| seconds(self.0.done[phase as usize]);
        Value::map([
            ("time_queue", seconds(self.0.queue)),
            ("time_namelookup", done(Phase::Dns)),
            ("time_connect", done(Phase::Connect)),
            ("time_appconnect", done(Phase::Tls)),
            ("time_pretransfer", seconds(self.0.wait)),
            ("time_starttransfer", seconds(self.0.first_byte)),
            ("time_total", self.end().map_or(Value::Null, Value::from)),
        ])
    }

    fn spent(&self, phase: Phase) -> Option<Duration> {
        known(self.0.spent[phase as usize])
    }
}

impl fmt::Debug for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timings")
            .field("wait", &self.wait())
            .field("reused", &self.reused())
            .field("idle", &self.idle())
            .field("dns", &self.dns())
            .field("connect", &self.connect())
            .field("tls", &self.tls())
            .field("handshake", &self.handshake())
            .field("first_byte", &self.first_byte())
            .field("end", &self.end())
            .finish()
    }
}
