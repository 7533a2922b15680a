//! Who asks for a connection, and who waits for one.

use std::task::{Poll, Waker};

use super::host::HostId;
use super::waiter::{Answer, Waiter, WaiterId, Wants};
use super::{Acquired, Action, Core, Refusal};
use crate::base::clock::Instant;

impl Core {
    /// Asks for a place on a connection to `host`. Who was `before` and lost its connection before it could use it
    /// stands in front of all others.
    #[inline]
    pub(in crate::middleware::pool) fn acquire(
        &mut self,
        now: Instant,
        host: HostId,
        before: bool,
        waker: impl FnOnce() -> Waker,
    ) -> Acquired {
        if self.closed {
            self.counts.rejected_closed += 1;
            return Acquired::Refused(Refusal::Closed);
        }
        match self.available(now, host) {
            Some(conn) => Acquired::Granted(self.take(now, conn)),
            None => self.queue(now, host, before, waker()),
        }
    }

    pub(super) fn queue(
        &mut self,
        now: Instant,
        host: HostId,
        before: bool,
        waker: Waker,
    ) -> Acquired {
        if let Some(refusal) = self.refusal(now, host, before) {
            match refusal {
                Refusal::Full { .. } => self.counts.rejected_queue_full += 1,
                Refusal::BackingOff { .. } => self.counts.rejected_backing_off += 1,
                Refusal::Closed => self.counts.rejected_closed += 1,
            }
            self.forget(host);
            return Acquired::Refused(refusal);
        }
        let waiter = self.enlist(now, host, Wants::Connection, waker);
        let line = &mut self.hosts[host].waiting;
        match before {
            true => line.push_front(&mut self.waiters, waiter),
            false => line.push_back(&mut self.waiters, waiter),
        }
        self.want(now, host);
        Acquired::Queued(waiter)
    }

    pub(super) fn refusal(&self, now: Instant, id: HostId, before: bool) -> Option<Refusal> {
        let host = &self.hosts[id];
        let hopeless = host.live == 0 && host.dialling == 0;
        if hopeless
            && let Some(until) = host.retry_at.filter(|at| *at > now)
            && let Some(cause) = host.last_error.clone()
        {
            return Some(Refusal::BackingOff { until, cause });
        }
        // Whom a dial under way will serve is not pending (Envoy#11326), nor whom one will that begins for it.
        let covered = host.dialling.saturating_mul(host.per_dial());
        let pending = host.waiting.len().saturating_sub(covered);
        let full = pending >= self.limits.pending && !before && !self.dials_for_another(now, id);
        full.then_some(Refusal::Full { pending })
    }

    /// Asks for `target` open connections to `host`, or as many as the limits allow.
    pub(in crate::middleware::pool) fn warm(
        &mut self,
        now: Instant,
        host: HostId,
        target: usize,
        waker: Waker,
    ) -> Acquired {
        if self.closed {
            return Acquired::Refused(Refusal::Closed);
        }
        let limits = &self.limits;
        let most = limits.per_host.min(limits.connections);
        let most = most.min(limits.idle_per_host).min(limits.idle);
        if let Some(refusal @ Refusal::BackingOff { .. }) = self.refusal(now, host, true) {
            return Acquired::Refused(refusal);
        }
        let waiter = self.enlist(now, host, Wants::Open(target.min(most)), waker);
        self.hosts[host].warming.push(waiter);
        self.want(now, host);
        self.warmed(host);
        Acquired::Queued(waiter)
    }

    pub(super) fn enlist(
        &mut self,
        now: Instant,
        host: HostId,
        wants: Wants,
        waker: Waker,
    ) -> WaiterId {
        self.forgotten.remove(&mut self.hosts, host);
        let deadline = now.checked_add(self.limits.acquire);
        let waiter = self.waiters.insert(Waiter {
            host,
            wants,
            deadline,
            answer: None,
            waker,
            in_line: Default::default(),
            by_deadline: Default::default(),
        });
        self.by_deadline.push_back(&mut self.waiters, waiter);
        if let Some(deadline) = deadline {
            self.alarm_at(deadline);
        }
        waiter
    }

    /// A waiter asks for its answer; once it has it, it is a waiter no more. Till then it leaves `waker` and gets back the
    /// one it left before: wakers are foreign code, and not dropped here.
    pub(in crate::middleware::pool) fn poll(
        &mut self,
        waiter: WaiterId,
        waker: &mut Waker,
    ) -> Poll<Answer> {
        let Some(entry) = self.waiters.get_mut(waiter) else {
            return Poll::Ready(Answer::Closed);
        };
        match entry.answer.take() {
            Some(answer) => {
                self.waiters.remove(waiter);
                Poll::Ready(answer)
            }
            None => {
                std::mem::swap(&mut entry.waker, waker);
                Poll::Pending
            }
        }
    }

    /// A waiter leaves. What it was granted and did not take goes to the next. What is left of it is foreign code, to be
    /// dropped outside the lock.
    pub(in crate::middleware::pool) fn cancel(
        &mut self,
        now: Instant,
        waiter: WaiterId,
    ) -> Option<Waiter> {
        let entry = self.waiters.get(waiter)?;
        // One with its answer is in no list, and its host may be forgotten.
        if entry.answer.is_none() {
            self.unlist(waiter);
        }
        let entry = self.waiters.remove(waiter)?;
        match entry.answer {
            Some(Answer::Granted(grant)) => self.free(now, grant.conn, false),
            _ => {
                self.unwanted(entry.host);
                self.forget(entry.host);
            }
        }
        Some(entry)
    }

    /// Takes a waiter out of every list.
    pub(super) fn unlist(&mut self, waiter: WaiterId) {
        self.by_deadline.remove(&mut self.waiters, waiter);
        let entry = &self.waiters[waiter];
        let host = &mut self.hosts[entry.host];
        match entry.wants {
            Wants::Connection => host.waiting.remove(&mut self.waiters, waiter),
            Wants::Open(_) => host.warming.retain(|id| *id != waiter),
        }
    }

    pub(super) fn answer(&mut self, waiter: WaiterId, answer: Answer) {
        self.unlist(waiter);
        let entry = &mut self.waiters[waiter];
        entry.answer = Some(answer);
        let waker = std::mem::replace(&mut entry.waker, Waker::noop().clone());
        self.actions.push(Action::Wake(waker));
    }
}
