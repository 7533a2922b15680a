//! Which connection is given to whom, and what becomes of it after that.

use super::Core;
use super::conn::{CloseReason, ConnId, Stage};
use super::host::HostId;
use super::waiter::{Answer, Grant, Reused};
use crate::base::clock::Instant;

impl Core {
    /// The best connection to `host` that has room: the HTTP/2 one with the least streams, else the HTTP/1 one used
    /// last. Those whose time is over are closed on the way.
    #[inline]
    pub(super) fn available(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        if !self.hosts[host].multiplexed.is_empty()
            && let Some(conn) = self.least_loaded(now, host)
        {
            return Some(conn);
        }
        loop {
            let conn = self.hosts[host].idle.last()?;
            let entry = &self.conns[conn];
            match entry.stale(now, self.limits.idle_timeout) {
                None if entry.room > 0 => return Some(conn),
                None => return self.behind(now, host),
                Some(reason) => self.close(conn, reason),
            }
        }
    }

    /// The last is an idle HTTP/2 connection whose peer takes no streams at the moment: the HTTP/1 one used last, of a
    /// host that spoke that before.
    #[cold]
    pub(super) fn behind(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        let idle = self.hosts[host].idle.iter(&mut self.conns);
        let idle: Vec<_> = idle.collect();
        idle.into_iter().rev().find(|conn| {
            let conn = &self.conns[*conn];
            conn.room > 0 && conn.stale(now, self.limits.idle_timeout).is_none()
        })
    }

    pub(super) fn least_loaded(&mut self, now: Instant, host: HostId) -> Option<ConnId> {
        loop {
            let conns = &self.conns;
            let with_room = self.hosts[host]
                .multiplexed
                .iter()
                .filter(|conn| conns[**conn].streams < conns[**conn].room);
            let conn = *with_room.min_by_key(|conn| conns[**conn].streams)?;
            match self.conns[conn].stale(now, self.limits.idle_timeout) {
                None => return Some(conn),
                Some(reason) => self.leave(now, conn, reason),
            }
        }
    }

    /// Takes a place on `conn`, which has one.
    #[inline]
    pub(super) fn take(&mut self, now: Instant, conn: ConnId) -> Grant {
        let entry = &mut self.conns[conn];
        let reused = (entry.requests > 0).then_some(match entry.stage {
            Stage::Idle => Reused::IdleSince(entry.idle_since),
            _ => Reused::Busy,
        });
        let host = &mut self.hosts[entry.host];
        let was_idle = entry.stage == Stage::Idle;
        entry.stage = Stage::Busy;
        entry.streams += 1;
        entry.requests += 1;
        host.requests += 1;
        self.counts.requests += 1;
        if reused.is_some() {
            host.reused += 1;
            self.counts.reused += 1;
        }
        let (id, scale) = (entry.host, entry.streams == entry.scale_at);
        let last = entry.requests >= self.limits.requests;
        if was_idle {
            host.idle.remove(&mut self.conns, conn);
            self.idle.remove(&mut self.conns, conn);
        }
        let few = was_idle && host.idle.len() < self.limits.min_idle;
        if last {
            self.leave(now, conn, CloseReason::MaxRequests);
        } else if scale || few {
            self.want(now, id);
        }
        Grant { conn, reused }
    }

    /// A request on `conn` is over: HTTP/1 is ready for the next, or a stream of HTTP/2 ended. When it was not `used`
    /// nothing of it was ever sent.
    #[inline]
    pub(in crate::middleware::pool) fn free(&mut self, now: Instant, conn: ConnId, used: bool) {
        let Some(entry) = self.conns.get_mut(conn) else {
            return;
        };
        if entry.stage != Stage::Busy || entry.streams == 0 {
            return;
        }
        entry.streams -= 1;
        if !used {
            entry.requests -= 1;
        }
        let (id, leaving) = (entry.host, entry.leaving);
        let streams = entry.streams;
        if used {
            self.hosts[id].wasted = 0;
        }
        match (streams, leaving) {
            (0, Some(reason)) => self.close(conn, reason),
            (0, None) => self.rest(now, conn),
            (_, Some(_)) => {}
            (_, None) if self.hosts[id].waiting.len() > 0 => self.settle(now, id),
            (_, None) => {}
        }
    }

