//! Counting messages in a gRPC body without copying it.
//!
//! A message is a flag byte, a length of four bytes and that many bytes of payload. Frames of the body have nothing to
//! do with messages: one may hold many, a part of one, or a part of a header. The scanner reads headers and skips
//! payloads with arithmetic, so its work grows with the number of messages, not of bytes.
//!
//! # Invariants
//!
//! - `have` header bytes are in `header`, 0 to 4; the fifth turns them into `left`.
//! - While `left > 0` a payload is passing. A message is counted when its last byte has passed.

use std::io::IoSlice;

use bytes::Buf;
use http::HeaderValue;

use crate::base::outcome::{Code, GRPC_STATUS};

/// Longest block of trailers in a gRPC-Web body that is read; a longer one is skipped.
const LONGEST_TRAILERS: usize = 8 * 1024;
/// Most pieces of one frame that are looked at without an allocation.
const PIECES: usize = 16;

/// How a body frames its messages, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// `application/grpc`.
    Plain,
    /// `application/grpc-web`: trailers are a last frame of the body.
    Web,
    /// `application/grpc-web-text`: the same in base64.
    WebText,
}

/// What passed since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) messages: u64,
    /// Payload without the five bytes of header.
    pub(super) bytes: u64,
    pub(super) compressed: u64,
}

/// Reads one direction of one call.
#[derive(Debug)]
pub(super) struct Scanner {
    header: [u8; 5],
    have: u8,
    blind: bool,
    left: u32,
    web: Option<Box<Web>>,
}

/// What only gRPC-Web needs.
#[derive(Debug, Default)]
struct Web {
    text: bool,
    base64: Base64,
    /// The payload that passes is a block of trailers.
    trailers: Option<Vec<u8>>,
    status: Option<Code>,
}

#[derive(Debug, Default)]
struct Base64 {
    bits: u32,
    held: u8,
}

// ===== impl Framing =====

impl Framing {
    /// The framing of a body with this content type; `None` when it is not gRPC at all.
    #[inline]
    pub(super) fn of(kind: Option<&HeaderValue>) -> Option<Self> {
        let (prefix, rest) = kind?
            .as_bytes()
            .split_at_checked(b"application/grpc".len())?;
        if !prefix.eq_ignore_ascii_case(b"application/grpc") {
            return None;
        }
        match rest.strip_prefix(b"-web") {
            None => matches!(rest.first(), None | Some(b'+' | b';' | b' ')).then_some(Self::Plain),
            Some(rest) if rest.starts_with(b"-text") => Some(Self::WebText),
            Some(_) => Some(Self::Web),
        }
    }
}

// ===== impl Scanner =====

