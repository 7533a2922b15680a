//! What the core can tell of itself.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::conn::{Conn, Stage};
use super::host::{Host, HostId};
use super::{Cause, Core};
use crate::base::clock::Instant;

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub(in crate::middleware::pool) struct Counts {
    pub(in crate::middleware::pool) requests: u64,
    pub(in crate::middleware::pool) reused: u64,
    pub(in crate::middleware::pool) dials: u64,
    pub(in crate::middleware::pool) connected: u64,
    pub(in crate::middleware::pool) connects_failed: u64,
    pub(in crate::middleware::pool) connects_timed_out: u64,
    pub(in crate::middleware::pool) rejected_queue_full: u64,
    pub(in crate::middleware::pool) rejected_timeout: u64,
    pub(in crate::middleware::pool) rejected_backing_off: u64,
    pub(in crate::middleware::pool) rejected_closed: u64,
    /// By [`CloseReason`](super::CloseReason).
    pub(in crate::middleware::pool) closed: [u64; 12],
    /// The most that were ever open.
    pub(in crate::middleware::pool) peak: u64,
}

/// What is there now, of one host or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::middleware::pool) struct Gauges {
    pub(in crate::middleware::pool) open: u64,
    pub(in crate::middleware::pool) dialling: u64,
    pub(in crate::middleware::pool) idle: u64,
    pub(in crate::middleware::pool) active: u64,
    pub(in crate::middleware::pool) draining: u64,
    pub(in crate::middleware::pool) closing: u64,
    pub(in crate::middleware::pool) streams: u64,
    pub(in crate::middleware::pool) waiting: u64,
    pub(in crate::middleware::pool) http2: u64,
}

/// One host, now.
#[derive(Debug)]
pub(in crate::middleware::pool) struct HostView {
    pub(in crate::middleware::pool) uri: Uri,
    pub(in crate::middleware::pool) gauges: Gauges,
    pub(in crate::middleware::pool) requests: u64,
    pub(in crate::middleware::pool) reused: u64,
    pub(in crate::middleware::pool) oldest: Option<Duration>,
    pub(in crate::middleware::pool) last_error: Option<Arc<Cause>>,
    /// How long until it may be dialled again.
    pub(in crate::middleware::pool) retry_in: Option<Duration>,
}

impl Gauges {
    fn add(&mut self, conn: &Conn) {
        self.open += 1;
        self.streams += conn.streams as u64;
        self.http2 += u64::from(conn.version == super::Version::Http2);
        *match conn.stage {
            Stage::Dialling => &mut self.dialling,
            Stage::Idle => &mut self.idle,
            Stage::Busy if conn.draining() => &mut self.draining,
            Stage::Busy => &mut self.active,
            Stage::Closing => &mut self.closing,
        } += 1;
    }
}

impl Core {
    pub(in crate::middleware::pool) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    pub(in crate::middleware::pool) fn gauges(&self) -> Gauges {
        let mut gauges = Gauges::default();
        self.conns.iter().for_each(|(_, conn)| gauges.add(conn));
        let waiting = self.hosts.iter().map(|(_, host)| host.waiting.len() as u64);
        gauges.waiting = waiting.sum();
        gauges
    }

    /// How many hosts are known, with something open or not.
    pub(in crate::middleware::pool) fn known(&self) -> usize {
        self.hosts.len()
    }

    /// The hosts where something is open or wanted, or that failed lately; at most `most` of them.
    pub(in crate::middleware::pool) fn views(&self, now: Instant, most: usize) -> Vec<HostView> {
        let busy = |host: &Host| !host.empty() || host.retry_at.is_some_and(|at| at > now);
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .filter_map(|(id, host)| busy(host).then_some(id))
            .take(most)
            .collect();
        // One walk over the connections, whatever the hosts.
        let mut views: Vec<HostView> = hosts.iter().map(|id| self.blank(now, *id)).collect();
        let places: std::collections::BTreeMap<HostId, usize> = hosts
            .iter()
            .enumerate()
            .map(|(place, id)| (*id, place))
            .collect();
        for (_, conn) in self.conns.iter() {
            if let Some(place) = places.get(&conn.host) {
                views[*place].add(now, conn);
            }
        }
        views
    }

    pub(in crate::middleware::pool) fn view(&self, now: Instant, id: HostId) -> HostView {
        let mut view = self.blank(now, id);
        let of_host = self.conns.iter().filter(|(_, conn)| conn.host == id);
        of_host.for_each(|(_, conn)| view.add(now, conn));
        view
    }

    /// How much of what `host` may have is taken, waiters included: 1 when it is all in use and nobody waits.
    pub(in crate::middleware::pool) fn load(&self, id: HostId) -> f64 {
        let host = &self.hosts[id];
        let free: usize = host.idle.len();
        let most = self.limits.per_host.min(self.limits.connections);
        if !host.multiplexed.is_empty() {
            let conns = || host.multiplexed.iter().map(|conn| &self.conns[*conn]);
            let used: usize = conns().map(|conn| conn.streams).sum();
            let per = host.per_dial();
            let room = most.saturating_mul(per);
            return (used + host.waiting.len()) as f64 / room as f64;
        }
        (host.open - free + host.waiting.len()) as f64 / most as f64
    }

    fn blank(&self, now: Instant, id: HostId) -> HostView {
        let host = &self.hosts[id];
        HostView {
            uri: host.uri.clone(),
            gauges: Gauges {
                waiting: host.waiting.len() as u64,
                ..Gauges::default()
            },
            requests: host.requests,
            reused: host.reused,
            oldest: None,
            last_error: host.last_error.clone(),
            retry_in: host
                .retry_at
                .map(|at| at.saturating_duration_since(now))
                .filter(|pause| !pause.is_zero()),
        }
    }
}

impl HostView {
    fn add(&mut self, now: Instant, conn: &Conn) {
        self.gauges.add(conn);
        let age = now.saturating_duration_since(conn.since);
        if conn.stage != Stage::Dialling {
            self.oldest = self.oldest.max(Some(age));
        }
    }
}
