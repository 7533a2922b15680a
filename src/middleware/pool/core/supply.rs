//! Which dials begin: as many as are needed and allowed, host after host.

use super::conn::{Conn, Stage, Version};
use super::host::HostId;
use super::waiter::{Answer, Wants};
use super::{Action, CloseReason, Core};
use crate::base::clock::Instant;

/// How many dials a host needs now, within its own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// For those who wait: another host's idle connection goes for them.
    pub(super) waiting: usize,
    /// To have some in hand: only while there is room.
    pub(super) spare: usize,
}

/// How many starved hosts are looked at before a connection is given to a waiter of its own host.
const LOOKED_AT: usize = 64;

impl Core {
    /// Dials for `host`, or puts it among the starved.
    pub(super) fn want(&mut self, now: Instant, host: HostId) {
        if self.settling {
            return;
        }
        let need = self.need(now, host);
        if need.waiting + need.spare > 0 {
            self.starved.push_back(&mut self.hosts, host);
            self.feed(now);
        }
    }

    pub(super) fn need(&self, now: Instant, id: HostId) -> Need {
        self.need_of(now, id, self.hosts[id].waiting.len())
    }

    /// Whether one more waiter for `id` would get a dial of its own.
    pub(super) fn dials_for_another(&self, now: Instant, id: HostId) -> bool {
        let room = self.conns.len() < self.limits.connections || self.idle.len() > 0;
        let more = self.hosts[id].waiting.len() + 1;
        room && self.need_of(now, id, more).waiting > 0
    }

    fn need_of(&self, now: Instant, id: HostId, waiting: usize) -> Need {
        let none = Need {
            waiting: 0,
            spare: 0,
        };
        let (limits, host) = (&self.limits, &self.hosts[id]);
        if self.closed || host.retry_at.is_some_and(|at| at > now) {
            return none;
        }
        // One at a time while nobody knows what the host speaks, and one to see whether it is back.
        let abreast = match host.version.is_none() || host.failures > 0 {
            true => 1.min(limits.connecting),
            false => limits.connecting,
        };
        let most = limits
            .per_host
            .saturating_add(host.draining.min(limits.draining_allowance));
        let allowed = abreast
            .saturating_sub(host.dialling)
            .min(most.saturating_sub(host.open));
        if allowed == 0 {
            return none;
        }
        let for_waiting = waiting.div_ceil(host.per_dial());
        let waiting = for_waiting.saturating_sub(host.dialling).min(allowed);
        let in_hand = host.dialling.saturating_sub(for_waiting);
        let spare = match host.refill_at.is_some_and(|at| at > now) {
            true => 0,
            false => self.spare(id).saturating_sub(in_hand),
        };
        Need {
            waiting,
            spare: spare.min(allowed - waiting),
        }
    }

    /// How many connections `host` lacks beside those for whom somebody waits.
    fn spare(&self, id: HostId) -> usize {
        let host = &self.hosts[id];
        if self.retired {
            return 0;
        }
        let multiplexed = host.version == Some(Version::Http2);
        let warm = host.warming.iter().map(|waiter| {
            let Wants::Open(target) = self.waiters[*waiter].wants else {
                return 0;
            };
            target.saturating_sub(host.live)
        });
        let there = if multiplexed {
            host.live
        } else {
            host.idle.len()
        };
        let idle = self.limits.min_idle.saturating_sub(there);
        let full = multiplexed
            && !host.multiplexed.is_empty()
            && host.multiplexed.iter().all(|conn| {
                let conn: &Conn = &self.conns[*conn];
                conn.streams >= conn.scale_at
            });
        // What would close as one idle too many is not dialled: it would be missing again at once.
        let elsewhere = self.idle.len() + self.dialling - host.dialling;
        let of_all = self.limits.idle.saturating_sub(elsewhere);
        let of_host = self.limits.idle_per_host.saturating_sub(host.idle.len());
        let lacking = warm.max().unwrap_or(0).max(idle).max(usize::from(full));
        lacking.min(of_host).min(of_all)
    }