impl Scanner {
    #[inline]
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            header: [0; 5],
            have: 0,
            blind: false,
            left: 0,
            web: match framing {
                Framing::Plain => None,
                Framing::Web | Framing::WebText => Some(Box::new(Web {
                    text: framing == Framing::WebText,
                    ..Web::default()
                })),
            },
        }
    }

    /// Looks at a frame without taking anything from it.
    #[inline]
    pub(super) fn scan<D: Buf>(&mut self, data: &D) -> Tally {
        let first = data.chunk();
        if let ([flag, a, b, c, d, payload @ ..], true) = (first, self.is_between()) {
            // Exactly one message in a frame of its own: what nearly every unary call sends.
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            if payload.len() == length as usize && first.len() == data.remaining() {
                return Tally {
                    messages: 1,
                    bytes: u64::from(length),
                    compressed: u64::from(flag & 1),
                };
            }
        }
        self.any(data)
    }

    /// Whether the next byte begins a message of a plain body.
    #[inline]
    fn is_between(&self) -> bool {
        self.left == 0 && self.have == 0 && !self.blind && self.web.is_none()
    }

    fn any<D: Buf>(&mut self, data: &D) -> Tally {
        let mut tally = Tally::default();
        let first = data.chunk();
        if first.len() == data.remaining() {
            self.piece(first, &mut tally);
        } else {
            self.pieces(data, &mut tally);
        }
        tally
    }

    /// The status in the trailers a gRPC-Web body ended with.
    pub(super) fn status(&self) -> Option<Code> {
        self.web.as_ref()?.status
    }

    /// Whether the body ended within a message.
    pub(super) fn is_truncated(&self) -> bool {
        self.have > 0 || self.left > 0
    }

    /// Whether a frame passed that could not be looked into, so that the counts are too low.
    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    #[cold]
    fn pieces<D: Buf>(&mut self, data: &D, tally: &mut Tally) {
        let mut few = [IoSlice::new(&[]); PIECES];
        let filled = data.chunks_vectored(&mut few);
        if filled < PIECES || length(&few) == data.remaining() {
            return self.all(&few[..filled], data.remaining(), tally);
        }
        let mut many = vec![IoSlice::new(&[]); 64 * PIECES];
        let filled = data.chunks_vectored(&mut many);
        self.all(&many[..filled], data.remaining(), tally);
    }

    fn all(&mut self, pieces: &[IoSlice<'_>], remaining: usize, tally: &mut Tally) {
        if length(pieces) == remaining {
            pieces.iter().for_each(|piece| self.piece(piece, tally));
        } else {
            // A buffer that shows only its first piece cannot be read without being used up.
            self.blind = true;
        }
    }

    #[inline]
    fn piece(&mut self, bytes: &[u8], tally: &mut Tally) {
        if self.blind {
            return;
        }
        match &self.web {
            Some(web) if web.text => self.base64(bytes, tally),
            _ => self.plain(bytes, tally),
        }
    }

    #[inline]
    fn plain(&mut self, mut bytes: &[u8], tally: &mut Tally) {
        while !bytes.is_empty() {
            if self.left == 0 {
                if self.have == 0 && bytes.len() >= 5 {
                    self.header.copy_from_slice(&bytes[..5]);
                    bytes = &bytes[5..];
                } else {
                    self.header[usize::from(self.have)] = bytes[0];
                    bytes = &bytes[1..];
                    self.have += 1;
                    if self.have < 5 {
                        continue;
                    }
                    self.have = 0;
                }
                let [flag, length @ ..] = self.header;
                self.left = u32::from_be_bytes(length);
                if let (Some(web), true) = (&mut self.web, flag & 0x80 != 0) {
                    web.trailers = Some(Vec::new());
                }
            }
            let take = bytes.len().min(self.left as usize);
            let (payload, rest) = bytes.split_at(take);
            self.left -= take as u32;
            bytes = rest;
            self.payload(payload, tally);
        }
    }

    #[inline]
    fn payload(&mut self, payload: &[u8], tally: &mut Tally) {
        if let Some(web) = &mut self.web
            && web.trailer(payload, self.left == 0)
        {
            return;
        }
        tally.bytes += payload.len() as u64;
        if self.left == 0 {
            tally.messages += 1;
            tally.compressed += u64::from(self.header[0] & 1);
        }
    }

    #[cold]
    fn base64(&mut self, text: &[u8], tally: &mut Tally) {
        let mut decoded = [0; 512];
        for text in text.chunks(512) {
            let mut length = 0;
            let bytes = text
                .iter()
                .filter_map(|char| self.web.as_mut()?.base64.push(*char));
            for (byte, place) in bytes.zip(&mut decoded) {
                *place = byte;
                length += 1;
            }
            self.plain(&decoded[..length], tally);
        }
    }
}

// ===== impl Web =====

impl Web {
    /// Takes a piece of a block of trailers; `false` when a message is passing.
    fn trailer(&mut self, payload: &[u8], last: bool) -> bool {
        let Some(block) = &mut self.trailers else {
            return false;
        };
        let room = LONGEST_TRAILERS - block.len();
        block.extend_from_slice(&payload[..payload.len().min(room)]);
        if last {
            self.status = status_in(block);
            self.trailers = None;
        }
        true
    }
}

fn length(pieces: &[IoSlice<'_>]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

/// The `grpc-status` in a block of trailers written as HTTP/1 header lines.
fn status_in(block: &[u8]) -> Option<Code> {
    block.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        name.eq_ignore_ascii_case(GRPC_STATUS.as_str().as_bytes())
            .then(|| Code::from_bytes(value))
    })
}

