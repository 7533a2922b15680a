//! What hyper reads kindly and an intermediary must not: RFC 9112 2.2 and 6.3.
//!
//! hyper takes a bare LF for the end of a line, chunks twice over for chunks, and of a request with both `Content-Length` and
//! `Transfer-Encoding` the latter. Whoever stands on the other side may read such a thing in another way, and two requests
//! where we read one. [`Scanner`] follows the framing of what a client sends. In a head it makes the octet that gives such a
//! request away a NUL, which no head may hold: hyper answers 400 and closes. Among chunks it says so.

use std::io;

use crate::fields;

/// Follows the requests of one HTTP/1 connection.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    state: State,
    /// The beginning of the line under way: more than any name or number that matters.
    line: Vec<u8>,
    /// Whether there was more of it.
    long: bool,
    /// The last octet of the line under way.
    last: u8,
    head: Head,
    /// Whether something was let pass behind a request to switch.
    early: bool,
    spoilt: bool,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    /// In the lines of a head.
    #[default]
    Head,
    /// So many octets of a body are left.
    Body(u64),
    /// In the line that tells a chunk's size.
    Size,
    /// So many octets of a chunk are left, with the CRLF after it.
    Chunk(u64),
    Trailers,
    /// The head just read asked to switch.
    Asked,
    /// Nobody looks any more: HTTP/2, an upgrade, or what hyper will refuse by itself.
    Open,
}

/// What the lines of a head have said so far.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    length: Option<u64>,
    /// Whether one of its lengths is no number.
    unclear: bool,
    coded: bool,
    /// Whether that is in chunks, once and no more.
    chunked: bool,
    upgrade: bool,
}

/// How much of a line is kept.
const LINE: usize = 64;

impl Scanner {
    /// Looks at the next octets, and spoils the one that must not be.
    ///
    /// # Errors
    ///
    /// When that is among chunks, where hyper would take it.
    pub(crate) fn scan(&mut self, mut octets: &mut [u8]) -> io::Result<()> {
        while !octets.is_empty() {
            let taken = match self.state {
                State::Asked => {
                    self.early = true;
                    self.state = State::Open;
                    break;
                }
                State::Open => break,
                State::Body(left) => self.skip(left, octets.len(), State::Head, State::Body),
                State::Chunk(left) => self.skip(left, octets.len(), State::Size, State::Chunk),
                State::Head | State::Size | State::Trailers => self.line(octets)?,
            };
            octets = &mut octets[taken..];
        }
        Ok(())
    }

    /// Whether a head was spoilt since somebody asked. hyper parses it only once there is the end of one.
    pub(crate) fn take_spoilt(&mut self) -> bool {
        std::mem::take(&mut self.spoilt)
    }

    /// A request to switch was not granted.
    pub(crate) fn stay(&mut self) {
        if self.state == State::Asked {
            self.state = State::Head;
        }
    }

    /// Whether something was let pass behind a request to switch.
    pub(crate) fn early(&self) -> bool {
        self.early
    }

    /// Whether part of a head is there, and not all of it.
    pub(crate) fn within_head(&self) -> bool {
        self.state == State::Head && (self.head.begun || !self.line.is_empty())
    }

