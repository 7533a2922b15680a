//! What a backend says about coming back, read from headers it may have written badly.

use std::any::Any;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};

use crate::base::clock;
use crate::base::error::{BoxError, Rejection};
use crate::base::header;

/// When a backend wants a request to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Not before so much time has passed.
    After(Duration),
    /// Not at all.
    Never,
}

/// What an answer says, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Asked {
    pub(super) pushback: Option<Pushback>,
    /// A header was there and could not be read.
    pub(super) malformed: bool,
}

// ===== impl Pushback =====

impl Pushback {
    /// Reads `retry-after`: seconds, or a date as HTTP prefers it. Anything else counts as absent.
    pub fn http(headers: &HeaderMap) -> Option<Self> {
        Asked::http(headers).pushback
    }

    /// Reads `grpc-retry-pushback-ms`, a signed 32-bit number. A negative or unreadable one is [`Never`](Self::Never),
    /// as gRPC's proposal A6 asks.
    pub fn grpc(headers: &HeaderMap) -> Option<Self> {
        Asked::grpc(headers).pushback
    }

    /// Reads a failed future: a [`Rejection`] in its error's chain, with feature `tonic` also the metadata of a `Status`.
    pub fn of_error(error: &BoxError) -> Option<Self> {
        Asked::of_error(error).pushback
    }
}

// ===== impl Asked =====

impl Asked {
    pub(super) fn http(headers: &HeaderMap) -> Self {
        let [value] = header::find(headers, ["retry-after"]);
        value.map_or_else(Self::default, |value| {
            let after = retry_after(value, clock::wall());
            Self {
                pushback: after.map(Pushback::After),
                malformed: after.is_none(),
            }
        })
    }

    pub(super) fn grpc(headers: &HeaderMap) -> Self {
        let [value] = header::find(headers, ["grpc-retry-pushback-ms"]);
        Self::grpc_value(value)
    }

    /// The value of `grpc-retry-pushback-ms`.
    #[inline]
    pub(super) fn grpc_value(value: Option<&HeaderValue>) -> Self {
        let Some(value) = value else {
            return Self::default();
        };
        let milliseconds = milliseconds(value);
        let after = milliseconds.and_then(|number| u64::try_from(number).ok());
        Self {
            pushback: Some(after.map_or(Pushback::Never, |number| {
                Pushback::After(Duration::from_millis(number))
            })),
            malformed: milliseconds.is_none(),
        }
    }

    pub(super) fn of_error<E: 'static>(error: &E) -> Self {
        let error: &dyn Any = error;
        let Some(error) = error.downcast_ref::<BoxError>() else {
            return Self::default();
        };
        #[cfg(feature = "tonic")]
        if let Some(status) = crate::base::error::find::<tonic::Status>(error.as_ref())
            && status.metadata().contains_key("grpc-retry-pushback-ms")
        {
            return Self::grpc(&status.metadata().clone().into_headers());
        }
        let delay = Rejection::find(error.as_ref()).and_then(Rejection::retry_delay);
        Self {
            pushback: delay.map(Pushback::After),
            malformed: false,
        }
    }
}

fn milliseconds(value: &HeaderValue) -> Option<i32> {
    let text = value.to_str().ok()?;
    // `parse` would take a plus, which is no number on the wire.
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok()
}

fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    let date = SystemTime::UNIX_EPOCH + http_date(text)?;
    // A moment that has passed asks for no wait.
    Some(date.duration_since(now).unwrap_or_default())
}

