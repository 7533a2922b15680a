use std::sync::Arc;
use std::time::Duration;

use super::connector::ConnectorLayer;
use super::handle::LimitHandle;
use super::paired::RequestLayer;
use super::state::{Options, What};
use crate::base::flow::Flow;

/// Limits the connections of a client that has a pool of its own; see [the module](crate::pool::limit).
///
/// All connectors its layers make, and all their clones, share one limit.
#[derive(Debug, Clone)]
pub struct ConnLimit(Options);

impl ConnLimit {
    /// At most `max` connections in all, 64 of them to one host.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nobody connect.
    pub fn new(max: usize) -> Self {
        Self::default().max_connections(max)
    }

    /// `default` (default), or `name`: what it is called in snapshots and metrics.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        Self(self.0.set(|settings| settings.name = name.into()))
    }

    /// 512 connections in all (default), or `max`: dials and what is being closed included.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nobody connect.
    #[must_use]
    pub fn max_connections(self, max: usize) -> Self {
        let set = self
            .0
            .set_least("max_connections", max, |limits, max| limits.total = max);
        Self(set)
    }

    /// 64 connections to one host (default), or `max`. A host is a scheme, a name and a port.
    ///
    /// With HTTP/2 at least 2: a connection the server has sent away keeps its place until its last stream has ended,
    /// and with 1 nothing could be asked meanwhile.
    ///
    /// # Panics
    ///
    /// When `max` is 0, which would let nobody connect.
    #[must_use]
    pub fn max_connections_per_host(self, max: usize) -> Self {
        let set = self
            .0
            .set_least("max_connections_per_host", max, |limits, max| {
                limits.per_host = max;
            });
        Self(set)
    }

    /// None (default), or so many connections that every host may have even when there are `max_connections` in all.
    ///
    /// A client's pool keeps idle connections, and nobody outside can close them for a host that has none. Where all
    /// requests to some host must not wait for that, a reserve of 1 makes the total a soft one: there may be one
    /// connection more for each host.
    #[must_use]
    pub fn reserve_per_host(self, reserve: usize) -> Self {
        Self(self.0.set(|settings| settings.limits.reserve = reserve))
    }

    /// Five seconds (default), or `timeout`, at most a year: how long a dial waits for its turn.
    #[must_use]
    pub fn acquire_timeout(self, timeout: Duration) -> Self {
        Self(self.0.set_timeout(timeout))
    }

    /// 1024 (default), or `max`: how many dials to one host may wait. With 0 nobody waits.
    #[must_use]
    pub fn max_pending_per_host(self, max: usize) -> Self {
        Self(
            self.0
                .set(|settings| settings.limits.pending_per_host = max),
        )
    }

    /// Shows it in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads and tunes it. Set options first.
    pub fn handle(&self) -> LimitHandle {
        LimitHandle::new(self.0.state())
    }

    /// The layer for the connector: outside of TLS and proxies, so that their handshakes count.
    pub fn connector_layer(&self) -> ConnectorLayer {
        ConnectorLayer::new(self.0.state())
    }

    /// The layer for the client that has the connector, and for nothing in between that moves requests to other tasks:
    /// it ends dials whose requests no longer wait for them.
    ///
    /// hyper-util's client needs it; tonic's channel does not.
    pub fn request_layer(&self) -> RequestLayer {
        RequestLayer::new(self.0.state())
    }
}

impl Default for ConnLimit {
    fn default() -> Self {
        Self(Options::new(What::Connections, "default".into()))
    }
}
