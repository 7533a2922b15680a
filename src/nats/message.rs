use std::fmt;
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Subject};
use bytes::Bytes;

use super::error::Error;
use crate::base::clock::Instant;
use crate::base::deadline::Deadline;

/// A request: a subject, a payload and headers.
#[derive(Clone)]
pub struct NatsRequest {
    pub(super) parts: Parts,
    pub(super) timeout: Option<Duration>,
    pub(super) deadline: Option<Deadline>,
}

/// The answer to a [`NatsRequest`].
#[derive(Clone)]
pub struct NatsResponse {
    payload: Bytes,
    headers: Option<HeaderMap>,
}

/// A message for a stream.
///
/// One that may be sent twice should have a [`message_id`](Self::message_id): within the stream's window for duplicates
/// it is stored once.
#[derive(Clone)]
pub struct Publish {
    pub(super) parts: Parts,
}

/// What goes over the wire.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) subject: Subject,
    pub(super) payload: Bytes,
    pub(super) headers: Option<HeaderMap>,
    /// What was given as a header and is none.
    pub(super) malformed: Option<String>,
}

// ===== impl NatsRequest =====

impl NatsRequest {
    /// A request to `subject`, with nothing in it.
    pub fn new(subject: impl Into<Subject>) -> Self {
        Self {
            parts: Parts::new(subject.into(), Bytes::new()),
            timeout: None,
            deadline: None,
        }
    }

    /// Nothing (default), or `payload`, is what it carries.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.parts.payload = payload.into();
        self
    }

    /// Adds a header; one more where there is one of that name. What is no header makes it fail as
    /// [`Malformed`](super::ErrorKind::Malformed) when it is sent.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.parts.header(name, value.as_ref());
        self
    }

    /// Replaces all headers.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.parts.headers = Some(headers);
        self
    }

    /// The service's timeout (default), or this one's own.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// No deadline (default), or this one. Of a deadline and a timeout the earlier counts.
    #[must_use]
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The subject.
    pub fn subject(&self) -> &Subject {
        &self.parts.subject
    }

    /// Until when it may take, begun `now`, and whether that is its deadline.
    pub(super) fn until(&self, now: Instant, timeout: Duration) -> (Option<Instant>, bool) {
        let timeout = now.checked_add(self.timeout.unwrap_or(timeout));
        match (self.deadline.map(Deadline::moment), timeout) {
            (Some(deadline), Some(timeout)) if deadline < timeout => (Some(deadline), true),
            (Some(deadline), None) => (Some(deadline), true),
            (_, timeout) => (timeout, false),
        }
    }
}

impl fmt::Debug for NatsRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsRequest")
            .field("subject", &self.parts.subject)
            .field("bytes", &self.parts.payload.len())
            .finish_non_exhaustive()
    }
}

// ===== impl NatsResponse =====

impl NatsResponse {
    /// An answer, for tests and for services that stand in for a server.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            headers: None,
        }
    }

    pub(super) fn of(message: Message) -> Self {
        Self {
            payload: message.payload,
            headers: message.headers,
        }
    }

    /// What it carries.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What it carries.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Its headers, if it has any.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.headers.as_ref()
    }
}

impl fmt::Debug for NatsResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsResponse")
            .field("bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

// ===== impl Publish =====

impl Publish {
    /// A message of `payload` to `subject`.
    pub fn new(subject: impl Into<Subject>, payload: impl Into<Bytes>) -> Self {
        Self {
            parts: Parts::new(subject.into(), payload.into()),
        }
    }

    /// No id (default), or one by which the stream knows the message again: `Nats-Msg-Id`.
    #[must_use]
    pub fn message_id(self, id: impl AsRef<str>) -> Self {
        self.header(NATS_MESSAGE_ID.as_ref(), id)
    }

    /// Whichever stream has the subject (default), or only the one called `stream`: `Nats-Expected-Stream`.
    #[must_use]
    pub fn expect_stream(self, stream: impl AsRef<str>) -> Self {
        self.header(NATS_EXPECTED_STREAM.as_ref(), stream)
    }

    /// Adds a header; one more where there is one of that name. What is no header makes it fail as
    /// [`Malformed`](super::ErrorKind::Malformed) when it is sent.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.parts.header(name, value.as_ref());
        self
    }

    /// Replaces all headers, those of [`message_id`](Self::message_id) and [`expect_stream`](Self::expect_stream) too.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.parts.headers = Some(headers);
        self
    }

    /// The subject.
    pub fn subject(&self) -> &Subject {
        &self.parts.subject
    }

    /// Bytes of payload and headers, by which [`BatchLayer::max_weight`](crate::batch::BatchLayer::max_weight) may
    /// bound batches.
    pub fn size(&self) -> usize {
        self.parts.size()
    }
}

impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("subject", &self.parts.subject)
            .field("bytes", &self.parts.payload.len())
            .finish_non_exhaustive()
    }
}

// ===== impl Parts =====

impl Parts {
    fn new(subject: Subject, payload: Bytes) -> Self {
        Self {
            subject,
            payload,
            headers: None,
            malformed: None,
        }
    }

    fn header(&mut self, name: &str, value: &str) {
        match (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            (Ok(name), Ok(value)) => {
                let headers = self.headers.get_or_insert_with(HeaderMap::new);
                headers.append(name, value);
            }
            _ => self.malformed = Some(format!("{name}: {value}")),
        }
    }

    /// Whether a server that takes `max` bytes could take it.
    pub(super) fn check(&self, max: usize) -> Result<(), Error> {
        if let Some(header) = &self.malformed {
            return Err(Error::malformed("header", header));
        }
        let subject = self.subject.as_str();
        if subject.is_empty() || subject.bytes().any(|byte| byte.is_ascii_whitespace()) {
            return Err(Error::malformed("subject", subject));
        }
        let size = self.size();
        match size > max {
            true => Err(Error::too_large(size, max)),
            false => Ok(()),
        }
    }

    /// What the server counts against its `max_payload`: the payload, and the headers as they are written.
    pub(super) fn size(&self) -> usize {
        const FRAME: usize = "NATS/1.0\r\n\r\n".len();
        let headers = match &self.headers {
            Some(headers) if !headers.is_empty() => {
                let lines = headers.iter().flat_map(|(name, values)| {
                    let name: &str = name.as_ref();
                    values
                        .iter()
                        .map(move |value| name.len() + ": \r\n".len() + value.as_str().len())
                });
                FRAME + lines.sum::<usize>()
            }
            _ => 0,
        };
        headers + self.payload.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;
    use crate::base::clock;

    #[test]
    fn the_size_is_what_the_server_counts() {
        let plain = Publish::new("a.b", "12345");
        assert_eq!(plain.size(), 5);
        let with = plain.message_id("7").header("Key", "value");
        let written = "NATS/1.0\r\nNats-Msg-Id: 7\r\nKey: value\r\n\r\n";
        assert_eq!(with.size(), written.len() + 5);
    }

    #[test]
    fn what_cannot_be_sent_is_told_before_it_is() {
        let kind = |publish: Publish, max| publish.parts.check(max).unwrap_err().kind();
        let large = ErrorKind::TooLarge { size: 5, max: 4 };
        assert_eq!(kind(Publish::new("a", "12345"), 4), large);
        for subject in ["", "a b", "a\r\nPUB b"] {
            assert_eq!(kind(Publish::new(subject, ""), 9), ErrorKind::Malformed);
        }
        let header = Publish::new("a", "").message_id("1\r\nNats-Rollup: all");
        assert_eq!(kind(header, 999), ErrorKind::Malformed);
        assert!(Publish::new("a", "12345").parts.check(5).is_ok());
    }

    #[test]
    fn the_earlier_of_deadline_and_timeout_counts() {
        let now = clock::now();
        let second = Duration::from_secs(1);
        let req = NatsRequest::new("a");
        assert_eq!(req.until(now, second), (Some(now + second), false));
        let req = req.timeout(3 * second);
        assert_eq!(req.until(now, second), (Some(now + 3 * second), false));
        let req = req.deadline(Deadline::at(now + 2 * second));
        assert_eq!(req.until(now, second), (Some(now + 2 * second), true));
        let req = req.timeout(second);
        assert_eq!(req.until(now, 9 * second), (Some(now + second), false));
        let forever = NatsRequest::new("a");
        assert_eq!(forever.until(now, Duration::MAX), (None, false));
    }
}
