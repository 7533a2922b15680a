//! HTTP/2 by hand, frame by frame, where no client would send such.

use std::net::SocketAddr;

use super::Gateway;
use super::raw::Conn;
use super::upstream::Upstream;

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that are never indexed, which need neither tables nor Huffman.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(text.len() as u8);
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// What comes back for these frames on stream 1: a status as bytes, a reset, or the end of the connection.
#[derive(Debug, PartialEq)]
enum Told {
    Answered(Vec<u8>),
    Reset,
    Ended,
}

fn by_hand(addr: SocketAddr, frames: &[Vec<u8>]) -> Told {
    let mut conn = Conn::open(addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frames.concat());
    let _ = conn.try_send(bytes);
    loop {
        let Ok(head) = conn.exactly(9) else {
            return Told::Ended;
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Ok(payload) = conn.exactly(length) else {
            return Told::Ended;
        };
        match (head[3], stream) {
            (1, 1) => return Told::Answered(payload),
            (3, 1) => return Told::Reset,
            (7, _) => return Told::Ended,
            _ => {}
        }
    }
}

#[test]
fn streams_that_would_smuggle_are_reset() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let base = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/evil"),
        (":authority", "a"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    // END_HEADERS is 4, END_STREAM 1.
    let body = |text: &str| frame(0, 1, 1, text.as_bytes());
    for (heads, data) in [
        // Lengths that do not match what comes (RFC 9113 8.1.1).
        (with(&[("content-length", "3")]), Some("hello")),
        (with(&[("content-length", "9")]), Some("hello")),
        (
            with(&[("content-length", "5"), ("content-length", "6")]),
            Some("hello"),
        ),
        (with(&[("content-length", "five")]), Some("hello")),
        (with(&[("content-length", "5")]), None),
        // What belongs to connections (8.2.2).
        (
            with(&[("transfer-encoding", "chunked")]),
            Some("0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"),
        ),
        (with(&[("connection", "close")]), None),
        (with(&[("proxy-connection", "keep-alive")]), None),
        (with(&[("keep-alive", "x")]), None),
        (with(&[("upgrade", "websocket")]), None),
        (with(&[("te", "gzip")]), None),
        // What is no name or value (8.2.1).
        (
            with(&[("x", "a\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")]),
            None,
        ),
        (with(&[("x", "a\nb")]), None),
        (with(&[("x", "a\0b")]), None),
        (with(&[("x y", "a")]), None),
        (with(&[("x: a\r\ny", "a")]), None),
        (with(&[("X-Upper", "a")]), None),
        (with(&[("", "a")]), None),
        // Pseudo-fields that are wrong, many or missing (8.3).
        (with(&[(":path", "/other")]), None),
        (with(&[(":nonsense", "a")]), None),
        (
            vec![(":method", "GET"), (":scheme", "http"), (":authority", "a")],
            None,
        ),
        (
            vec![(":scheme", "http"), (":path", "/evil"), (":authority", "a")],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", ""),
                (":authority", "a"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/evil HTTP/1.1\r\nx: y"),
                (":authority", "a"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/evil x"),
                (":authority", "a"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET /x HTTP/1.1\r\n"),
                (":scheme", "http"),
                (":path", "/evil"),
                (":authority", "a"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/evil"),
                (":authority", "a\r\nx: y"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                ("x", "y"),
                (":scheme", "http"),
                (":path", "/evil"),
                (":authority", "a"),
            ],
            None,
        ),
        (
            vec![
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/evil"),
                (":authority", "a"),
                ("host", "b"),
            ],
            None,
        ),
        (
            vec![(":method", "CONNECT"), (":authority", "other.example:443")],
            None,
        ),
    ] {
        let flags = if data.is_some() { 4 } else { 5 };
        let mut frames = vec![frame(1, flags, 1, &fields(&heads))];
        frames.extend(data.map(body));
        let told = by_hand(gateway.addr, &frames);
        let evil = upstream.requests();
        match &told {
            Told::Reset | Told::Ended => {}
            // An answer is one that refuses. Entries 8 to 11 of the static table are statuses from 200 to 304, and all others
            // below 400 are nothing a gateway says.
            Told::Answered(block) => {
                assert!(!matches!(block[0], 0x88..=0x8b), "{heads:?}: {block:?}")
            }
        }
        assert!(evil.is_empty(), "{heads:?} went through: {evil:?} {told:?}");
    }
    // A good one by the same hand.
    let good = frame(1, 5, 1, &fields(&base));
    assert_eq!(
        by_hand(gateway.addr, &[good]),
        by_hand(gateway.addr, &[frame(1, 5, 1, &fields(&base))])
    );
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn rapid_resets_and_floods_do_not_end_it() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let head = fields(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
    ]);
    let mut conn = Conn::open(gateway.addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for n in 0..5_000_u32 {
        bytes.extend(frame(1, 5, 2 * n + 1, &head));
        bytes.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
    }
    let _ = conn.try_send(bytes);
    // Headers without an end.
    let mut endless = Conn::open(gateway.addr);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 1, 1, &head));
    let more = fields(&[("x", &"y".repeat(100))]).repeat(100);
    for _ in 0..1_000 {
        bytes.extend(frame(9, 0, 1, &more));
    }
    let _ = endless.try_send(bytes);
    assert!(endless.closed());
    assert_eq!(gateway.ask(super::get("/fine")).0.status(), 200);
    assert!(gateway.program.ended().is_none());
}
