//! What happens because time passes: one alarm for all of it.

use std::collections::BTreeSet;

use super::conn::ConnId;
use super::host::HostId;
use super::waiter::{Answer, Wants};
use super::{Action, CloseReason, Core};
use crate::base::clock::Instant;

/// Connections in the order of the ends of their lifetimes.
#[derive(Debug, Default)]
pub(super) struct Expiring(BTreeSet<(Instant, ConnId)>);

/// When time must be looked at again.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    next: Option<Instant>,
    /// Hosts whose pause after a failed dial ends then.
    retries: BTreeSet<(Instant, HostId)>,
}

impl Expiring {
    pub(super) fn insert(&mut self, at: Instant, conn: ConnId) {
        self.0.insert((at, conn));
    }

    pub(super) fn remove(&mut self, at: Instant, conn: ConnId) {
        self.0.remove(&(at, conn));
    }

    #[cfg(all(test, not(tower_flow_loom)))]
    pub(super) fn holds(&self, at: Instant, conn: ConnId) -> bool {
        self.0.contains(&(at, conn))
    }
}

impl Alarms {
    pub(super) fn disarm(&mut self) {
        self.next = None;
    }

    pub(super) fn retry(&mut self, at: Instant, host: HostId) {
        self.retries.insert((at, host));
    }
}

impl Core {
    /// When [`Core::expire`] has something to do, if ever.
    pub(in crate::middleware::pool) fn alarm(&self) -> Option<Instant> {
        self.alarms.next
    }

    pub(super) fn alarm_at(&mut self, at: Instant) {
        if self.alarms.next.is_none_or(|next| at < next) {
            self.alarms.next = Some(at);
            self.actions.push(Action::Alarm);
        }
    }

    /// Looks at the time: waiters that waited long enough, connections that idled or lived long enough, hosts that may
    /// be tried again. Afterwards [`Core::alarm`] is when to come back.
    pub(in crate::middleware::pool) fn expire(&mut self, now: Instant) {
        while let Some(waiter) = self.by_deadline.first() {
            let entry = &self.waiters[waiter];
            if entry.deadline.is_none_or(|at| at > now) {
                break;
            }
            let (host, wants) = (entry.host, entry.wants);
            match wants {
                Wants::Connection => {
                    self.counts.rejected_timeout += 1;
                    let entry = &self.hosts[host];
                    let (dial, open) = (entry.latest_dial, entry.open);
                    let total = self.conns.len();
                    self.answer(waiter, Answer::TimedOut { dial, open, total });
                }
                Wants::Open(_) => {
                    let open = self.hosts[host].live;
                    self.answer(waiter, Answer::Open(open));
                }
            }
            self.unwanted(host);
            self.forget(host);
        }
        while let Some(conn) = self.idle.first() {
            let entry = &self.conns[conn];
            if now.saturating_duration_since(entry.idle_since) < self.limits.idle_timeout {
                break;
            }
            let host = &mut self.hosts[entry.host];
            if !self.retired && host.idle.len() <= self.limits.min_idle {
                // One of those to keep: its time begins anew.
                self.conns[conn].idle_since = now;
                host.idle.remove(&mut self.conns, conn);
                host.idle.push_back(&mut self.conns, conn);
                self.idle.remove(&mut self.conns, conn);
                self.idle.push_back(&mut self.conns, conn);
            } else {
                self.close(conn, CloseReason::IdleTimeout);
            }
        }
        while let Some((at, conn)) = self.expiring.0.first().copied()
            && at <= now
        {
            self.expiring.0.remove(&(at, conn));
            self.leave(now, conn, CloseReason::MaxLifetime);
        }
        while let Some((at, host)) = self.alarms.retries.first().copied()
            && at <= now
        {
            self.alarms.retries.remove(&(at, host));
            if self.hosts.get(host).is_some() {
                self.want(now, host);
            }
        }
        self.alarms.next = self.next();
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let waiter = self.by_deadline.first();
        let waiter = waiter.and_then(|waiter| self.waiters[waiter].deadline);
        let idle = self.idle.first().and_then(|conn| {
            let since = self.conns[conn].idle_since;
            since.checked_add(self.limits.idle_timeout)
        });
        let expiring = self.expiring.0.first().map(|(at, _)| *at);
        let retry = self.alarms.retries.first().map(|(at, _)| *at);
        [waiter, idle, expiring, retry].into_iter().flatten().min()
    }
}
