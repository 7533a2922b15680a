//! The gateway, by what can be seen from outside: its command line, and the bytes at either end of it.
//!
//! Written from RFC 9110, 9112 and 9113 and from what the flags promise, not from the program.

use std::net::SocketAddr;

use crate::support::programs::{Program, example};

mod answers;
mod balance;
mod drain;
mod faults;
mod flags;
mod foreign;
mod forward;
mod frames;
mod grpc;
mod headers;
mod http2;
mod interim;
mod layers;
mod raw;
mod smuggling;
#[cfg(target_os = "linux")]
mod soak;
mod streaming;
mod tls;
mod upstream;

/// A gateway of its own for one test.
pub struct Gateway {
    pub program: Program,
    pub url: String,
    pub addr: SocketAddr,
}

// ===== impl Gateway =====

impl Gateway {
    /// In front of one upstream.
    pub fn start(upstream: &str, flags: &[&str]) -> Self {
        Self::before(&[upstream], flags)
    }

    pub fn before(upstreams: &[&str], flags: &[&str]) -> Self {
        let mut args = vec!["--listen", "127.0.0.1:0"];
        for upstream in upstreams {
            args.extend(["--upstream", upstream]);
        }
        args.extend(flags);
        let program = Program::start(example("gateway"), args);
        let url = program.line("listening on ");
        let addr = address(&url);
        Self { program, url, addr }
    }

    /// Where the live endpoint is.
    pub fn admin(&self) -> SocketAddr {
        address(&self.program.line("admin on "))
    }

    pub fn client(&self) -> raw::Conn {
        raw::Conn::open(self.addr)
    }

    /// The answer to one request, on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> (raw::Head, raw::Body) {
        let mut client = self.client();
        client.send(request);
        client.response()
    }
}

fn address(url: &str) -> SocketAddr {
    let (_, rest) = url.split_once("://").unwrap();
    rest.trim_end_matches('/').parse().unwrap()
}

/// A GET of this path.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n\r\n")
}

/// A POST of this body.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {length}\r\n\r\n{body}")
}
