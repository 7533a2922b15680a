//! How long a request may take.
//!
//! A [`Deadline`] is a moment. It comes from the request's extensions, from its `grpc-timeout` header, or from a
//! fixed time the server grants; where several speak, the earliest wins.
//!
//! ```
//! use std::time::Duration;
//! use tower_flow::{clock, deadline::Deadline};
//!
//! let mut req = http::Request::new(());
//! req.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static("50m"));
//! let now = clock::now();
//! let deadline = Deadline::of(&req, now, Some(Duration::from_secs(30))).expect("both speak");
//! assert_eq!(deadline.left(now), Duration::from_millis(50));
//! assert!(deadline.passed(now + Duration::from_millis(50)));
//! ```

use std::time::Duration;

use http::{Extensions, HeaderName, HeaderValue};

use super::clock::Instant;
use super::header;

/// The header in which a gRPC client says how long it will wait.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The moment after which nobody waits for the answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

// ===== impl Deadline =====

impl Deadline {
    /// The deadline at `moment`.
    pub fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// The deadline `timeout` after `now`; `None` when that is too far away to be a moment.
    pub fn after(now: Instant, timeout: Duration) -> Option<Self> {
        now.checked_add(timeout).map(Self)
    }

    /// The earliest of the request's extension, its `grpc-timeout` counted from `now`, and `fixed` counted from `now`.
    ///
    /// A malformed `grpc-timeout` counts as absent.
    #[inline]
    pub fn of<B>(req: &http::Request<B>, now: Instant, fixed: Option<Duration>) -> Option<Self> {
        let [asked] = header::find(req.headers(), ["grpc-timeout"]);
        Self::asked(req.extensions(), asked, now, fixed)
    }

    /// As [`of`](Self::of), with the header at hand.
    #[inline]
    pub(crate) fn asked(
        extensions: &Extensions,
        header: Option<&HeaderValue>,
        now: Instant,
        fixed: Option<Duration>,
    ) -> Option<Self> {
        let carried = extensions.get::<Self>().copied();
        let granted = match (header.and_then(grpc_timeout), fixed) {
            (Some(asked), Some(fixed)) => Some(asked.min(fixed)),
            (asked, fixed) => asked.or(fixed),
        };
        let granted = granted.and_then(|timeout| Self::after(now, timeout));
        match (carried, granted) {
            (Some(carried), Some(granted)) => Some(carried.min(granted)),
            (carried, granted) => carried.or(granted),
        }
    }

    /// The moment itself.
    pub fn moment(self) -> Instant {
        self.0
    }

    /// What is left of it at `now`; zero once it has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has passed at `now`.
    pub fn passed(self, now: Instant) -> bool {
        self.0 <= now
    }
}

/// Reads a `grpc-timeout` value: one to eight digits and a unit of `H`, `M`, `S`, `m`, `u` or `n`.
///
/// Source: the gRPC over HTTP/2 protocol document, `Timeout`. Anything else is `None`.
pub fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0u64, |amount, digit| amount * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    fn timeout(text: &[u8]) -> Option<Duration> {
        grpc_timeout(&HeaderValue::from_bytes(text).unwrap())
    }

    #[test]
    fn every_unit_is_read() {
        assert_eq!(timeout(b"2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout(b"4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout(b"5m"), Some(Duration::from_millis(5)));
        assert_eq!(timeout(b"6u"), Some(Duration::from_micros(6)));
        assert_eq!(timeout(b"7n"), Some(Duration::from_nanos(7)));
        assert_eq!(
            timeout(b"99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(timeout(b"0S"), Some(Duration::ZERO));
    }

    #[test]
    fn garbage_is_no_timeout() {
        for text in [
            &b""[..],
            b"S",
            b"1",
            b"123456789S",
            b"-1S",
            b"1.5S",
            b" 1S",
            b"1s",
            b"\xff1S",
            b"1\xff",
        ] {
            assert_eq!(timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_earliest_source_wins() {
        let now = clock::now();
        let mut req = http::Request::new(());
        assert_eq!(Deadline::of(&req, now, None), None);
        let fixed = Some(Duration::from_secs(5));
        assert_eq!(
            Deadline::of(&req, now, fixed).unwrap().left(now),
            Duration::from_secs(5)
        );
        req.headers_mut()
            .insert(GRPC_TIMEOUT, HeaderValue::from_static("2S"));
        assert_eq!(
            Deadline::of(&req, now, fixed).unwrap().left(now),
            Duration::from_secs(2)
        );
        req.extensions_mut()
            .insert(Deadline::at(now + Duration::from_secs(1)));
        assert_eq!(
            Deadline::of(&req, now, fixed).unwrap().left(now),
            Duration::from_secs(1)
        );
        req.headers_mut()
            .insert(GRPC_TIMEOUT, HeaderValue::from_static("junk"));
        assert_eq!(
            Deadline::of(&req, now, None).unwrap().left(now),
            Duration::from_secs(1)
        );
    }
}
