//! The workload: a chat event, and the store it is written to.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use tower::Service;
use tower_flow::BoxError;

/// What somebody says in a room: some 250 bytes.
#[derive(Clone, PartialEq, Message)]
pub struct ChatEvent {
    #[prost(uint64, tag = "1")]
    pub room: u64,
    #[prost(uint64, tag = "2")]
    pub author: u64,
    #[prost(uint64, tag = "3")]
    pub at_micros: u64,
    #[prost(string, tag = "4")]
    pub text: String,
    #[prost(string, repeated, tag = "5")]
    pub mentions: Vec<String>,
}

impl ChatEvent {
    pub fn number(n: u64) -> Self {
        Self {
            room: n % 1_000,
            author: n % 77_777,
            at_micros: 1_700_000_000_000_000 + n,
            text: "the quick brown fox jumps over the lazy dog, and over and over again ".repeat(3),
            mentions: vec!["ada".into(), "grace".into()],
        }
    }
}

/// How many bytes the log keeps before it begins anew.
const LOG: usize = 64 << 20;

/// Appends what it is given, encoded, to a log in memory and to the index of its room; answers with its number.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    count: u64,
    rooms: HashMap<u64, (u64, usize)>,
}

impl Service<Bytes> for Store {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, encoded: Bytes) -> Self::Future {
        ready(self.append(&encoded))
    }
}

impl Store {
    fn append(&self, encoded: &Bytes) -> Result<u64, BoxError> {
        // What is no event is not stored.
        let event = ChatEvent::decode(&encoded[..])?;
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.bytes.len() + encoded.len() + 4 > LOG {
            log.bytes.clear();
        }
        let at = log.bytes.len();
        let length = u32::try_from(encoded.len())?;
        log.bytes.extend_from_slice(&length.to_le_bytes());
        log.bytes.extend_from_slice(encoded);
        log.count += 1;
        let room = log.rooms.entry(event.room).or_default();
        *room = (room.0 + 1, at);
        Ok(log.count)
    }
}
