//! What is known of a consumer's backlog, and when to ask again. No clock, no task: `now` is an argument.

use std::time::Duration;

use crate::base::clock::Instant;

/// # Invariants
///
/// At most one poll is under way: [`ask`](Core::ask) begins one, and [`polled`](Core::polled) or
/// [`failed`](Core::failed) ends it. Whatever was learnt last counts, with the moment it was learnt at.
#[derive(Debug)]
pub(super) struct Core {
    rules: Rules,
    known: Option<Known>,
    facts: Option<(Instant, Consumer)>,
    stream: Option<Stream>,
    trouble: Option<Trouble>,
    /// Since when messages wait and none is handed out for the first time.
    still: Option<Instant>,
    /// When the last poll ended.
    ended: Option<Instant>,
    pushed: Option<Instant>,
    /// How long after a poll the next follows while nothing changes.
    step: Duration,
    /// What chance makes of the next step.
    jitter: f64,
    asking: bool,
    pub(super) counts: Counts,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) every: Duration,
    pub(super) slowest: Duration,
    pub(super) max_age: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    at: Instant,
    pending: u64,
    ack_pending: u64,
}

/// What the server says of the consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Consumer {
    pub(super) pending: u64,
    pub(super) ack_pending: u64,
    /// Pulls that wait for messages.
    pub(super) waiting: u64,
    pub(super) redelivered: u64,
    pub(super) max_ack_pending: Option<u64>,
    pub(super) ack_wait: Duration,
    /// How many messages were handed out, those again included.
    pub(super) deliveries: u64,
    /// The last message of the stream that was handed out.
    pub(super) delivered: u64,
    /// Up to which one all are acknowledged.
    pub(super) ack_floor: u64,
    /// Whether every message of the stream is for it.
    pub(super) takes_all: bool,
}

/// What the server says of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) messages: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Why nothing could be learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Away,
    ConsumerMissing,
    StreamMissing,
}

/// What the backlog is doing.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LagState {
    /// Nothing was learnt yet.
    Unknown,
    /// Nothing waits, and nothing is being worked on.
    Idle,
    /// There is a backlog, and messages are handed out.
    Flowing,
    /// Messages wait, and nobody asks for any.
    Starving,
    /// Messages wait, and as many are unacknowledged as may be: the workers have all they can take.
    Saturated,
    /// Messages wait, and none is handed out though workers ask for some, or hold all they may and finish none.
    Stuck,
    /// The stream is there, and the consumer is not.
    ConsumerMissing,
    /// The stream is not there.
    StreamMissing,
    /// The server is not to be reached, or does not answer.
    Away,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) pushes: u64,
    pub(super) foreign: u64,
    pub(super) polls: u64,
    pub(super) failures: u64,
    /// Polls whose count of what is pending could not be true.
    pub(super) corrected: u64,
}

