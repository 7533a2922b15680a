//! One connection: async-nats' client, and an inbox of our own for what is answered on it.
//!
//! async-nats' own requests leave an entry in its table for each that is dropped, or that nobody answers, for as long
//! as the connection lives; nor does it say that a connection was lost to those who wait for an answer on it. Here
//! whoever stops waiting takes the entry along, and what was sent on a connection that is gone fails as soon as that is
//! seen.

mod courier;
mod places;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, PublishErrorKind, Statistics, Subject};
use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::AbortHandle;

use super::error::Error;
use super::gather::Gather;
use super::message::Parts;
use courier::run;
pub(super) use places::{Seat, Tickets};

/// How often a connection is looked at while somebody waits for it: async-nats tells nobody when it is lost or back.
const LOOK: Duration = Duration::from_millis(25);

/// A connection that is shared; with the last of these its task ends.
pub(super) struct Line {
    desk: Arc<Desk>,
    task: AbortHandle,
}

/// # Invariants
///
/// An entry is in `waiting` from before its request is sent until it is answered, given up or lost, whichever is first;
/// whoever takes it out has it. The task looks at the connection every [`LOOK`] while there is an entry or a seat, else
/// its waker is in `asleep`, and whoever adds one takes that and wakes it.
#[derive(Default)]
struct Table {
    next: u64,
    waiting: FxHashMap<u64, Entry>,
    /// Who waits for the connection.
    seats: FxHashMap<u64, Waker>,
    asleep: Option<Waker>,
    /// Whether the inbox is subscribed to: what is sent before has nowhere to be answered.
    open: bool,
    closed: bool,
    /// The connection that was seen last: the first is 1.
    seen: u64,
    /// Answers that came when nobody waited any more.
    late: u64,
}

struct Desk {
    client: Client,
    stats: Arc<Statistics>,
    prefix: String,
    table: Mutex<Table>,
}

struct Entry {
    /// The connection it was sent on.
    connection: u64,
    to: To,
}

/// Who gets an answer.
enum To {
    One(oneshot::Sender<Message>),
    /// That at a place among many, and the permit to have it in flight.
    Many(Arc<Gather>, usize, #[allow(dead_code)] OwnedSemaphorePermit),
}

// ===== impl Line =====

impl Line {
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn new(client: Client) -> Arc<Self> {
        let desk = Arc::new(Desk {
            prefix: format!("{}.", client.new_inbox()),
            stats: client.statistics(),
            client,
            table: Mutex::default(),
        });
        let task = tokio::spawn(run(desk.clone())).abort_handle();
        Arc::new(Self { desk, task })
    }

    pub(super) fn client(&self) -> &Client {
        &self.desk.client
    }

    pub(super) fn is_up(&self) -> bool {
        self.desk.is_up()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.desk.table().closed
    }

    pub(super) fn max_payload(&self) -> usize {
        self.desk.client.max_payload()
    }

    /// How often a connection was made.
    pub(super) fn connects(&self) -> u64 {
        self.desk.connects()
    }

    /// Answers that came when nobody waited any more.
    pub(super) fn late(&self) -> u64 {
        self.desk.table().late
    }

    pub(super) fn seat(self: &Arc<Self>) -> Seat {
        Seat {
            line: self.clone(),
            id: None,
        }
    }

    /// Has an entry for an answer, under the id that begins with the tickets'.
    pub(super) fn expect_one(
        self: &Arc<Self>,
    ) -> Result<(Tickets, oneshot::Receiver<Message>), Error> {
        let (sender, receiver) = oneshot::channel();
        let tickets = self.reserve(1);
        self.desk.insert(tickets.first, To::One(sender))?;
        Ok((tickets, receiver))
    }

    /// Ids for as many, which have no entries yet.
    pub(super) fn reserve(self: &Arc<Self>, count: usize) -> Tickets {
        let count = count as u64;
        let mut table = self.desk.table();
        let first = table.next;
        table.next += count;
        drop(table);
        Tickets {
            line: self.clone(),
            first,
            count,
        }
    }

