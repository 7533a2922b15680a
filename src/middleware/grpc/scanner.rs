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
mod tests;
