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
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
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
