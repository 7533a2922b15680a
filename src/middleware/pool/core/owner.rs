//! What the owner of the pool asks for.

use super::conn::{CloseReason, Conn, ConnId, Stage};
use super::host::HostId;
use super::waiter::Answer;
use super::{Core, Limits};
use crate::base::clock::Instant;

impl Core {
    /// Closes what is idle. How many that were.
    pub(in crate::middleware::pool) fn close_idle(&mut self) -> usize {
        let mut closed = 0;
        while let Some(conn) = self.idle.first() {
            self.close(conn, CloseReason::Asked);
            closed += 1;
        }
        closed
    }

    /// Other limits from now on: what is idle beyond them closes, what is busy beyond them closes when it is done.
    pub(in crate::middleware::pool) fn limit(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Limits),
    ) {
        change(&mut self.limits);
        while self.conns.len() - self.closing > self.limits.connections
            || self.idle.len() > self.limits.idle
        {
            let Some(conn) = self.idle.first() else {
                break;
            };
            self.close(conn, CloseReason::Surplus);
        }
        for host in self.hosts.ids() {
            while self.hosts[host].idle.len() > self.limits.idle_per_host
                || self.hosts[host].live + self.hosts[host].dialling > self.limits.per_host
            {
                let Some(conn) = self.hosts[host].idle.first() else {
                    break;
                };
                self.close(conn, CloseReason::Surplus);
            }
            self.want(now, host);
        }
    }

    /// Replaces the connections of `host`: idle ones close, busy ones drain. How many that were.
    pub(in crate::middleware::pool) fn refresh(&mut self, now: Instant, host: HostId) -> usize {
        let of_host =
            |(id, conn): (ConnId, &Conn)| (conn.host == host && conn.live()).then_some(id);
        let conns: Vec<_> = self.conns.iter().filter_map(of_host).collect();
        if let Some(host) = self.hosts.get_mut(host) {
            host.failures = 0;
            host.retry_at = None;
        }
        for conn in &conns {
            self.leave(now, *conn, CloseReason::Asked);
        }
        if self.hosts.get(host).is_some() {
            self.want(now, host);
        }
        conns.len()
    }

    /// Nobody holds the pool any more. Who waits is still served, and what is not needed for that closes.
    pub(in crate::middleware::pool) fn retire(&mut self) {
        self.retired = true;
        while let Some(conn) = self.idle.first() {
            self.close(conn, CloseReason::Shutdown);
        }
        for host in self.hosts.ids() {
            for waiter in std::mem::take(&mut self.hosts[host].warming) {
                self.answer(waiter, Answer::Closed);
            }
        }
        for conn in self.conns.ids() {
            let entry = &self.conns[conn];
            if entry.stage == Stage::Dialling && self.hosts[entry.host].waiting.len() == 0 {
                self.close(conn, CloseReason::Shutdown);
            }
        }
    }

    /// Shuts down: who waits is told so, idle connections and dials close, busy ones drain.
    pub(in crate::middleware::pool) fn shut(&mut self, now: Instant) {
        self.closed = true;
        self.retire();
        for waiter in self.waiters.ids() {
            if self.waiters[waiter].answer.is_none() {
                self.answer(waiter, Answer::Closed);
                self.forget(self.waiters[waiter].host);
            }
        }
        for conn in self.conns.ids() {
            match self.conns[conn].stage {
                Stage::Dialling => self.close(conn, CloseReason::Shutdown),
                _ => self.leave(now, conn, CloseReason::Shutdown),
            }
        }
    }
}