    /// A stream on `conn` is over, but not all that belongs to it. Whether it was the last: then the connection is busy
    /// until it has [`trailed`](Self::trailed).
    pub(in crate::middleware::pool) fn trail(&mut self, now: Instant, conn: ConnId) -> bool {
        let last = self.conns.get_mut(conn);
        match last.filter(|entry| entry.stage == Stage::Busy && entry.streams == 1) {
            Some(entry) => {
                entry.streams = 0;
                let id = entry.host;
                if entry.leaving.is_none() && self.hosts[id].waiting.len() > 0 {
                    self.settle(now, id);
                }
                true
            }
            None => {
                self.free(now, conn, true);
                false
            }
        }
    }

    /// Nothing is left of the streams that ended on `conn`.
    pub(in crate::middleware::pool) fn trailed(&mut self, now: Instant, conn: ConnId) {
        let Some(entry) = self.conns.get(conn) else {
            return;
        };
        if entry.stage != Stage::Busy || entry.streams > 0 {
            return;
        }
        match entry.leaving {
            Some(reason) => self.close(conn, reason),
            None => self.rest(now, conn),
        }
    }

    /// Whether `conn` has nothing to do.
    pub(in crate::middleware::pool) fn idles(&self, conn: ConnId) -> bool {
        let conn = self.conns.get(conn);
        conn.is_some_and(|conn| conn.stage == Stage::Idle)
    }

    /// `conn` has nothing to do: somebody who waits gets it, or it idles, or it is one too many.
    #[inline]
    pub(super) fn rest(&mut self, now: Instant, conn: ConnId) {
        let entry = &mut self.conns[conn];
        entry.stage = Stage::Idle;
        entry.idle_since = now;
        if entry.expires.is_some_and(|at| at <= now) {
            self.close(conn, CloseReason::MaxLifetime);
            return;
        }
        let id = entry.host;
        let host = &mut self.hosts[id];
        if self.conns.len() - self.closing > self.limits.connections
            || host.live + host.dialling > self.limits.per_host
        {
            // The limits were lowered.
            self.close(conn, CloseReason::Surplus);
            return;
        }
        // A new one is for who waited for it.
        let used = self.conns[conn].requests > 0;
        if used && self.starved.len() > 0 && self.yields(now, id) {
            self.close(conn, CloseReason::Evicted);
            return;
        }
        let host = &mut self.hosts[id];
        host.idle.push_back(&mut self.conns, conn);
        self.idle.push_back(&mut self.conns, conn);
        if host.waiting.len() > 0 {
            self.settle(now, id);
        }
        if self.retired && self.conns[conn].stage == Stage::Idle {
            self.close(conn, CloseReason::Shutdown);
        }
        // As many as came idle, this one: at most one is too many of the host, and one of all.
        let host = &self.hosts[id];
        if host.idle.len() > self.limits.idle_per_host
            && let Some(oldest) = host.idle.first()
        {
            self.close(oldest, CloseReason::Surplus);
        }
        if self.idle.len() > self.limits.idle
            && let Some(oldest) = self.idle.first()
        {
            self.close(oldest, CloseReason::Surplus);
        }
        if self.starved.len() > 0 {
            self.feed(now);
        }
        // An older one has set the alarm already, unless who heard it is gone.
        let at = match self.alarm() {
            None => self.next(),
            Some(_) if self.idle.first() == Some(conn) => now.checked_add(self.limits.idle_timeout),
            Some(_) => None,
        };
        if let Some(at) = at {
            self.alarm_at(at);
        }
    }

    /// Serves whoever waits for `host` in order, as far as there is something to give, and dials for the rest.
    pub(super) fn settle(&mut self, now: Instant, host: HostId) {
        // What is missing is known when all is given.
        self.settling = true;
        while let Some(waiter) = self.hosts[host].waiting.first() {
            let Some(conn) = self.available(now, host) else {
                break;
            };
            let grant = self.take(now, conn);
            self.answer(waiter, Answer::Granted(grant));
        }
        self.settling = false;
        self.want(now, host);
        self.unwanted(host);
    }
}
