//! A service that takes items and processes them later: `cargo run --release --features full --example ingest`
//!
//! ```text
//!  callers ─► intake ─► batch ─► store ─► workers
//!              │ sheds by                  │
//!              └────────── lag ◄───────────┘
//! ```
//!
//! Make traffic for it with `--example ingest -- --load http://127.0.0.1:50051`; see `--help` for the rest.
//!
//! # What an acknowledgement means
//!
//! That the item is stored: it will be processed, whoever is killed.
//!
//! - `--store memory` stores it in a queue, for as long as the process lives. SIGTERM processes all of it first.
//! - `--store memory --wal FILE` stores it in a file too, synced before the acknowledgement. After a `kill -9`, or without
//!   power, the next process goes on with what is left. One process has the file at a time.
//! - `--store nats://…` stores it in a JetStream stream that several processes may share. The server keeps it in a file; how
//!   often that is synced is the server's setting.
//!
//! # What is processed twice
//!
//! - With a file: what a worker was at when the process died, between the end of the processing and the note of that: one
//!   item for each worker at most. Without power also what was noted since the last sync.
//! - With NATS: the same, when a process dies or cannot reach the server; what takes longer than a fourth of `--ack-wait`;
//!   and after the server was killed, once more what it had not noted in its own files as done, which it does now and then.
//!   A process knows the last deliveries that it processed itself, and does not process them again; another does.
//!
//! An item that is sent twice with the same id is stored once: the memory store knows the last `--window` ids, also those of
//! the file; a stream those of the last two minutes, and after the server was killed those of them that are still in it.
//!
//! # What is refused
//!
//! When the workers are behind, from 40 % of `--queue` on, a growing part of the calls, and at 80 % all: UNAVAILABLE with
//! `grpc-retry-pushback-ms`. A call whose `x-priority` is `default` or `critical` goes on until the queue is full. A stream
//! is refused at the item it has come to, and its trailer `ingest-accepted` tells how many of its items are stored.

mod intake;
mod load;
mod options;
mod proto;
mod refusal;
mod serve;
mod store;
mod worker;

use std::process::ExitCode;

use options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Options::read() {
        Options::Serve(options) => serve::serve(options).await,
        Options::Load(options) => load::run(options).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