    /// Where what is sent under `id` is to be answered.
    pub(super) fn reply(&self, id: u64) -> String {
        format!("{}{id:x}", self.desk.prefix)
    }

    /// Sends it, to be answered under `id`. Once this is ready with `Ok` it may have been sent; a future dropped before
    /// has sent nothing.
    pub(super) async fn send(&self, parts: Parts, id: u64) -> Result<(), Error> {
        let client = &self.desk.client;
        let reply = Subject::from(self.reply(id));
        let (subject, size) = (parts.subject.clone(), parts.size());
        let sent = match parts.headers {
            Some(headers) if !headers.is_empty() => {
                client
                    .publish_with_reply_and_headers(parts.subject, reply, headers, parts.payload)
                    .await
            }
            _ => {
                client
                    .publish_with_reply(parts.subject, reply, parts.payload)
                    .await
            }
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::InvalidSubject => Error::malformed("subject", &subject),
            // Checked before; the limit changed in between, with the server.
            PublishErrorKind::MaxPayloadExceeded => Error::too_large(size, client.max_payload()),
            PublishErrorKind::Send => Error::closed(),
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("state", &self.desk.client.connection_state())
            .field("inbox", &self.desk.prefix)
            .finish_non_exhaustive()
    }
}

// ===== impl Desk =====

impl Desk {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn connects(&self) -> u64 {
        self.stats.connects.load(Ordering::Relaxed)
    }

    fn insert(&self, id: u64, to: To) -> Result<(), Error> {
        let connection = self.connects();
        let mut table = self.table();
        if table.closed {
            return Err(Error::closed());
        }
        table.waiting.insert(id, Entry { connection, to });
        let asleep = table.asleep.take();
        drop(table);
        wake(asleep);
        Ok(())
    }

    fn deliver(&self, message: Message) {
        let token = message.subject.strip_prefix(self.prefix.as_str());
        let id = token.and_then(|token| u64::from_str_radix(token, 16).ok());
        let mut table = self.table();
        let entry = id.and_then(|id| table.waiting.remove(&id));
        if entry.is_none() {
            table.late += 1;
        }
        drop(table);
        match entry.map(|entry| entry.to) {
            Some(To::One(sender)) => drop(sender.send(message)),
            Some(To::Many(gather, place, _permit)) => gather.put(place, Ok(message)),
            None => {}
        }
    }

    /// Fails what was sent on a connection that is gone, and wakes those who wait for one that is there. Whether
    /// anybody waits still.
    fn look(&self, cx: &mut Context<'_>) -> bool {
        let (up, connects) = (self.is_up(), self.connects());
        let mut table = self.table();
        let lost: Vec<_> = match up {
            // One that was made while the state was not looked at.
            true if table.seen != connects => table
                .waiting
                .extract_if(|_, entry| entry.connection < connects)
                .collect(),
            true => Vec::new(),
            false => table.waiting.drain().collect(),
        };
        table.seen = connects;
        let seats = match up && table.open {
            true => std::mem::take(&mut table.seats),
            false => FxHashMap::default(),
        };
        let busy = !table.waiting.is_empty() || !table.seats.is_empty();
        table.asleep = (!busy).then(|| cx.waker().clone());
        drop(table);
        lost.into_iter().for_each(|(_, entry)| entry.lost());
        seats.into_values().for_each(Waker::wake);
        busy
    }

    fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        let lost = std::mem::take(&mut table.waiting);
        let seats = std::mem::take(&mut table.seats);
        drop(table);
        lost.into_values().for_each(Entry::lost);
        seats.into_values().for_each(Waker::wake);
    }
}

impl Entry {
    fn lost(self) {
        match self.to {
            // Its receiver asks why.
            To::One(sender) => drop(sender),
            To::Many(gather, place, _permit) => gather.put(place, Err(Error::disconnected(true))),
        }
    }
}

impl Desk {
    /// Whether there is nothing to look at; then `cx` is woken when there is.
    fn sleeps(&self, cx: &mut Context<'_>) -> bool {
        let mut table = self.table();
        let idle = table.waiting.is_empty() && table.seats.is_empty();
        table.asleep = idle.then(|| cx.waker().clone());
        idle
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
