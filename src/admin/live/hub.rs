//! Who listens, and the task that tells them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;

use super::book::Book;
use super::update::LONGEST;
use crate::admin::link::Held;
use crate::base::clock::{self, Instant};
use crate::base::flow::Flow;

/// How often there is an update.
const PERIOD: Duration = Duration::from_secs(1);
/// How many updates are kept for those who are behind.
const KEPT: usize = 4;
/// How long one may take nothing of what is there for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of an event is told at a time: no update is larger, but what there is may be.
const PIECE: usize = LONGEST;

/// What all listeners of an endpoint share.
///
/// # Invariants
///
/// - `book` is locked before `desk`, and neither while a waker or a connection's end runs.
/// - A listener has a seat until it is dropped or put out, whichever is first; there are never more than `most`.
/// - An update that is not whole says only what changed since the one before it. So a listener that comes, or has
///   missed some, asks for a whole one and passes over all others until it gets one.
pub(in crate::admin) struct Hub {
    flow: Flow,
    most: usize,
    book: Mutex<Pages>,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Pages {
    book: Book,
    /// What there is, as told to all who come before the next look.
    outline: Option<Bytes>,
}

#[derive(Default)]
struct Desk {
    /// The last updates.
    kept: VecDeque<Update>,
    /// How many there were.
    count: u64,
    /// Somebody needs a whole one.
    whole: bool,
    /// There is a task.
    ticking: bool,
    seats: HashMap<u64, Seat>,
    seated: u64,
}

struct Seat {
    waker: Option<Waker>,
    /// Since when there has been something it did not ask for.
    behind: Option<Instant>,
    /// Its connection, when that is ours.
    held: Option<Held>,
}

#[derive(Clone)]
enum Update {
    /// There is something else than there was.
    Changed,
    Tick {
        whole: bool,
        event: Bytes,
    },
}

/// One who listens: a stream of events.
pub(in crate::admin) struct Listener {
    hub: Arc<Hub>,
    seat: u64,
    /// What is told to this one only, at the head of what there is.
    head: String,
    greeted: bool,
    /// What is left of the event it is being told.
    rest: Bytes,
    next: u64,
    /// Only a whole update makes sense to it.
    lost: bool,
}

/// Why nobody else may listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Refusal {
    /// So many do already.
    Full(usize),
    /// There is no runtime to tell the time.
    NoRuntime,
}

/// The task of a hub: while there is one, `ticking` is set.
struct Ticking {
    hub: Arc<Hub>,
    /// Whether it still has to say that it ended.
    armed: bool,
}

// ===== impl Hub =====

impl Hub {
    pub(in crate::admin) fn new(flow: Flow, most: usize) -> Arc<Self> {
        Arc::new(Self {
            flow,
            most,
            book: Mutex::default(),
            desk: Mutex::default(),
        })
    }

    /// Looks every second as long as it is polled.
    pub(in crate::admin) async fn run(self: Arc<Self>) {
        self.desk().ticking = true;
        Ticking::new(self).run(true).await;
    }

    /// Lets somebody listen: events begin with the state, and `head` in it. Where no task looks, one begins.
    pub(in crate::admin) fn listen(
        self: &Arc<Self>,
        head: String,
        held: Option<Held>,
    ) -> Result<Listener, Refusal> {
        let mut desk = self.desk();
        if desk.seats.len() >= self.most {
            return Err(Refusal::Full(self.most));
        }
        if !desk.ticking {
            let runtime = Handle::try_current().map_err(|_| Refusal::NoRuntime)?;
            desk.ticking = true;
            runtime.spawn(Ticking::new(self.clone()).run(false));
        }
        desk.seated += 1;
        let seat = desk.seated;
        desk.seats.insert(
            seat,
            Seat {
                waker: None,
                behind: None,
                held,
            },
        );
        desk.whole = true;
        Ok(Listener {
            hub: self.clone(),
            seat,
            head,
            greeted: false,
            rest: Bytes::new(),
            next: desk.count,
            lost: true,
        })
    }

    /// One look, and when somebody listens one update.
    fn tick(&self, now: Instant) {
        let layers = self.flow.attached();
        let whole = {
            let mut desk = self.desk();
            let whole = std::mem::take(&mut desk.whole);
            (!desk.seats.is_empty()).then_some(whole)
        };
        let mut pages = self.pages();
        pages.outline = None;
        let new = pages.book.look(&layers, now);
        let Some(whole) = whole else { return };
        let changed = pages.book.reshape(&layers) | new;
        let whole = whole || changed;
        let update = pages
            .book
            .update(&self.flow, &layers, now, clock::wall(), whole);
        drop(pages);

        let event = event("tick", &update);
        let mut desk = self.desk();
        if changed {
            desk.push(Update::Changed);
        }
        desk.push(Update::Tick { whole, event });
        let (woken, out) = desk.rouse(now);
        drop(desk);
        woken.into_iter().for_each(Waker::wake);
        for seat in out {
            if let Some(held) = &seat.held {
                held.close();
            }
            if let Some(waker) = seat.waker {
                waker.wake();
            }
        }
    }

