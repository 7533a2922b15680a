//! What the caller of an HTTP request asks for, and what a flight asks for in its stead.

use std::time::Duration;

use http::{HeaderValue, Request};

use super::key::{Facts, Terms};
use crate::base::clock;
use crate::base::deadline::{Deadline, GRPC_TIMEOUT, grpc_timeout};
use crate::base::header;
use crate::base::priority::Priority;

/// The priority and the deadline in the extensions of `req`; its `grpc-timeout` too. The clock is read only for that.
pub(super) fn terms<B>(req: &Request<B>) -> Terms {
    let [asked] = header::find(req.headers(), ["grpc-timeout"]);
    let deadline = match asked {
        Some(_) => Deadline::of(req, clock::now(), None),
        None => req.extensions().get().copied(),
    };
    Terms::default()
        .deadline(deadline)
        .priority(req.extensions().get().copied().unwrap_or_default())
}

/// Makes `req` the request of all: with the greatest priority, and with as much time as the flight has.
///
/// Its own deadline ends its caller's wait, not the flight, so what it carries upstream is the later of both: the
/// deadline of a caller that stayed alone, and who may wait longer than a flight of many, is kept. A request without a
/// deadline gets none.
pub(super) fn prepare<B>(req: &mut Request<B>, flight: Facts) {
    let own: Option<Priority> = req.extensions().get().copied();
    if flight.priority > own.unwrap_or_default() {
        req.extensions_mut().insert(flight.priority);
    }
    if let Some(own) = req.extensions().get::<Deadline>().copied() {
        let later = flight
            .timeout
            .and_then(|timeout| Deadline::after(clock::now(), timeout));
        match later {
            Some(later) if later > own => drop(req.extensions_mut().insert(later)),
            Some(_) => {}
            None => drop(req.extensions_mut().remove::<Deadline>()),
        }
    }
    let [asked] = header::find(req.headers(), ["grpc-timeout"]);
    if let Some(asked) = asked {
        // One that cannot be read asks for nothing, and is not for others to suffer from.
        match (flight.timeout, grpc_timeout(asked)) {
            (Some(timeout), Some(own)) if own < timeout => {
                req.headers_mut().insert(GRPC_TIMEOUT, written(timeout));
            }
            (Some(_), Some(_)) => {}
            _ => drop(req.headers_mut().remove(GRPC_TIMEOUT)),
        }
    }
}

/// `timeout` as a `grpc-timeout`: at most eight digits in the finest unit they suffice for, rounded up.
fn written(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    const HOUR: u128 = 3_600_000_000_000;
    const UNITS: [(u128, char); 5] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
    ];
    let nanos = timeout.as_nanos();
    let unit = UNITS
        .into_iter()
        .find(|(unit, _)| nanos.div_ceil(*unit) <= MOST);
    let (unit, letter) = unit.unwrap_or((HOUR, 'H'));
    let text = format!("{}{letter}", nanos.div_ceil(unit).min(MOST));
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn facts(priority: Priority, timeout: Option<u64>) -> Facts {
        let timeout = timeout.map(Duration::from_secs);
        Facts { priority, timeout }
    }

    fn with_timeout(text: &'static str) -> Request<()> {
        let mut req = Request::new(());
        req.headers_mut()
            .insert(GRPC_TIMEOUT, HeaderValue::from_static(text));
        req
    }

    fn sent(text: &'static str, timeout: Option<u64>) -> Option<Duration> {
        let mut req = with_timeout(text);
        prepare(&mut req, facts(Priority::Default, timeout));
        req.headers().get(GRPC_TIMEOUT).and_then(grpc_timeout)
    }

    #[tokio::test(start_paused = true)]
    async fn terms_are_read_from_extensions_and_header() {
        assert_eq!(terms(&Request::new(())), Terms::default());
        let now = clock::now();
        let mut req = with_timeout("2S");
        req.extensions_mut().insert(Priority::Critical);
        let deadline = Deadline::after(now, Duration::from_secs(2));
        let expected = Terms::default().priority(Priority::Critical);
        assert_eq!(terms(&req), expected.deadline(deadline));
        let earlier = Deadline::at(now + Duration::from_secs(1));
        req.extensions_mut().insert(earlier);
        assert_eq!(terms(&req), expected.deadline(Some(earlier)));
        assert_eq!(terms(&with_timeout("junk")).deadline, None);
    }

    #[test]
    fn priority_is_only_raised() {
        let mut req = Request::new(());
        prepare(&mut req, facts(Priority::Default, None));
        assert!(req.extensions().is_empty());
        prepare(&mut req, facts(Priority::Critical, None));
        assert_eq!(req.extensions().get(), Some(&Priority::Critical));
        prepare(&mut req, facts(Priority::Sheddable, None));
        assert_eq!(req.extensions().get(), Some(&Priority::Critical));
    }

    #[tokio::test(start_paused = true)]
    async fn the_request_that_is_sent_has_the_later_deadline() {
        let now = clock::now();
        let at = |secs| Deadline::at(now + Duration::from_secs(secs));
        for (own, flight, sent) in [
            (1, Some(30), Some(30)),
            (60, Some(30), Some(60)),
            (1, None, None),
        ] {
            let mut req = Request::new(());
            req.extensions_mut().insert(at(own));
            prepare(&mut req, facts(Priority::Default, flight));
            assert_eq!(req.extensions().get().copied(), sent.map(at));
        }
        let mut req = Request::new(());
        prepare(&mut req, facts(Priority::Default, Some(30)));
        assert!(req.extensions().is_empty() && req.headers().is_empty());
    }

    #[test]
    fn the_request_that_is_sent_has_the_longer_timeout() {
        assert_eq!(sent("10m", Some(30)), Some(Duration::from_secs(30)));
        assert_eq!(sent("1M", Some(30)), Some(Duration::from_secs(60)));
        assert_eq!(sent("1M", None), None);
        assert_eq!(sent("junk", Some(30)), None);
    }

    #[test]
    fn timeouts_have_eight_digits() {
        assert_eq!(written(Duration::ZERO), "0n");
        assert_eq!(written(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(written(Duration::from_nanos(100_000_001)), "100001u");
        assert_eq!(written(Duration::from_secs(30)), "30000000u");
        assert_eq!(written(Duration::from_secs(86_400 * 365)), "31536000S");
        assert_eq!(written(Duration::MAX), "99999999H");
    }

    proptest! {
        #[test]
        fn written_timeouts_are_read_and_never_shorter(nanos in any::<u64>()) {
            let timeout = Duration::from_nanos(nanos);
            let read = grpc_timeout(&written(timeout)).unwrap();
            prop_assert!(read >= timeout);
            prop_assert!(read.as_secs_f64() <= timeout.as_secs_f64() * 1.000_001 + 1e-9);
        }
    }
}