    /// Gives free slots to the starved in turn, and closes what is idle elsewhere when there are none.
    pub(super) fn feed(&mut self, now: Instant) {
        while let Some(host) = self.starved.first() {
            let need = self.need(now, host);
            if self.conns.len() < self.limits.connections && need.waiting + need.spare > 0 {
                self.dial(now, host);
                self.starved.remove(&mut self.hosts, host);
                self.starved.push_back(&mut self.hosts, host);
                continue;
            }
            if need.waiting == 0 {
                self.starved.remove(&mut self.hosts, host);
                continue;
            }
            // Full. What closes already feeds the first of them.
            if self.closing >= self.lacking(now) || !self.evict() {
                break;
            }
        }
    }

    /// Whether a connection of `id` that has nothing to do is to make room for another host, which has none or fewer than
    /// `id` would have left: while the pool is full, one busy host would else keep what it has for ever. One that has
    /// something to do gives no room before it is done, which of a stream may be never, so it is left alone.
    pub(super) fn yields(&mut self, now: Instant, id: HostId) -> bool {
        if self.conns.len() < self.limits.connections {
            return false;
        }
        let mine = self.hosts[id].live;
        let (mut lacking, mut poorer) = (0, false);
        let mut next = self.starved.first();
        for _ in 0..LOOKED_AT {
            let Some(other) = next else {
                break;
            };
            next = self.starved.after(&mut self.hosts, other);
            if other == id {
                continue;
            }
            let need = self.need(now, other).waiting;
            let theirs = self.hosts[other].open;
            lacking += need;
            poorer |= need > 0 && (theirs == 0 || mine > theirs + 1);
            if poorer && lacking > self.closing {
                // Its own waiters stand behind the others.
                self.starved.remove(&mut self.hosts, id);
                self.starved.push_back(&mut self.hosts, id);
                return true;
            }
        }
        false
    }

    /// Ends the dials to `host` that nobody waits for, once nobody holds the pool.
    pub(super) fn unwanted(&mut self, host: HostId) {
        if !self.retired
            || self
                .hosts
                .get(host)
                .is_none_or(|host| host.dialling == 0 || host.waiting.len() > 0)
        {
            return;
        }
        for conn in self.conns.ids() {
            let entry = &self.conns[conn];
            if entry.host == host && entry.stage == Stage::Dialling {
                self.close(conn, CloseReason::Shutdown);
            }
        }
    }

    fn dial(&mut self, now: Instant, id: HostId) {
        let conn = self.conns.insert(Conn::dialling(id, now));
        let host = &mut self.hosts[id];
        host.open += 1;
        host.dialling += 1;
        self.dialling += 1;
        host.latest_dial = Some(conn);
        self.forgotten.remove(&mut self.hosts, id);
        self.counts.dials += 1;
        self.counts.peak = self.counts.peak.max(self.conns.len() as u64);
        self.actions.push(Action::Dial(conn));
    }

    /// How many slots the starved lack, counted as far as it matters.
    fn lacking(&mut self, now: Instant) -> usize {
        let mut lacking = 0;
        let mut next = self.starved.first();
        while let Some(host) = next
            && lacking <= self.closing
        {
            lacking += self.need(now, host).waiting;
            next = self.starved.after(&mut self.hosts, host);
        }
        lacking
    }

    /// Closes the connection idle for the longest.
    fn evict(&mut self) -> bool {
        let longest = self.idle.first();
        if let Some(conn) = longest {
            self.close(conn, CloseReason::Evicted);
        }
        longest.is_some()
    }

    /// Tells those who wait for connections to be there, when they are or when there can be no more.
    pub(super) fn warmed(&mut self, id: HostId) {
        let host = &self.hosts[id];
        if host.warming.is_empty() {
            return;
        }
        let (live, dialling) = (host.live, host.dialling);
        for waiter in host.warming.clone() {
            let enough =
                matches!(self.waiters[waiter].wants, Wants::Open(target) if live >= target);
            if enough || dialling == 0 {
                self.answer(waiter, Answer::Open(live));
            }
        }
        self.forget(id);
    }
}
