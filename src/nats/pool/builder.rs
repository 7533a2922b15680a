use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, ToServerAddrs};

use super::core::Limits;
use super::handle::NatsPoolHandle;
use super::service::NatsPool;
use super::shared::{Options, Shared};
use crate::base::flow::Flow;

/// Makes a [`NatsPool`].
#[must_use = "nothing is made before `build`"]
pub struct NatsPoolBuilder {
    options: Options,
    limits: Limits,
    flow: Option<Flow>,
}

impl NatsPoolBuilder {
    pub(super) fn new(servers: impl ToServerAddrs) -> Self {
        let servers = servers.to_server_addrs();
        let servers = servers
            .map(Iterator::collect)
            .map_err(|error| error.to_string());
        Self {
            options: Options {
                name: "nats".into(),
                servers,
                connect: ConnectOptions::new(),
                acquire_timeout: Duration::from_secs(5),
                timeout: Duration::from_secs(10),
            },
            limits: Limits {
                connections: 4,
                in_flight: 1_024,
                scale_at: 32,
                waiting: 1_024,
                backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            },
            flow: None,
        }
    }

    /// How each connection is made (default: async-nats' own defaults): user and password, TLS, how it reconnects.
    pub fn options(mut self, options: ConnectOptions) -> Self {
        self.options.connect = options;
        self
    }

    /// `nats` (default) is its name among the pools of a flow.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.options.name = name.into();
        self
    }

    /// 4 connections (default) are there at most, those that are being made or have lost their server included.
    ///
    /// # Panics
    ///
    /// When `max` is 0: nothing could be sent.
    pub fn max_connections(mut self, max: usize) -> Self {
        assert!(max > 0, "max_connections of 0 would let nothing through");
        self.limits.connections = max;
        self
    }

    /// 1,024 requests (default) are in flight on one connection at most.
    ///
    /// # Panics
    ///
    /// When `max` is 0: nothing could be sent.
    pub fn max_in_flight(mut self, max: usize) -> Self {
        assert!(max > 0, "max_in_flight of 0 would let nothing through");
        self.limits.in_flight = max;
        self
    }

    /// 32 requests (default) in flight on every connection, and another is made, up to the limit.
    pub fn scale_at(mut self, in_flight: usize) -> Self {
        self.limits.scale_at = in_flight.max(1);
        self
    }

    /// 1,024 requests (default) wait at most, while no connection has room.
    pub fn max_waiting(mut self, max: usize) -> Self {
        self.limits.waiting = max;
        self
    }

    /// 5 seconds (default) is how long a request waits for a connection.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.options.acquire_timeout = timeout;
        self
    }

    /// 10 seconds (default) is how long a request may take that has no timeout of its own, waiting included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// 100 ms to 5 s (default) is how long no dial follows one that failed, doubling with each. A request that no
    /// connection can serve fails meanwhile, with the cause.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.limits.backoff = (first, longest.max(first));
        self
    }

    /// Shows the pool in `flow`.
    pub fn attach(mut self, flow: &Flow) -> Self {
        self.flow = Some(flow.clone());
        self
    }

    /// The pool. Nothing is connected before somebody asks; servers that cannot be read fail then.
    pub fn build(self) -> NatsPool {
        let shared = Shared::new(self.options, self.limits);
        if let Some(flow) = self.flow {
            flow.attach(NatsPoolHandle::new(shared.clone()));
        }
        NatsPool::new(shared)
    }
}

impl fmt::Debug for NatsPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsPoolBuilder")
            .field("name", &self.options.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