impl Core {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            known: None,
            facts: None,
            stream: None,
            trouble: None,
            still: None,
            ended: None,
            pushed: None,
            step: rules.every,
            jitter: 1.0,
            asking: false,
            counts: Counts::default(),
        }
    }

    /// When to poll next, unless a message comes before.
    pub(super) fn due(&self) -> Option<Instant> {
        let ended = self.ended?;
        let every = self.rules.every.mul_f64(self.jitter);
        let due = match self.pushed {
            // What is unacknowledged no message tells, so that it is asked for now and then.
            Some(pushed) if pushed > ended => {
                let silent = pushed.checked_add(every)?;
                silent.min(ended.checked_add(self.rules.slowest.mul_f64(self.jitter))?)
            }
            _ => ended.checked_add(self.step.mul_f64(self.jitter))?,
        };
        Some(due)
    }

    /// Whether to poll now; then it has begun, and what comes after it is spaced by `jitter`, around 1.
    pub(super) fn ask(&mut self, now: Instant, jitter: f64) -> bool {
        let due = self.due().is_none_or(|due| due <= now);
        if self.asking || !due {
            return false;
        }
        self.asking = true;
        self.jitter = jitter.clamp(0.5, 1.5);
        true
    }

    /// Whether what was said of the consumer asks for a look at the stream: nothing has moved since the last poll.
    pub(super) fn doubts(&self, facts: &Consumer) -> bool {
        self.facts
            .is_some_and(|(_, before)| before.deliveries == facts.deliveries)
    }

    /// A message came, after which so many are `pending`. `at` is its place in the stream.
    pub(super) fn pushed(&mut self, now: Instant, pending: u64, at: u64) {
        self.counts.pushes += 1;
        self.pushed = Some(now);
        self.trouble = None;
        self.step = self.rules.every;
        // One that is handed out again to workers who hold all they may is no progress.
        let again = |(_, facts): (_, Consumer)| facts.is_full() && at <= facts.delivered;
        if !self.facts.is_some_and(again) {
            self.still = None;
        }
        if let Some((_, facts)) = &mut self.facts {
            facts.delivered = facts.delivered.max(at);
            facts.waiting = facts.waiting.max(1);
        }
        let ack_pending = self.known.map_or(1, |known| known.ack_pending.max(1));
        self.known = Some(Known {
            at: now,
            pending,
            ack_pending,
        });
    }

    /// The poll under way was answered. `stream` was asked for after the consumer.
    pub(super) fn polled(&mut self, now: Instant, facts: Consumer, stream: Option<Stream>) {
        self.counts.polls += 1;
        let pending = self.believable(&facts, stream);
        if pending != facts.pending {
            self.counts.corrected += 1;
        }
        let before = self.facts;
        let moved = before.is_none_or(|(_, before)| before.deliveries != facts.deliveries);
        let asks = |facts: &Consumer| facts.waiting > 0 && !facts.is_full();
        let same = |held: &dyn Fn(&Consumer) -> bool| {
            held(&facts) && before.is_some_and(|(_, before)| held(&before))
        };
        let asked = same(&asks);
        // Those that were not acknowledged in time are handed out again, so that `deliveries` grow though nobody
        // finishes any: going by those handed out for the first time, they hold what they held.
        let place = |facts: &Consumer| (facts.ack_floor, facts.delivered);
        let rests = before.is_some_and(|(_, before)| place(&before) == place(&facts));
        let held = same(&Consumer::is_full) && rests;
        self.still = match before {
            Some((since, _)) if pending > 0 && ((asked && !moved) || held) => {
                Some(self.still.unwrap_or(since))
            }
            _ => None,
        };
        let changed = before.is_none_or(|(_, before)| before != facts);
        self.settle(now, changed || self.trouble.is_some());
        self.trouble = None;
        self.facts = Some((now, facts));
        self.stream = stream.or(self.stream);
        self.known = Some(Known {
            at: now,
            pending,
            ack_pending: facts.ack_pending,
        });
    }

    /// The poll under way, or one that could not even begin, came to nothing.
    pub(super) fn failed(&mut self, now: Instant, trouble: Trouble) {
        self.counts.failures += 1;
        self.trouble = Some(trouble);
        if trouble != Trouble::Away {
            // Another of that name begins anew.
            (self.facts, self.stream) = (None, None);
        }
        self.still = None;
        self.settle(now, false);
    }

    /// The poll under way was given up.
    pub(super) fn forget(&mut self) {
        self.asking = false;
    }

    /// The connection is back: what is due is due now.
    pub(super) fn back(&mut self) {
        self.ended = None;
        self.step = self.rules.every;
    }

    fn settle(&mut self, now: Instant, changed: bool) {
        self.asking = false;
        self.step = match self.ended {
            Some(_) if !changed => (2 * self.step).min(self.rules.slowest),
            _ => self.rules.every,
        };
        self.ended = Some(now);
    }

    /// What can be pending, going by the stream: servers have told of backlogs that were not there, and of none where
    /// there was one.
    fn believable(&self, facts: &Consumer, stream: Option<Stream>) -> u64 {
        let Some(stream) = stream else {
            return facts.pending;
        };
        let beyond = stream.last.saturating_sub(facts.delivered);
        let most = beyond.min(stream.messages);
        // A stream that grew since the consumer was asked has more; one that shrank before had more.
        let least = match self.stream {
            Some(before) if facts.takes_all => before.least(facts).min(stream.least(facts)),
            _ => 0,
        };
        facts.pending.clamp(least.min(most), most)
    }

    /// The backlog; `None` when nothing was learnt lately.
    pub(super) fn value(&self, now: Instant) -> Option<f64> {
        let known = self.known?;
        let fresh = now.saturating_duration_since(known.at) <= self.rules.max_age;
        fresh.then(|| known.pending.saturating_add(known.ack_pending) as f64)
    }

    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.known?.at))
    }

    /// What is pending and unacknowledged, and what else the server said.
    pub(super) fn known(&self) -> Option<(u64, u64)> {
        self.known.map(|known| (known.pending, known.ack_pending))
    }

    pub(super) fn facts(&self) -> Option<Consumer> {
        self.facts.map(|(_, facts)| facts)
    }

    pub(super) fn state(&self, now: Instant) -> LagState {
        match self.trouble {
            Some(Trouble::Away) => return LagState::Away,
            Some(Trouble::ConsumerMissing) => return LagState::ConsumerMissing,
            Some(Trouble::StreamMissing) => return LagState::StreamMissing,
            None => {}
        }
        let Some(known) = self.known else {
            return LagState::Unknown;
        };
        if known.pending == 0 {
            return match known.ack_pending {
                0 => LagState::Idle,
                _ => LagState::Flowing,
            };
        }
        let recently = |at: Instant| now.saturating_duration_since(at) < self.rules.every;
        let Some((_, facts)) = self.facts else {
            return LagState::Flowing;
        };
        let patience = match facts.is_full() {
            // They may be long at one.
            true => self.rules.every.max(facts.ack_wait),
            false => self.rules.every,
        };
        let still = |since| now.saturating_duration_since(since) >= patience;
        match facts {
            _ if self.still.is_some_and(still) => LagState::Stuck,
            facts if facts.is_full() => LagState::Saturated,
            facts if facts.waiting == 0 && !self.pushed.is_some_and(recently) => LagState::Starving,
            _ => LagState::Flowing,
        }
    }
}

impl Consumer {
    /// Whether as many are unacknowledged as may be.
    fn is_full(&self) -> bool {
        self.max_ack_pending
            .is_some_and(|max| self.ack_pending >= max)
    }
}

impl Stream {
    /// How many messages are surely beyond those handed out: all that cannot be among them.
    fn least(&self, facts: &Consumer) -> u64 {
        let before = (facts.delivered + 1).saturating_sub(self.first);
        self.messages.saturating_sub(before)
    }
}

impl LagState {
    /// Every state.
    pub(super) const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Idle,
        Self::Flowing,
        Self::Starving,
        Self::Saturated,
        Self::Stuck,
        Self::ConsumerMissing,
        Self::StreamMissing,
        Self::Away,
    ];

    /// The label value: short, stable, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Idle => "idle",
            Self::Flowing => "flowing",
            Self::Starving => "starving",
            Self::Saturated => "saturated",
            Self::Stuck => "stuck",
            Self::ConsumerMissing => "consumer_missing",
            Self::StreamMissing => "stream_missing",
            Self::Away => "away",
        }
    }
}

impl std::fmt::Display for LagState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
