//! What happens to connections: they are made, limited, lost.

use std::sync::Arc;
use std::time::Duration;

use super::conn::{CloseReason, ConnId, Stage, Version};
use super::host::HostId;
use super::waiter::Answer;
use super::{Action, Cause, Core, Gone, SHORTEST};
use crate::base::clock::Instant;
use crate::base::phases::Phase;

/// The shortest pause after a connection was lost before anybody had used it.
const REFILL: Duration = Duration::from_millis(100);

/// As good as for ever, and within what a clock can add.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);

impl Core {
    /// A dial succeeded, with `room` for so many streams at a time.
    pub(in crate::middleware::pool) fn connected(
        &mut self,
        now: Instant,
        conn: ConnId,
        version: Version,
        room: usize,
    ) {
        let chance = self.chance();
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Dialling {
            return;
        }
        self.counts.connected += 1;
        let id = entry.host;
        let host = &mut self.hosts[id];
        host.dialling -= 1;
        self.dialling -= 1;
        host.latest_dial.take_if(|latest| *latest == conn);
        host.live += 1;
        host.failures = 0;
        host.retry_at = None;
        host.version = Some(version);
        entry.version = version;
        entry.since = now;
        entry.room = 1;
        if version == Version::Http2 {
            entry.room = room.min(self.limits.streams);
            entry.scale_at = scale(entry.room, self.limits.scale_at);
            host.streams = Some(entry.room);
            host.multiplexed.push(conn);
        }
        let lifetime = self.limits.lifetime;
        let life = lifetime.map(|(life, jitter)| part(life, 1.0 - jitter * chance));
        let life = life.map(|life| life.max(SHORTEST));
        if let Some(at) = life.and_then(|life| now.checked_add(life)) {
            entry.expires = Some(at);
            self.expiring.insert(at, conn);
            self.alarm_at(at);
        }
        self.rest(now, conn);
        self.settle(now, id);
        self.warmed(id);
    }

    /// The peer takes `room` streams at a time from now on.
    pub(in crate::middleware::pool) fn limited(&mut self, now: Instant, conn: ConnId, room: usize) {
        let most = self.limits.streams;
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.version != Version::Http2 {
            return;
        }
        entry.room = room.min(most);
        entry.scale_at = scale(entry.room, self.limits.scale_at);
        let host = entry.host;
        self.hosts[host].streams = Some(entry.room);
        if self.hosts[host].waiting.len() > 0 {
            self.settle(now, host);
        }
    }

    /// A dial failed. [`Core::gone`] follows.
    pub(in crate::middleware::pool) fn failed(
        &mut self,
        now: Instant,
        conn: ConnId,
        cause: Arc<Cause>,
    ) {
        let chance = self.chance();
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Dialling {
            return;
        }
        match cause.timed_out {
            true => self.counts.connects_timed_out += 1,
            false => self.counts.connects_failed += 1,
        }
        entry.stage = Stage::Closing;
        entry.leaving = Some(CloseReason::Dial);
        self.closing += 1;
        let id = entry.host;
        let host = &mut self.hosts[id];
        host.dialling -= 1;
        self.dialling -= 1;
        host.latest_dial.take_if(|latest| *latest == conn);
        if let Some(old) = host.last_error.replace(cause.clone()) {
            self.actions.push(Action::Discard(old));
        }
        // Dials that failed together are one failure.
        if host.retry_at.is_none_or(|at| at <= now) {
            let (least, most) = self.limits.backoff;
            let pause = least.saturating_mul(1 << host.failures.min(20)).min(most);
            let pause = pause.min(FOR_EVER);
            // Whoever waits has other connections to wait for: no hurry, whatever the settings.
            let pause = match host.live {
                0 => pause,
                _ => pause.max(REFILL),
            };
            host.failures = host.failures.saturating_add(1);
            if !pause.is_zero()
                && let Some(at) = now.checked_add(part(pause, 1.0 - 0.2 * chance))
            {
                host.retry_at = Some(at);
                self.alarms.retry(at, id);
                self.alarm_at(at);
            }
            if pause.is_zero() {
                self.pause_refill(now, id);
            }
        }
        let host = &self.hosts[id];
        if host.dialling == 0 {
            let warming = host.warming.clone();
            let hopeless = host.live == 0;
            for waiter in warming {
                self.answer(waiter, Answer::Failed(cause.clone()));
            }
            while let Some(waiter) = self.hosts[id].waiting.first().filter(|_| hopeless) {
                self.answer(waiter, Answer::Failed(cause.clone()));
            }
        }
        self.want(now, id);
    }