// ===== impl Base64 =====

impl Base64 {
    /// Takes a character, gives a byte when it is whole. Padding ends a group; the next one may follow it at once,
    /// since every frame of a body is encoded on its own. What is no base64 is skipped.
    fn push(&mut self, char: u8) -> Option<u8> {
        let value = match char {
            b'A'..=b'Z' => char - b'A',
            b'a'..=b'z' => char - b'a' + 26,
            b'0'..=b'9' => char - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => {
                *self = Self::default();
                return None;
            }
            _ => return None,
        };
        self.bits = self.bits << 6 | u32::from(value);
        self.held += 6;
        if self.held < 8 {
            return None;
        }
        self.held -= 8;
        let byte = (self.bits >> self.held) as u8;
        self.bits &= (1 << self.held) - 1;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn message(flag: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&[flag][..], &length, payload].concat()
    }

    fn scan(scanner: &mut Scanner, frames: impl IntoIterator<Item = Vec<u8>>) -> Tally {
        frames.into_iter().fold(Tally::default(), |sum, frame| {
            let tally = scanner.scan(&Bytes::from(frame));
            Tally {
                messages: sum.messages + tally.messages,
                bytes: sum.bytes + tally.bytes,
                compressed: sum.compressed + tally.compressed,
            }
        })
    }

    /// A buffer of several pieces, which shows them all or, like many, only the first.
    struct Pieces(VecDeque<Bytes>, bool);

