use std::time::Duration;

use super::core::{CloseReason, HostView};
use super::shared::Shared;

/// The numbers of a pool at one moment.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that hold a slot, whatever their state.
    pub open: u64,
    /// Of those: being made.
    pub dialling: u64,
    /// Of those: with nothing to do.
    pub idle: u64,
    /// Of those: carrying requests.
    pub active: u64,
    /// Of those: carrying their last requests.
    pub draining: u64,
    /// Of those: told to close, the socket not yet gone.
    pub closing: u64,
    /// Of those: speaking HTTP/2.
    pub http2: u64,
    /// Requests on connections.
    pub streams: u64,
    /// Requests that wait for a connection.
    pub waiting: u64,
    /// Hosts that are known, with something open or not.
    pub hosts: u64,
    /// The most connections that were ever open.
    pub peak_open: u64,
    /// How many may be.
    pub max_connections: u64,
    /// How many may be to one host.
    pub max_per_host: u64,
    /// Requests that got a connection.
    pub requests: u64,
    /// Of those: one that had carried others.
    pub reused: u64,
    /// Dials begun.
    pub dials: u64,
    /// Dials that succeeded.
    pub connects_ok: u64,
    /// Dials that failed.
    pub connects_failed: u64,
    /// Dials that took too long.
    pub connects_timed_out: u64,
    /// Requests tried again that were never sent.
    pub retried: u64,
    /// Requests refused since too many waited.
    pub rejected_queue_full: u64,
    /// Requests that waited too long.
    pub rejected_timeout: u64,
    /// Requests refused since the host was not to be dialled yet.
    pub rejected_backing_off: u64,
    /// Requests refused since the pool shut down.
    pub rejected_closed: u64,
    /// How long the phases of dials took that succeeded, `total` among them, and how long requests waited that did not
    /// find a connection at once (`wait`).
    pub phases: Vec<PhaseStats>,
    pub(super) closed: [u64; 12],
}

/// How long one phase took, since the pool was built.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PhaseStats {
    /// `wait`, `dns`, `connect`, `tls`, `handshake` or `total`.
    pub phase: &'static str,
    /// How often it was gone through.
    pub count: u64,
    /// How long it took on average.
    pub mean: Duration,
}

/// The numbers of one host at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostStats {
    /// `scheme://name:port`.
    pub host: String,
    /// Connections that hold a slot, whatever their state.
    pub open: u64,
    /// Of those: being made.
    pub dialling: u64,
    /// Of those: with nothing to do.
    pub idle: u64,
    /// Of those: carrying requests.
    pub active: u64,
    /// Of those: carrying their last requests.
    pub draining: u64,
    /// Of those: told to close, the socket not yet gone.
    pub closing: u64,
    /// Requests on connections.
    pub streams: u64,
    /// Requests that wait for a connection.
    pub waiting: u64,
    /// Requests that got a connection.
    pub requests: u64,
    /// Of those: one that had carried others.
    pub reused: u64,
    /// How old the oldest connection is.
    pub oldest: Option<Duration>,
    /// Why the last dial failed that did.
    pub last_error: Option<String>,
    /// How long until the host may be dialled again.
    pub retry_in: Option<Duration>,
}

impl Stats {
    pub(super) fn of<B: 'static>(shared: &Shared<B>) -> Self {
        let locked = shared.lock();
        let (counts, gauges) = (locked.core.counts(), locked.core.gauges());
        let limits = &locked.core.limits;
        let (max_connections, max_per_host) = (limits.connections as u64, limits.per_host as u64);
        let hosts = locked.core.known() as u64;
        drop(locked);
        Self {
            open: gauges.open,
            dialling: gauges.dialling,
            idle: gauges.idle,
            active: gauges.active,
            draining: gauges.draining,
            closing: gauges.closing,
            http2: gauges.http2,
            streams: gauges.streams,
            waiting: gauges.waiting,
            hosts,
            peak_open: counts.peak,
            max_connections,
            max_per_host,
            requests: counts.requests,
            reused: counts.reused,
            dials: counts.dials,
            connects_ok: counts.connected,
            connects_failed: counts.connects_failed,
            connects_timed_out: counts.connects_timed_out,
            retried: shared.measures.retries(),
            rejected_queue_full: counts.rejected_queue_full,
            rejected_timeout: counts.rejected_timeout,
            rejected_backing_off: counts.rejected_backing_off,
            rejected_closed: counts.rejected_closed,
            phases: shared.measures.phases(),
            closed: counts.closed,
        }
    }

    /// How many connections are gone for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// The part of all requests that got a connection that had carried others; 0 before the first.
    pub fn reuse_ratio(&self) -> f64 {
        match self.requests {
            0 => 0.0,
            requests => self.reused as f64 / requests as f64,
        }
    }
}

impl HostStats {
    /// The part of its requests that got a connection that had carried others; 0 before the first.
    pub fn reuse_ratio(&self) -> f64 {
        match self.requests {
            0 => 0.0,
            requests => self.reused as f64 / requests as f64,
        }
    }

    pub(super) fn of(view: HostView) -> Self {
        Self {
            host: view.uri.to_string().trim_end_matches('/').to_owned(),
            open: view.gauges.open,
            dialling: view.gauges.dialling,
            idle: view.gauges.idle,
            active: view.gauges.active,
            draining: view.gauges.draining,
            closing: view.gauges.closing,
            streams: view.gauges.streams,
            waiting: view.gauges.waiting,
            requests: view.requests,
            reused: view.reused,
            oldest: view.oldest,
            last_error: view
                .last_error
                .map(|cause| format!("{} at {}", cause.error, cause.phase)),
            retry_in: view.retry_in,
        }
    }
}
