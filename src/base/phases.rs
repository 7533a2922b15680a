//! What one request of a client spent where: waiting, DNS, connect, TLS, handshake, first byte, end.
//!
//! # How it works
//!
//! A pool opens a [`Dial`] for each connection it makes and polls the connector inside [`Dial::scope`]. Connectors find
//! it with [`Dial::current`], on the thread that polls them, and say which [`Phase`] begins and ends; a connector that
//! says nothing still works. When a response comes, the pool puts [`Timings`] into its extensions: whoever reads the
//! response can ask, and `timing` makes histograms of it.
//!
//! ```text
//! call       dial            connection granted       headers      end of the body
//!  ├── queue ──┤├ dns ┤├ connect ┤├ tls ┤├ handshake ┤
//!  ├────────────────── wait ─────────────────────────┤
//!  ├──────────────────────── first byte ─────────────────┤
//!  ├──────────────────────────── end ────────────────────────────────┤
//! ```
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::clock;
//! use tower_flow::phases::{Dial, Phase, Timings};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), std::io::Error> {
//! // A connector knows nothing of who asked for it.
//! async fn connect() -> Result<&'static str, std::io::Error> {
//!     Phase::Dns.mark(async {
//!         tokio::time::sleep(Duration::from_millis(20)).await;
//!         Ok("a socket")
//!     }).await
//! }
//!
//! let start = clock::now();
//! let dial = Dial::new(start);
//! let io = dial.scope(connect()).await?;
//! assert_eq!(dial.durations().dns, Some(Duration::from_millis(20)));
//!
//! let granted = clock::now();
//! let timings = Timings::new(start, granted, granted, None, Some(&dial));
//! assert!(!timings.reused());
//! assert_eq!(timings.wait(), Duration::from_millis(20));
//! assert!(timings.to_value().to_string().contains(r#""time_namelookup":0.02"#));
//! # let _ = io; Ok(()) }
//! ```
//!
//! # Cancellation
//!
//! A phase that is marked and dropped before its end has failed; [`Dial::phase`] remembers which it was, so that whoever
//! gives up on a dial can say where it stood.
//!
//! # Cost
//!
//! A dial is one allocation, [`Timings`] another, and a few relaxed atomics each. [`Dial::scope`] moves a pointer in and
//! out of a thread-local on each poll and counts no reference.

mod dial;
mod scope;
mod timings;

use std::fmt;
use std::time::Duration;

pub use dial::{Dial, DialObserver, Durations, Span};
pub use scope::{Marked, Scope};
pub use timings::Timings;

/// A part of the way from a call to its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// For a connection: in the queue, and while one is made.
    Wait,
    /// Looking up the host's addresses.
    Dns,
    /// Until the socket is connected.
    Connect,
    /// The TLS handshake.
    Tls,
    /// HTTP/2's preface, until the peer's SETTINGS.
    Handshake,
}

/// No time at all; as a time it would be 584 years.
const NEVER: u64 = u64::MAX;

// ===== impl Phase =====

impl Phase {
    /// All of them, in the order they come.
    pub const ALL: [Self; 5] = [
        Self::Wait,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Handshake,
    ];

    /// Its name, as in metrics: `wait`, `dns`, `connect`, `tls`, `handshake`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Handshake => "handshake",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

fn known(nanos: u64) -> Option<Duration> {
    (nanos != NEVER).then(|| Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests;