    fn state(&self, head: &str) -> Bytes {
        let mut pages = self.pages();
        let Pages { book, outline } = &mut *pages;
        let outline = outline.get_or_insert_with(|| {
            let layers = self.flow.attached();
            book.outline(&self.flow, &layers, clock::now(), clock::wall())
                .into()
        });
        let outline = outline.clone();
        drop(pages);
        let outline = std::str::from_utf8(&outline).unwrap_or_default();
        let start = "retry: 2000\n";
        format!("{start}event: state\ndata: {{{head},{outline}\n\n").into()
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("most", &self.most)
            .field("listeners", &self.desk().seats.len())
            .finish_non_exhaustive()
    }
}

// ===== impl Desk =====

impl Desk {
    fn push(&mut self, update: Update) {
        self.kept.push_back(update);
        self.count += 1;
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// The update with that number, while it is kept.
    fn get(&self, number: u64) -> Option<&Update> {
        let first = self.count - self.kept.len() as u64;
        self.kept.get(number.checked_sub(first)? as usize)
    }

    /// Whether nobody listens; then the task has ended as of now, so that who comes next begins another.
    fn rest(&mut self) -> bool {
        self.ticking = !self.seats.is_empty();
        !self.ticking
    }

    /// Who is to be woken, and who is put out.
    fn rouse(&mut self, now: Instant) -> (Vec<Waker>, Vec<Seat>) {
        let mut woken = Vec::new();
        let slow = |seat: &mut Seat| {
            let behind = *seat.behind.get_or_insert(now);
            // Its own server sees every byte it takes; another one only shows when it wants more.
            let since = match &seat.held {
                Some(held) => held.stuck(),
                None => Some(behind),
            };
            since.is_some_and(|since| now.saturating_duration_since(since) > PATIENCE)
        };
        let out: Vec<_> = self
            .seats
            .extract_if(|_, seat| slow(seat))
            .map(|(_, seat)| seat)
            .collect();
        woken.extend(self.seats.values_mut().filter_map(|seat| seat.waker.take()));
        (woken, out)
    }

    /// This one takes a piece after the other. Whether it still may.
    fn gets_on(&mut self, seat: u64) -> bool {
        let seat = self.seats.get_mut(&seat);
        seat.map(|seat| seat.behind = None).is_some()
    }

    /// Nothing is there for this one: it is behind nobody. The waker it had goes outside the lock.
    fn wait(&mut self, seat: u64, waker: &Waker) -> Option<Waker> {
        let seat = self.seats.get_mut(&seat)?;
        seat.behind = None;
        match &mut seat.waker {
            Some(old) if old.will_wake(waker) => None,
            old => old.replace(waker.clone()),
        }
    }
}

// ===== impl Ticking =====

impl Ticking {
    fn new(hub: Arc<Hub>) -> Self {
        Self { hub, armed: true }
    }

    async fn run(mut self, always: bool) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            if !always {
                let mut pages = self.hub.pages();
                if self.hub.desk().rest() {
                    // Whoever comes next is told of then, not of now.
                    *pages = Pages::default();
                    self.armed = false;
                    return;
                }
            }
            self.hub.tick(clock::now());
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if self.armed {
            self.hub.desk().ticking = false;
        }
    }
}

// ===== impl Listener =====

impl Listener {
    /// The next event, or a piece of one. It ends when this one was put out for being slow.
    pub(in crate::admin) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.poll_event(cx) {
                Poll::Ready(Some(event)) => self.rest = event,
                none => return none,
            }
        } else if !self.hub.desk().gets_on(self.seat) {
            return Poll::Ready(None);
        }
        let size = self.rest.len().min(PIECE);
        Poll::Ready(Some(self.rest.split_to(size)))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let now = clock::now();
        if !self.greeted {
            self.greeted = true;
            return Poll::Ready(Some(self.hub.state(&self.head)));
        }
        loop {
            let mut desk = self.hub.desk();
            if !desk.seats.contains_key(&self.seat) {
                return Poll::Ready(None);
            }
            if self.next < desk.count && desk.get(self.next).is_none() {
                // Too far behind: only a whole one helps, and none that is kept need be.
                self.next = desk.count;
                self.lost = true;
                desk.whole = true;
            }
            let update = desk.get(self.next).cloned();
            let ahead = desk.count;
            let seat = desk.seats.get_mut(&self.seat);
            let Some((update, seat)) = update.zip(seat) else {
                let old = desk.wait(self.seat, cx.waker());
                drop(desk);
                drop(old);
                return Poll::Pending;
            };
            self.next += 1;
            seat.behind = (self.next < ahead).then_some(now);
            drop(desk);
            match update {
                Update::Changed => {
                    self.lost = true;
                    return Poll::Ready(Some(self.hub.state(&self.head)));
                }
                Update::Tick { whole, event } if whole || !self.lost => {
                    self.lost = false;
                    return Poll::Ready(Some(event));
                }
                Update::Tick { .. } => {}
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let seat = self.hub.desk().seats.remove(&self.seat);
        drop(seat);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("seat", &self.seat)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
