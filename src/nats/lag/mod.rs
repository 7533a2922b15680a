//! How far a consumer of a stream lags behind.

mod core;
mod metrics;
mod poll;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{Context as JetStream, Message};
use tokio::task::AbortHandle;

pub use self::core::LagState;
use self::core::{Core, Rules};
use crate::base::clock;
use crate::base::flow::Flow;
use crate::base::inspect::{Inspect, Role, Value, Vital};
use crate::base::metrics::Families;
use crate::base::signal::Signal;

/// How many messages a consumer has yet to hand out, and how many were not acknowledged yet; see the
/// [module docs](super#lag).
///
/// Clones are the same signal. With the last of them its poller stops.
#[derive(Debug, Clone)]
pub struct JetStreamLag {
    state: Arc<State>,
    #[allow(dead_code)] // Held for its drop.
    poller: Arc<Poller>,
}

/// Makes a [`JetStreamLag`].
#[must_use = "nothing is watched before `build`"]
pub struct LagBuilder {
    context: JetStream,
    stream: String,
    consumer: String,
    name: Option<String>,
    rules: Rules,
    flow: Option<Flow>,
}

/// A backlog at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LagSnapshot {
    /// What the signal says: `pending` and `ack_pending` together; `None` when nothing was learnt for too long.
    pub value: Option<f64>,
    /// How long ago that was learnt.
    pub age: Option<Duration>,
    /// Messages not handed out yet, when last heard of.
    pub pending: u64,
    /// Messages handed out and not acknowledged, when last asked.
    pub ack_pending: u64,
    /// Pulls that waited for messages when last asked: many mean workers with nothing to do.
    pub waiting: u64,
    /// Messages that were handed out more than once and are not acknowledged.
    pub redelivered: u64,
    /// How many may be unacknowledged; `None` if any number may, or nobody said so yet.
    pub max_ack_pending: Option<u64>,
    /// `ack_pending` as a share of `max_ack_pending`.
    pub saturation: Option<f64>,
    /// What the backlog is doing.
    pub state: LagState,
    /// Messages from which it was read.
    pub observed: u64,
    /// Messages that were observed and are of no, or another, consumer.
    pub foreign: u64,
    /// Polls that were answered.
    pub polls: u64,
    /// Polls that came to nothing.
    pub failures: u64,
    /// Polls whose count the stream contradicted.
    pub corrected: u64,
    /// Why the last poll failed; `None` after one that did not.
    pub last_error: Option<String>,
}

pub(super) struct State {
    name: String,
    stream: String,
    consumer: String,
    core: Mutex<(Core, Option<String>)>,
}

/// Stops the task when it is dropped.
struct Poller(AbortHandle);

/// What a flow shows; it keeps no poller going.
#[derive(Debug)]
struct View(Arc<State>);

// ===== impl JetStreamLag =====

impl JetStreamLag {
    /// The lag of `consumer` of `stream`, with all that [`builder`](Self::builder) has by default.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime: a task polls.
    pub fn new(context: JetStream, stream: impl Into<String>, consumer: impl Into<String>) -> Self {
        Self::builder(context, stream, consumer).build()
    }

    /// Sets how the lag of `consumer` of `stream` is watched. Neither need be there yet.
    pub fn builder(
        context: JetStream,
        stream: impl Into<String>,
        consumer: impl Into<String>,
    ) -> LagBuilder {
        LagBuilder {
            context,
            stream: stream.into(),
            consumer: consumer.into(),
            name: None,
            rules: Rules {
                every: Duration::from_secs(5),
                slowest: Duration::from_secs(15),
                max_age: Duration::from_secs(30),
            },
            flow: None,
        }
    }

    /// Reads from a message that was just delivered how many are left. It costs no request, so that where messages flow
    /// the server is hardly asked. One of another consumer is left out and counted.
    pub fn observe(&self, message: &Message) {
        let info = message.info().ok().filter(|info| {
            info.stream == self.state.stream && info.consumer == self.state.consumer
        });
        let mut locked = self.state.lock();
        match info {
            Some(info) => locked
                .0
                .pushed(clock::now(), info.pending, info.stream_sequence),
            None => locked.0.counts.foreign += 1,
        }
    }

    /// What is known now.
    pub fn snapshot(&self) -> LagSnapshot {
        self.state.snapshot()
    }

    /// How long ago the value was learnt; `None` when it never was.
    pub fn age(&self) -> Option<Duration> {
        self.state.lock().0.age(clock::now())
    }
}

impl Signal for JetStreamLag {
    fn name(&self) -> &str {
        &self.state.name
    }

    fn sample(&self) -> Option<f64> {
        self.state.lock().0.value(clock::now())
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller").finish()
    }
}

// ===== impl LagBuilder =====

