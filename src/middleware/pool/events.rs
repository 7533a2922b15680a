use std::sync::Arc;
use std::time::Duration;

use super::core::CloseReason;
use crate::base::phases::{DialObserver, Phase};

/// Is told what a pool does, under the names of Go's `httptrace`. All methods have empty bodies to start from.
///
/// They run where the thing happens, on the path of the request: be quick, and do not panic. `host` is
/// `scheme://name:port`. Of Go's hooks `WroteHeaders`, `WroteHeaderField` and `Wait100Continue` are missing: hyper does
/// not tell when it writes. Interim responses (`Got1xxResponse`, `Got100Continue`) are told by
/// `hyper::ext::on_informational` on the request itself.
pub trait PoolEvents: Send + Sync + 'static {
    /// A request asks for a connection.
    fn get_conn(&self, host: &str) {
        let _ = host;
    }

    /// A request got one: a `reused` one that had been `idle` for so long, or a new one.
    fn got_conn(&self, host: &str, reused: bool, idle: Option<Duration>) {
        let _ = (host, reused, idle);
    }

    /// A connection is idle again.
    fn put_idle_conn(&self, host: &str) {
        let _ = host;
    }

    /// The head of a response is here.
    fn got_first_response_byte(&self, host: &str) {
        let _ = host;
    }

    /// A dial looks up addresses.
    fn dns_start(&self, host: &str) {
        let _ = host;
    }

    /// It has them, or failed.
    fn dns_done(&self, host: &str, failed: bool) {
        let _ = (host, failed);
    }

    /// A dial connects its socket.
    fn connect_start(&self, host: &str) {
        let _ = host;
    }

    /// It is connected, or failed.
    fn connect_done(&self, host: &str, failed: bool) {
        let _ = (host, failed);
    }

    /// A dial begins its TLS handshake.
    fn tls_handshake_start(&self, host: &str) {
        let _ = host;
    }

    /// It is over, or failed.
    fn tls_handshake_done(&self, host: &str, failed: bool) {
        let _ = (host, failed);
    }

    /// A request that was never sent is tried on another connection.
    fn retried(&self, host: &str) {
        let _ = host;
    }

    /// The socket of a connection is gone.
    fn closed(&self, host: &str, reason: CloseReason) {
        let _ = (host, reason);
    }
}

/// Turns the phases of one dial into events.
pub(super) struct Observer {
    events: Arc<dyn PoolEvents>,
    host: Arc<str>,
}

impl Observer {
    pub(super) fn new(events: Arc<dyn PoolEvents>, host: Arc<str>) -> Self {
        Self { events, host }
    }
}

impl DialObserver for Observer {
    fn started(&self, phase: Phase) {
        match phase {
            Phase::Dns => self.events.dns_start(&self.host),
            Phase::Connect => self.events.connect_start(&self.host),
            Phase::Tls => self.events.tls_handshake_start(&self.host),
            _ => {}
        }
    }

    fn ended(&self, phase: Phase, failed: bool) {
        match phase {
            Phase::Dns => self.events.dns_done(&self.host, failed),
            Phase::Connect => self.events.connect_done(&self.host, failed),
            Phase::Tls => self.events.tls_handshake_done(&self.host, failed),
            _ => {}
        }
    }
}
