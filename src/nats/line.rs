//! One connection: async-nats' client, and an inbox of our own for what is answered on it.
//!
//! async-nats' own requests leave an entry in its table for each that is dropped, or that nobody answers, for as long
//! as the connection lives; nor does it say that a connection was lost to those who wait for an answer on it. Here
//! whoever stops waiting takes the entry along, and what was sent on a connection that is gone fails as soon as that is
//! seen.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, PublishErrorKind, Statistics, Subject, Subscriber};
use futures_util::Stream;
use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::error::Error;
use super::gather::Gather;
use super::message::Parts;
use crate::base::clock;

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

/// The place of one who waits for the connection. Empty until needed, and given back on drop.
pub(super) struct Seat {
    line: Arc<Line>,
    id: Option<u64>,
}

/// Takes entries out again when it is dropped.
pub(super) struct Tickets {
    line: Arc<Line>,
    first: u64,
    count: u64,
}

/// The task: hands out what comes, and looks at the connection.
struct Courier {
    desk: Arc<Desk>,
    inbox: Subscriber,
    look: Option<Pin<Box<Sleep>>>,
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

    /// Sends it, to be answered under `id`. Once this is ready with `Ok` it may have been sent; a future dropped before
    /// has sent nothing.
    pub(super) async fn send(&self, parts: Parts, id: u64) -> Result<(), Error> {
        let client = &self.desk.client;
        let reply = Subject::from(format!("{}{id:x}", self.desk.prefix));
        let subject = parts.subject.clone();
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
            PublishErrorKind::MaxPayloadExceeded => Error::too_large(0, client.max_payload()),
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

// ===== impl Seat =====

impl Seat {
    /// Ready while the line is connected and can be answered; fails when it is closed for good.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(cx, true)
    }

    /// Ready once the line can be answered, connected or not.
    pub(super) async fn opened(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll(cx, false)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, up: bool) -> Poll<Result<(), Error>> {
        let desk = &self.line.desk;
        let mut table = desk.table();
        if table.closed {
            return Poll::Ready(Err(Error::closed()));
        }
        if table.open && (!up || desk.is_up()) {
            if let Some(id) = self.id.take() {
                table.seats.remove(&id);
            }
            return Poll::Ready(Ok(()));
        }
        let id = *self.id.get_or_insert_with(|| {
            table.next += 1;
            table.next - 1
        });
        table.seats.insert(id, cx.waker().clone());
        let asleep = table.asleep.take();
        drop(table);
        wake(asleep);
        Poll::Pending
    }
}

impl Clone for Seat {
    /// Waits for nothing yet.
    fn clone(&self) -> Self {
        self.line.seat()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let seat = self.line.desk.table().seats.remove(&id);
            drop(seat);
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line.fmt(f)
    }
}

// ===== impl Tickets =====

impl Tickets {
    pub(super) fn id(&self, place: usize) -> u64 {
        self.first + place as u64
    }

    /// Has an entry for the answer at `place` of `gather`.
    pub(super) fn expect(
        &self,
        gather: &Arc<Gather>,
        place: usize,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Error> {
        let to = To::Many(gather.clone(), place, permit);
        self.line.desk.insert(self.id(place), to)
    }

    /// Gives up the one at `place`.
    pub(super) fn withdraw(&self, place: usize) {
        let entry = self.line.desk.table().waiting.remove(&self.id(place));
        drop(entry);
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let mut table = self.line.desk.table();
        // What was answered is out already: of a batch that was answered in full nothing is looked for.
        let entries: Vec<_> = match table.waiting.is_empty() {
            true => Vec::new(),
            false => (self.first..self.first + self.count)
                .filter_map(|id| table.waiting.remove(&id))
                .collect(),
        };
        drop(table);
        drop(entries);
    }
}

// ===== impl Courier =====

async fn run(desk: Arc<Desk>) {
    /// However the task ends, nobody waits for ever.
    struct Closes(Arc<Desk>);
    impl Drop for Closes {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _closes = Closes(desk.clone());
    let Ok(inbox) = desk.client.subscribe(format!("{}*", desk.prefix)).await else {
        return;
    };
    let seats = {
        let mut table = desk.table();
        table.open = true;
        std::mem::take(&mut table.seats)
    };
    seats.into_values().for_each(Waker::wake);
    let look = None;
    Courier { desk, inbox, look }.await;
}

impl Future for Courier {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match Pin::new(&mut self.inbox).poll_next(cx) {
                Poll::Ready(Some(message)) => self.desk.deliver(message),
                // async-nats drops its end when it gives up for good, or was drained.
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        loop {
            if let Some(look) = &mut self.look {
                if look.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if !self.desk.look(cx) {
                    self.look = None;
                    return Poll::Pending;
                }
            } else if self.desk.sleeps(cx) {
                return Poll::Pending;
            }
            self.look = Some(Box::pin(tokio::time::sleep_until(clock::now() + LOOK)));
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