    impl Buf for Pieces {
        fn remaining(&self) -> usize {
            self.0.iter().map(Bytes::len).sum()
        }
        fn chunk(&self) -> &[u8] {
            self.0.front().map_or(&[], |piece| piece)
        }
        fn advance(&mut self, _: usize) {
            panic!("a scanner takes nothing");
        }
        fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
            let shown = if self.1 { self.0.len() } else { 1 };
            let pieces = self.0.iter().take(shown).zip(into);
            pieces
                .map(|(piece, into)| *into = IoSlice::new(piece))
                .count()
        }
    }

    proptest! {
        #[test]
        fn any_split_counts_the_same(
            messages in proptest::collection::vec((0u8..2, proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..50),
        ) {
            let wire: Vec<u8> = messages.iter().flat_map(|(flag, payload)| message(*flag, payload)).collect();
            let expected = Tally {
                messages: messages.len() as u64,
                bytes: messages.iter().map(|(_, payload)| payload.len() as u64).sum(),
                compressed: messages.iter().map(|(flag, _)| u64::from(*flag)).sum(),
            };
            let mut frames = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                let (frame, after) = rest.split_at(rest.len().min(*cut));
                frames.push(frame.to_vec());
                rest = after;
                if rest.is_empty() { break; }
            }
            let mut scanner = Scanner::new(Framing::Plain);
            prop_assert_eq!(scan(&mut scanner, frames.clone()), expected);
            prop_assert!(!scanner.is_truncated());

            let pieces = frames.iter().cloned().map(Bytes::from).collect::<VecDeque<_>>();
            let mut scanner = Scanner::new(Framing::Plain);
            prop_assert_eq!(scanner.scan(&Pieces(pieces.clone(), true)), expected);
            let mut scanner = Scanner::new(Framing::Plain);
            scanner.scan(&Pieces(pieces, false));
            prop_assert_eq!(scanner.is_blind(), frames.len() > 1);

            let text = frames.iter().map(|frame| base64(frame)).collect::<Vec<_>>();
            let mut scanner = Scanner::new(Framing::WebText);
            prop_assert_eq!(scan(&mut scanner, text), expected);
        }

        #[test]
        fn garbage_never_panics(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
            for framing in [Framing::Plain, Framing::Web, Framing::WebText] {
                scan(&mut Scanner::new(framing), frames.clone());
            }
        }
    }

    fn base64(bytes: &[u8]) -> Vec<u8> {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = Vec::new();
        for group in bytes.chunks(3) {
            let bits = group
                .iter()
                .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - group.len()));
            for place in 0..4 {
                let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
                text.push(if place <= group.len() { digit } else { b'=' });
            }
        }
        text
    }

    #[test]
    fn a_header_cut_at_every_offset_counts_one_message() {
        let wire = message(1, b"hello");
        for cut in 0..=wire.len() {
            let mut scanner = Scanner::new(Framing::Plain);
            let frames = [wire[..cut].to_vec(), wire[cut..].to_vec()];
            let expected = Tally {
                messages: 1,
                bytes: 5,
                compressed: 1,
            };
            assert_eq!(scan(&mut scanner, frames), expected, "{cut}");
        }
    }

    #[test]
    fn a_megabyte_in_one_byte_frames_is_one_message() {
        let wire = message(0, &vec![7; 1 << 20]);
        let mut scanner = Scanner::new(Framing::Plain);
        let tally = scan(&mut scanner, wire.into_iter().map(|byte| vec![byte]));
        assert_eq!(
            tally,
            Tally {
                messages: 1,
                bytes: 1 << 20,
                compressed: 0
            }
        );
    }

    #[test]
    fn a_body_that_ends_within_a_message_is_truncated() {
        for wire in [
            &b"\0"[..],
            b"\0\0\0\0",
            b"\0\0\0\0\x05",
            b"\0\0\0\0\x05hell",
        ] {
            let mut scanner = Scanner::new(Framing::Plain);
            let tally = scan(&mut scanner, [wire.to_vec()]);
            assert!(scanner.is_truncated());
            assert_eq!(tally.messages, 0);
            assert_eq!(tally.bytes, wire.len().saturating_sub(5) as u64);
        }
    }

    #[test]
    fn trailers_in_a_web_body_are_no_message() {
        let body = [
            message(0, b"hi"),
            message(0x80, b"grpc-status: 5\r\ngrpc-message:x\r\n"),
        ]
        .concat();
        let mut scanner = Scanner::new(Framing::Web);
        let tally = scan(&mut scanner, body.iter().map(|byte| vec![*byte]));
        assert_eq!(
            tally,
            Tally {
                messages: 1,
                bytes: 2,
                compressed: 0
            }
        );
        assert_eq!(scanner.status(), Some(Code::NotFound));

        let mut text = Scanner::new(Framing::WebText);
        scan(&mut text, [base64(&body)]);
        assert_eq!(text.status(), Some(Code::NotFound));

        let mut plain = Scanner::new(Framing::Plain);
        assert_eq!(
            scan(&mut plain, [body]).messages,
            2,
            "elsewhere the bit means nothing"
        );
    }

    #[test]
    fn hostile_trailers_are_bounded_and_unknown() {
        let long = message(0x80, &vec![b'x'; 1 << 20]);
        let mut scanner = Scanner::new(Framing::Web);
        scan(&mut scanner, long.chunks(1000).map(<[u8]>::to_vec));
        assert_eq!(scanner.status(), None);
        let garbage = message(0x80, b"GRPC-STATUS :\xff\xfe\r\n");
        let mut scanner = Scanner::new(Framing::Web);
        scan(&mut scanner, [garbage]);
        assert_eq!(scanner.status(), Some(Code::Unknown));
    }

    #[test]
    fn content_types_tell_the_framing() {
        let of = |kind: &'static str| Framing::of(Some(&HeaderValue::from_static(kind)));
        assert_eq!(of("application/grpc"), Some(Framing::Plain));
        assert_eq!(of("application/grpc+proto"), Some(Framing::Plain));
        assert_eq!(of("application/grpc; charset=utf-8"), Some(Framing::Plain));
        assert_eq!(of("application/grpc-web+proto"), Some(Framing::Web));
        assert_eq!(
            of("application/grpc-web-text+proto"),
            Some(Framing::WebText)
        );
        assert_eq!(of("Application/GRPC"), Some(Framing::Plain));
        assert_eq!(of("application/grpcfoo"), None);
        assert_eq!(of("text/html"), None);
        assert_eq!(Framing::of(None), None);
    }
}