    /// `conn` takes no more requests and closes with its last.
    pub(in crate::middleware::pool) fn leave(
        &mut self,
        now: Instant,
        conn: ConnId,
        reason: CloseReason,
    ) {
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        match entry.stage {
            Stage::Idle => self.close(conn, reason),
            Stage::Busy if entry.leaving.is_none() => {
                entry.leaving = Some(reason);
                let id = entry.host;
                let host = &mut self.hosts[id];
                host.live -= 1;
                host.draining += 1;
                host.multiplexed.retain(|other| *other != conn);
                self.want(now, id);
            }
            Stage::Dialling | Stage::Busy | Stage::Closing => {}
        }
    }

    /// Closes `conn`, on which nothing runs.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let entry = &mut self.conns[conn];
        let host = &mut self.hosts[entry.host];
        match entry.stage {
            Stage::Dialling => {
                host.dialling -= 1;
                self.dialling -= 1;
            }
            Stage::Busy if entry.leaving.is_some() => host.draining -= 1,
            Stage::Idle | Stage::Busy => host.live -= 1,
            Stage::Closing => return,
        }
        entry.stage = Stage::Closing;
        entry.leaving = Some(reason);
        host.multiplexed.retain(|other| *other != conn);
        host.idle.remove(&mut self.conns, conn);
        self.idle.remove(&mut self.conns, conn);
        self.closing += 1;
        self.actions.push(Action::Close(conn));
    }

    /// The socket of `conn` is no more. `reason` is why, unless the core knows better. What there is to tell of it.
    pub(in crate::middleware::pool) fn gone(
        &mut self,
        now: Instant,
        conn: ConnId,
        reason: CloseReason,
    ) -> Option<Gone> {
        let entry = self.conns.get(conn)?;
        if entry.stage == Stage::Dialling {
            let cause = Cause {
                phase: Phase::Connect,
                timed_out: false,
                error: "the dial was dropped: its connector panicked, or its runtime shut down"
                    .into(),
            };
            self.failed(now, conn, Arc::new(cause));
        }
        let entry = &self.conns[conn];
        let (id, expires) = (entry.host, entry.expires);
        let host = &mut self.hosts[id];
        match entry.stage {
            Stage::Closing => self.closing -= 1,
            Stage::Busy if entry.leaving.is_some() => host.draining -= 1,
            Stage::Idle | Stage::Busy | Stage::Dialling => host.live -= 1,
        }
        let wasted = entry.requests == 0 && entry.live();
        host.open -= 1;
        host.multiplexed.retain(|other| *other != conn);
        host.idle.remove(&mut self.conns, conn);
        self.idle.remove(&mut self.conns, conn);
        if let Some(at) = expires {
            self.expiring.remove(at, conn);
        }
        let entry = self.conns.remove(conn)?;
        let gone = Gone {
            reason: entry.leaving.unwrap_or(reason),
            requests: entry.requests,
            established: entry.room > 0 || entry.version == Version::Http2,
            since: entry.since,
        };
        self.counts.closed[gone.reason as usize] += 1;
        if wasted {
            self.pause_refill(now, id);
        }
        self.settle(now, id);
        self.warmed(id);
        self.feed(now);
        self.forget(id);
        Some(gone)
    }

    /// A connection to a host was lost that nobody had used, or could not be made. Another to have in hand would likely
    /// come to the same, so the next is not dialled at once.
    fn pause_refill(&mut self, now: Instant, id: HostId) {
        let (least, most) = self.limits.backoff;
        let host = &mut self.hosts[id];
        let pause = least.max(REFILL).saturating_mul(1 << host.wasted.min(20));
        host.wasted = host.wasted.saturating_add(1);
        host.refill_at = now.checked_add(pause.min(most.max(REFILL)));
        if let Some(at) = host.refill_at {
            self.alarms.retry(at, id);
            self.alarm_at(at);
        }
    }
}

/// A part of `whole`, which may be for ever.
fn part(whole: Duration, part: f64) -> Duration {
    Duration::try_from_secs_f64(whole.as_secs_f64() * part).unwrap_or(whole)
}

/// From how many streams of `room` on another connection is wanted.
pub(super) fn scale(room: usize, at: f64) -> usize {
    match room {
        // Nobody counts that far.
        room if room > u32::MAX as usize => usize::MAX,
        room => ((room as f64 * at).ceil() as usize).max(1),
    }
}