/// Digits and nothing else; more of them than fit are the greatest number.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, since 1970: the one form of a date RFC 9110 lets a sender write.
fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split(' ');
    let mut word = || words.next();
    let (_, day, month, year) = (word()?, number(word()?)?, word()?, number(word()?)?);
    let (time, zone) = (word()?, word()?);
    let month = 1 + MONTHS.iter().position(|name| *name == month)? as u64;
    let mut time = time.split(':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let ended = time.next().is_none() && words.next().is_none();
    let valid = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && (hour < 24 && minute < 60 && second <= 60)
        && zone == "GMT";
    if !(ended && valid) {
        return None;
    }
    // Days from civil: years that begin in March have their leap day last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year / 4 - year / 100 + year / 400;
    let days = 365 * year + leaps + (153 * month + 2) / 5 + day - 1;
    const TO_1970: u64 = 719_468;
    Some(Duration::from_secs(
        (days - TO_1970) * 86_400 + hour * 3_600 + minute * 60 + second,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Reason;

    use proptest::prelude::*;

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        let value = HeaderValue::from_bytes(value).unwrap();
        [(http::HeaderName::from_static(name), value)]
            .into_iter()
            .collect()
    }

    fn http(value: &[u8]) -> Asked {
        Asked::http(&headers("retry-after", value))
    }

    fn grpc(value: &[u8]) -> Asked {
        Asked::grpc(&headers("grpc-retry-pushback-ms", value))
    }

    #[test]
    fn seconds_are_read_and_never_overflow() {
        let after = |seconds| Some(Pushback::After(Duration::from_secs(seconds)));
        assert_eq!(http(b"0").pushback, after(0));
        assert_eq!(http(b"120").pushback, after(120));
        assert_eq!(http(b"99999999999999999999999").pushback, after(u64::MAX));
        assert_eq!(Pushback::http(&HeaderMap::new()), None);
    }

    #[test]
    fn dates_are_read_as_http_writes_them() {
        let since_1970 = |text| http_date(text).map(|date| date.as_secs());
        assert_eq!(since_1970("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            since_1970("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(
            since_1970("Thu, 29 Feb 2024 23:59:59 GMT"),
            Some(1_709_251_199)
        );
        let value = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let before = retry_after(&value, at(784_111_770));
        assert_eq!(before, Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&value, at(784_111_780)), Some(Duration::ZERO));
    }

    #[test]
    fn a_retry_after_nobody_can_read_counts_as_absent_and_is_told() {
        for value in [
            &b""[..],
            b"-1",
            b"+5",
            b"1.5",
            b"5s",
            b"soon",
            b"\xff\xfe",
            b"Sun, 06 Nov 1994",
            b"Sun, 06 Nov 1994 08:49:37 CET",
            b"Sun, 06 Nov 1994 08:49:37 GMT GMT",
            b"Sun, 06 Foo 1994 08:49:37 GMT",
            b"Sun, 99 Nov 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 25:49:37 GMT",
            b"Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            b"Sunday, 06-Nov-94 08:49:37 GMT",
        ] {
            let asked = http(value);
            assert_eq!((asked.pushback, asked.malformed), (None, true), "{value:?}");
        }
    }

    #[test]
    fn grpc_says_no_with_a_negative_number_or_with_nonsense() {
        let after = |number| Some(Pushback::After(Duration::from_millis(number)));
        assert_eq!(
            grpc(b"0"),
            Asked {
                pushback: after(0),
                malformed: false
            }
        );
        assert_eq!(grpc(b"2147483647").pushback, after(2_147_483_647));
        for negative in [&b"-1"[..], b"-2147483648"] {
            let never = Some(Pushback::Never);
            assert_eq!(
                grpc(negative),
                Asked {
                    pushback: never,
                    malformed: false
                }
            );
        }
        for value in [&b""[..], b"2147483648", b"+1", b" 1", b"1.0", b"x", b"\xff"] {
            let never = Some(Pushback::Never);
            assert_eq!(
                grpc(value),
                Asked {
                    pushback: never,
                    malformed: true
                },
                "{value:?}"
            );
        }
    }

    #[test]
    fn a_rejection_says_when_to_come_back() {
        let rejection = Rejection::new("shed", Reason::Limit, "full");
        let error = BoxError::from(rejection.clone());
        assert_eq!(Pushback::of_error(&error), None);
        let error = BoxError::from(rejection.retry_after(Duration::from_millis(20)));
        let after = Some(Pushback::After(Duration::from_millis(20)));
        assert_eq!(Pushback::of_error(&error), after);
        assert_eq!(Pushback::of_error(&"nothing known".into()), None);
    }

    #[cfg(feature = "tonic")]
    #[test]
    fn a_status_says_it_in_its_metadata() {
        let mut status = tonic::Status::unavailable("full");
        assert_eq!(Pushback::of_error(&BoxError::from(status.clone())), None);
        let value = tonic::metadata::MetadataValue::from_static("-1");
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", value);
        assert_eq!(Pushback::of_error(&status.into()), Some(Pushback::Never));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(value in proptest::collection::vec(32u8.., 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let _ = http(value.as_bytes());
                let _ = grpc(value.as_bytes());
            }
        }

        #[test]
        fn no_date_makes_it_panic(text in "[A-Z][a-z]{2}, [0-9]{1,20} (Jan|Feb|Dec) [0-9]{1,20} [0-9]{1,3}:[0-9]{1,20}:[0-9]{2} GMT") {
            let _ = http_date(&text);
        }
    }
}
