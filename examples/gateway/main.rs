//! A reverse proxy for HTTP/1.1, HTTP/2 and gRPC with every layer by a flag; point it at any service:
//! `cargo run --release --features full --example gateway -- --upstream http://127.0.0.1:8000 --shed --admin 127.0.0.1:9090`
//!
//! HTTP/1.1 and HTTP/2 share the port it listens on, with TLS by ALPN and without by how a connection begins. Upstreams
//! are `http://` (HTTP/1.1), `h2c://` (HTTP/2 without TLS, as most gRPC servers speak) or `https://` (by ALPN). The first lines on
//! stdout are `listening on URL` and, with `--admin`, `admin on URL`. SIGTERM and Ctrl-C drain; a second one ends at once.
//!
//! # What becomes of a request
//!
//! ```text
//! client ── wire ── edge ── accounting ── timing ── profile ── coalesce ── shed ── balance ── throttle ── pool ── upstream
//! ```
//!
//! - *wire* refuses what could be read in two ways: a request with both `Content-Length` and `Transfer-Encoding`, lines that
//!   end in a bare LF. Everything else about framing hyper refuses itself. Interim answers (103 and others) go out here.
//! - *edge* is what RFC 9110 7.6 asks of an intermediary. It takes out `Connection`, what that names, and the other
//!   hop-by-hop fields; adds `Via`; appends to `X-Forwarded-For` and `Forwarded`, and sets `X-Forwarded-Proto` and
//!   `X-Forwarded-Host`, whatever the client said there. `Host` is the upstream's. `TE: trailers` is passed on, so trailers
//!   go both ways; `Expect: 100-continue` is answered by the upstream; `Upgrade` goes through to it, but for `h2c`.
//!   Whatever went wrong inside becomes an answer here: 503 with `Retry-After` when a pool or a queue is full, 502 when an
//!   upstream is broken or refuses, 504 when it is silent; for gRPC UNAVAILABLE or DEADLINE_EXCEEDED.
//! - *balance* asks the upstream with the fewest requests. One that failed is left alone for a while. A request that was
//!   provably not sent goes to the next; one that may have been sent does so once, and only if its method is idempotent and
//!   it has no body: a POST is never sent twice.
//!
//! A response that breaks off is never ended as if it were whole: HTTP/1 closes the connection in the middle, HTTP/2
//! resets the stream, and a gRPC call over HTTP/2 ends with UNAVAILABLE in its trailers.
//!
//! # What it does not do
//!
//! Interim answers are passed on between HTTP/1.1 and HTTP/1.1; hyper has no way to send or see them over HTTP/2.
//! For the same reason trailers reach an HTTP/1.1 peer only if `Trailer` announced them and, on their way back, if the client
//! said `TE: trailers`. CONNECT is refused, with HTTP/2's extended one. A client that opens no window for an HTTP/2 stream keeps
//! the upstream's connection until its own ends.

mod answer;
mod connector;
mod drain;
mod edge;
mod erased;
mod fields;
mod flags;
mod interim;
mod limits;
mod listen;
mod origin;
mod rules;
mod scan;
mod silence;
mod stack;
mod tls;
mod tunnel;
mod upload;
mod upstream;
mod wire;

use std::io::Write as _;
use std::process::ExitCode;

use tower_flow::profile::{CpuUsage, SchedulerUsage};
use tower_flow::{BoxError, Flow};

use crate::drain::{Drain, Signals};
use crate::flags::Flags;

fn main() -> ExitCode {
    let flags = Flags::read();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(flags)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<ExitCode, BoxError> {
    limits::raise();
    let mut signals = Signals::listen()?;
    let flow = Flow::new("gateway");
    let drain = Drain::new();
    let listener = listen::Listener::bind(&flags).await?;
    let stack = stack::build(&flags, &flow)?;
    let admin = match flags.admin {
        Some(addr) => {
            CpuUsage::new().attach(&flow);
            SchedulerUsage::new("gateway").attach(&flow);
            Some(flow.admin().bind(addr).await?)
        }
        None => None,
    };

    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", listener.url())?;
    if let Some(admin) = admin {
        writeln!(stdout, "admin on http://{}", admin.local_addr())?;
        tokio::spawn(admin.run());
    }
    let mut serving = tokio::spawn(listener.serve(stack, drain.clone()));
    tokio::select! {
        () = signals.next() => drain.begin(),
        // It does not end by itself.
        served = &mut serving => served?,
    }
    let cut = tokio::select! {
        // It ends once the last connection has.
        served = &mut serving => { served?; false }
        () = tokio::time::sleep(flags.grace) => true,
        () = signals.next() => true,
    };
    if cut {
        eprintln!(
            "gateway: {} connections were cut after the grace of {:?}",
            drain.open(),
            flags.grace
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