    fn skip(&mut self, left: u64, there: usize, then: State, else_: fn(u64) -> State) -> usize {
        let taken = there.min(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - taken as u64;
        self.state = if left == 0 { then } else { else_(left) };
        taken
    }

    /// Takes octets up to the end of the line, if it is there.
    fn line(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        let end = octets.iter().position(|octet| *octet == b'\n');
        let part = &octets[..end.unwrap_or(octets.len())];
        let room = LINE - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        self.long |= part.len() > room;
        if let Some(last) = part.last() {
            self.last = *last;
        }
        let Some(end) = end else {
            return Ok(octets.len());
        };
        let chunked = self.state != State::Head;
        let bare = self.last != b'\r';
        if bare || !self.ended() {
            octets[end] = 0;
            self.spoilt = true;
            self.state = State::Open;
            if chunked {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a bare LF among chunks",
                ));
            }
        }
        self.line.clear();
        (self.long, self.last) = (false, 0);
        Ok(end + 1)
    }

    /// What the line that has ended means; `false` when it must not be.
    fn ended(&mut self) -> bool {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        match self.state {
            State::Head if line.is_empty() && !self.head.begun => {}
            State::Head if line.is_empty() => {
                let head = std::mem::take(&mut self.head);
                if head.unclear || head.coded && (head.length.is_some() || !head.chunked) {
                    return false;
                }
                self.state = match head {
                    Head { upgrade: true, .. } => State::Asked,
                    Head { coded: true, .. } => State::Size,
                    Head {
                        length: Some(length @ 1..),
                        ..
                    } => State::Body(length),
                    _ => State::Head,
                };
            }
            State::Head if !self.head.begun => {
                self.head.begun = true;
                // The first line of HTTP/2's preface.
                if line == b"PRI * HTTP/2.0" {
                    self.state = State::Open;
                }
                self.head.upgrade = line.starts_with(b"CONNECT ");
            }
            State::Head => self.head.field(line, self.long),
            State::Size => {
                let digits = line
                    .iter()
                    .take_while(|octet| octet.is_ascii_hexdigit())
                    .count();
                let size = std::str::from_utf8(&line[..digits]).unwrap_or_default();
                // What is not here to its end may be any number.
                if digits == LINE {
                    return false;
                }
                self.state = match u64::from_str_radix(size, 16) {
                    Ok(0) => State::Trailers,
                    Ok(size) => State::Chunk(size.saturating_add(2)),
                    Err(_) => State::Open,
                };
            }
            State::Trailers if line.is_empty() => self.state = State::Head,
            _ => {}
        }
        true
    }
}