impl LagBuilder {
    /// The consumer's name (default), or another, is the signal's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// 5 seconds (default) without a message, and the server is asked. While nothing changes it is asked ever less
    /// often, down to [`slowest`](Self::slowest).
    ///
    /// # Panics
    ///
    /// When `period` is shorter than 100 ms: asking is work for a cluster.
    pub fn every(mut self, period: Duration) -> Self {
        assert!(
            period >= Duration::from_millis(100),
            "a consumer is not to be asked every {period:?}; 100 ms is the least"
        );
        self.rules.every = period;
        self
    }

    /// Every 15 seconds (default) the server is asked at least: for what is unacknowledged where messages flow, and for
    /// all of it where nothing changes. It is at most half of [`max_age`](Self::max_age), and no less than
    /// [`every`](Self::every).
    pub fn slowest(mut self, period: Duration) -> Self {
        self.rules.slowest = period;
        self
    }

    /// 30 seconds (default) is how old a value may be that counts still. After that the signal says nothing.
    ///
    /// # Panics
    ///
    /// When `age` is zero.
    pub fn max_age(mut self, age: Duration) -> Self {
        assert!(!age.is_zero(), "a lag counts for longer than {age:?}");
        self.rules.max_age = age;
        self
    }

    /// Shows the lag in `flow`.
    pub fn attach(mut self, flow: &Flow) -> Self {
        self.flow = Some(flow.clone());
        self
    }

    /// The lag, which is asked for at once.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime: a task polls.
    pub fn build(self) -> JetStreamLag {
        let mut rules = self.rules;
        rules.slowest = rules.slowest.min(rules.max_age / 2).max(rules.every);
        let state = Arc::new(State {
            name: self.name.unwrap_or_else(|| self.consumer.clone()),
            stream: self.stream,
            consumer: self.consumer,
            core: Mutex::new((Core::new(rules), None)),
        });
        let task = tokio::spawn(poll::run(self.context, state.clone(), rules.every));
        if let Some(flow) = self.flow {
            flow.attach(View(state.clone()));
        }
        JetStreamLag {
            state,
            poller: Arc::new(Poller(task.abort_handle())),
        }
    }
}

impl fmt::Debug for LagBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LagBuilder")
            .field("stream", &self.stream)
            .field("consumer", &self.consumer)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

// ===== impl State =====

impl State {
    fn lock(&self) -> MutexGuard<'_, (Core, Option<String>)> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> LagSnapshot {
        let now = clock::now();
        let locked = self.lock();
        let (core, last_error) = &*locked;
        let (pending, ack_pending) = core.known().unwrap_or_default();
        let facts = core.facts().unwrap_or_default();
        let max = facts.max_ack_pending;
        LagSnapshot {
            value: core.value(now),
            age: core.age(now),
            pending,
            ack_pending,
            waiting: facts.waiting,
            redelivered: facts.redelivered,
            max_ack_pending: max,
            saturation: max.map(|max| ack_pending as f64 / max.max(1) as f64),
            state: core.state(now),
            observed: core.counts.pushes,
            foreign: core.counts.foreign,
            polls: core.counts.polls,
            failures: core.counts.failures,
            corrected: core.counts.corrected,
            last_error: last_error.clone(),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("name", &self.name)
            .field("stream", &self.stream)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

impl Inspect for View {
    fn kind(&self) -> &'static str {
        "nats_lag"
    }

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0.name)
    }

    fn snapshot(&self) -> Value {
        let now = self.0.snapshot();
        Value::map([
            ("stream", self.0.stream.as_str().into()),
            ("consumer", self.0.consumer.as_str().into()),
            ("state", now.state.as_str().into()),
            ("value", now.value.into()),
            ("age", now.age.into()),
            ("pending", now.pending.into()),
            ("ack_pending", now.ack_pending.into()),
            ("waiting", now.waiting.into()),
            ("redelivered", now.redelivered.into()),
            ("max_ack_pending", now.max_ack_pending.into()),
            ("saturation", now.saturation.into()),
            ("observed", now.observed.into()),
            ("foreign", now.foreign.into()),
            ("polls", now.polls.into()),
            ("failures", now.failures.into()),
            ("corrected", now.corrected.into()),
            ("last_error", now.last_error.into()),
        ])
    }

    fn collect(&self, families: &mut Families) {
        metrics::collect(&self.0.name, &self.0.snapshot(), families);
    }

    fn vitals(&self) -> Vec<Vital> {
        let now = self.0.snapshot();
        let mut vitals = vec![
            Vital::level(Role::Waiting, now.pending as f64),
            Vital::level(Role::InFlight, now.ack_pending as f64),
        ];
        if let Some(max) = now.max_ack_pending {
            vitals.push(Vital::level(Role::Limit, max as f64));
        }
        vitals
    }
}