impl Head {
    /// Takes a field in. `long` is one that is not here to its end.
    fn field(&mut self, line: &[u8], long: bool) {
        let Some(colon) = line.iter().position(|octet| *octet == b':') else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = value.iter().all(u8::is_ascii_digit);
            let value = std::str::from_utf8(value).unwrap_or_default();
            self.length = value.parse().ok().filter(|_| digits && !long);
            self.unclear |= self.length.is_none();
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = !self.coded && !long && value.eq_ignore_ascii_case(b"chunked");
            self.coded = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade |= fields::switches(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The input as it is handed on, in pieces of every size, and whether it is refused.
    fn scanned(input: &str) -> (Vec<u8>, bool) {
        let mut whole = input.as_bytes().to_vec();
        let refused = Scanner::default().scan(&mut whole).is_err();
        for size in 1..=input.len() {
            let mut pieces = input.as_bytes().to_vec();
            let mut scanner = Scanner::default();
            let mut pieces_refused = false;
            for piece in pieces.chunks_mut(size) {
                pieces_refused |= scanner.scan(piece).is_err();
            }
            assert_eq!(
                (&pieces, pieces_refused),
                (&whole, refused),
                "in pieces of {size}"
            );
        }
        (whole, refused)
    }

    fn passes(input: &str) {
        assert_eq!(scanned(input), (input.as_bytes().to_vec(), false));
    }

    #[track_caller]
    fn spoilt(input: &str, at: &str) {
        let (scanned, refused) = scanned(input);
        assert_eq!(
            refused,
            input.contains("\nTransfer-Encoding: chunked\r\n\r\n1"),
            "among chunks"
        );
        let spoilt = scanned.iter().position(|octet| *octet == 0);
        assert_eq!(spoilt, input.find(at).map(|start| start + at.len() - 1));
    }

    #[test]
    fn what_is_right_passes_untouched() {
        passes("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
        passes("\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        passes("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\ncGET / HTTP/1.1\r\n\r\n");
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        passes(&format!(
            "{chunked}3;x=y\r\n\n\n\n\r\n0\r\nt: u\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        ));
        passes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n\n");
        passes("GET / HTTP/1.1\r\nupgrade: echo\r\n\r\n\n\n\n");
    }

    #[test]
    fn a_bare_line_feed_is_spoilt_wherever_a_head_is() {
        spoilt("GET / HTTP/1.1\nhost: a\r\n\r\n", "1.1\n");
        spoilt("GET / HTTP/1.1\r\nhost: a\n\r\n", "a\n");
        spoilt("GET / HTTP/1.1\r\nhost: a\r\n\n", "a\r\n\n");
        spoilt(
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n\n\nGET / HTTP/1.1\n",
            "GET / HTTP/1.1\n",
        );
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        spoilt(&format!("{chunked}1\r\n\n\r\n0\r\nt: u\n\r\n"), "u\n");
        spoilt(&format!("{chunked}1;a\nb\r\nx\r\n0\r\n\r\n"), "a\n");
    }

    #[test]
    fn two_lengths_of_one_request_are_spoilt_at_its_end() {
        let length = "content-length: 4\r\n";
        let coded = "Transfer-Encoding : x\r\nTransfer-Encoding: chunked\r\n";
        for (first, second) in [(length, coded), (coded, length)] {
            let head = format!("POST / HTTP/1.1\r\n{first}{second}\r\n");
            spoilt(&format!("{head}0\r\n\r\n"), &head);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_guessed() {
        let spaces = " ".repeat(LINE);
        let line = format!("content-length:{spaces}6\r\n");
        let head = format!("POST / HTTP/1.1\r\n{line}\r\n");
        spoilt(&format!("{head}a\nb\nc\n"), &head);
        for length in ["+5", "-1", "5, 5", "0x5", "99999999999999999999", ""] {
            let head = format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n");
            spoilt(&head, &head);
        }
        let zeros = "0".repeat(LINE);
        let size = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{zeros}a\r\n");
        assert!(Scanner::default().scan(&mut size.into_bytes()).is_err());
    }

    #[test]
    fn what_follows_a_request_to_switch_is_another_request_if_it_was_not_granted() {
        for head in [
            "GET / HTTP/1.1\r\nupgrade: x\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
        ] {
            let mut scanner = Scanner::default();
            scanner.scan(&mut head.as_bytes().to_vec()).unwrap();
            assert!(!scanner.early());
            scanner.stay();
            let mut next = b"GET / HTTP/1.1\n".to_vec();
            scanner.scan(&mut next).unwrap();
            assert!(next.ends_with(b"\0"));

            let mut scanner = Scanner::default();
            scanner.scan(&mut format!("{head}\n").into_bytes()).unwrap();
            assert!(scanner.early());
        }
    }

    #[test]
    fn h2c_is_never_granted_and_opens_nothing() {
        let head = "GET / HTTP/1.1\r\nupgrade: h2c\r\n\r\n";
        let next = format!("{head}GET / HTTP/1.1\n");
        spoilt(&next, &next);
    }

    #[test]
    fn a_coding_that_is_not_chunked_once_is_spoilt_at_the_end_of_its_head() {
        for coding in [
            "chunked, chunked",
            "gzip, chunked",
            "identity",
            "chunked;q=1",
            "\x0bchunked",
            "",
        ] {
            let head = format!("POST / HTTP/1.1\r\nTransfer-Encoding: {coding}\r\n\r\n");
            spoilt(&head, &head);
        }
        let twice =
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n";
        spoilt(twice, twice);
    }

    #[test]
    fn long_lines_are_followed_without_being_kept() {
        let long = "x".repeat(10 * LINE);
        let mut scanner = Scanner::default();
        let mut head = format!("GET /{long} HTTP/1.1\r\n{long}: {long}\r\n").into_bytes();
        scanner.scan(&mut head).unwrap();
        assert!(scanner.within_head());
        assert!(scanner.line.capacity() <= 2 * LINE);
        spoilt(
            &format!("GET /{long} HTTP/1.1\r\n{long}: {long}\n"),
            &format!(": {long}\n"),
        );
    }
}
