//! The pool's lock, and what is done by what the state machine decides.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::super::error::Error;
use super::super::line::Line;
use super::core::{Asked, Core, Limits, LineState};
use crate::base::clock::{self, Instant};
use crate::base::error::SharedError;
use crate::base::metrics::Histogram;
use crate::base::stats::Bounds;

/// How often lines that lost their server are looked at while somebody waits for one.
const LOOK: Duration = Duration::from_millis(25);

pub(super) struct Options {
    pub(super) name: Arc<str>,
    /// What it was made for, or why that is no server.
    pub(super) servers: Result<Vec<ServerAddr>, String>,
    pub(super) connect: ConnectOptions,
    pub(super) acquire_timeout: Duration,
    pub(super) timeout: Duration,
}

pub(super) struct Shared {
    pub(super) options: Options,
    state: Mutex<State>,
    /// Something came or went.
    changed: Notify,
}

pub(super) struct State {
    pub(super) core: Core,
    lines: HashMap<u64, Arc<Line>>,
    dials: HashMap<u64, AbortHandle>,
    waiting: HashMap<u64, oneshot::Sender<Result<Lease, Error>>>,
    /// Who asked whether the pool is ready while it was not.
    seats: HashMap<u64, Waker>,
    next_seat: u64,
    /// Whether a task looks at lines that are down.
    watched: bool,
    pub(super) cause: Option<SharedError>,
    pub(super) results: HashMap<&'static str, u64>,
    seconds: Buckets,
    waits: Buckets,
}

struct Buckets {
    bounds: Bounds,
    counts: Vec<u64>,
    sum: f64,
}

/// A place for one request on a line; given back when it is dropped.
pub(super) struct Lease {
    shared: Arc<Shared>,
    id: u64,
    pub(super) line: Arc<Line>,
}

/// A place in the queue; left when it is dropped.
struct Place<'a> {
    shared: &'a Arc<Shared>,
    ticket: u64,
    granted: oneshot::Receiver<Result<Lease, Error>>,
}

/// The place of one who waits until the pool is ready.
pub(super) struct Seat {
    shared: Arc<Shared>,
    id: Option<u64>,
}

// ===== impl Shared =====

impl Shared {
    pub(super) fn new(options: Options, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            options,
            state: Mutex::new(State {
                core: Core::new(limits),
                lines: HashMap::new(),
                dials: HashMap::new(),
                waiting: HashMap::new(),
                seats: HashMap::new(),
                next_seat: 0,
                watched: false,
                cause: None,
                results: HashMap::new(),
                seconds: Buckets::new(),
                waits: Buckets::new(),
            }),
            changed: Notify::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a line, waited for no longer than to `until` or the acquire timeout.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        start: Instant,
        until: Option<Instant>,
    ) -> Result<Lease, Error> {
        let mut place = {
            let mut state = self.lock();
            state.refresh();
            let asked = state.core.ask(start);
            let answer = match asked {
                Asked::Granted(id) => Ok(Ok(Lease::new(self, id, &state))),
                Asked::Queued(ticket) => {
                    let (sender, granted) = oneshot::channel();
                    state.waiting.insert(ticket, sender);
                    Ok(Err(Place {
                        shared: self,
                        ticket,
                        granted,
                    }))
                }
                Asked::Full(waiting) => {
                    Err(Error::overloaded(waiting, state.core.limits().waiting))
                }
                Asked::BackingOff(pause) => Err(state.unconnected(Some(pause))),
                Asked::Closed => Err(Error::closed()),
            };
            drop(state);
            self.pump();
            match answer? {
                Ok(lease) => return Ok(lease),
                Err(place) => place,
            }
        };
        let patience = self.options.acquire_timeout;
        let late = start.checked_add(patience);
        let late = match (late, until) {
            (Some(late), Some(until)) => Some(late.min(until)),
            (late, until) => late.or(until),
        };
        let granted = match late {
            Some(late) => tokio::time::timeout_at(late, &mut place.granted).await,
            None => Ok((&mut place.granted).await),
        };
        let waited = clock::now().saturating_duration_since(start);
        self.lock().waits.add(waited);
        match granted {
            Ok(granted) => granted.unwrap_or_else(|_| Err(Error::closed())),
            Err(_) => {
                let state = self.lock();
                let up = state.core.count(LineState::Up);
                Err(Error::acquire_timeout(waited, state.core.in_flight(), up))
            }
        }
    }

    /// Does what the state machine decided since: hands out places, dials, wakes.
    pub(super) fn pump(self: &Arc<Self>) {
        // A future may be dropped anywhere; where no task can be spawned the next who asks does it.
        let here = Handle::try_current().ok();
        loop {
            let mut state = self.lock();
            let now = clock::now();
            while let Some(here) = &here
                && let Some(id) = state.core.dial(now)
            {
                let task = here.spawn(dial(Arc::downgrade(self), id));
                state.dials.insert(id, task.abort_handle());
            }
            let seats = match state.core.is_down() && !state.core.is_closed() {
                true => HashMap::new(),
                false => std::mem::take(&mut state.seats),
            };
            let unwatched = !state.watched && (state.core.is_stranded() || !state.seats.is_empty());
            if let Some(here) = here.as_ref().filter(|_| unwatched) {
                state.watched = true;
                drop(here.spawn(watch(Arc::downgrade(self))));
            }
            let granted = state.core.grant().map(|(ticket, id)| {
                let lease = Lease::new(self, id, &state);
                (state.waiting.remove(&ticket), lease)
            });
            drop(state);
            seats.into_values().for_each(Waker::wake);
            match granted {
                // One who has gone in this moment drops the lease, which is passed on.
                Some((Some(sender), lease)) => drop(sender.send(Ok(lease))),
                Some((None, lease)) => drop(lease),
                None => return,
            }
        }
    }

    fn fail(&self, state: &mut State, tickets: Vec<u64>, error: impl Fn(&State) -> Error) {
        let _ = self;
        for ticket in tickets {
            if let Some(sender) = state.waiting.remove(&ticket) {
                drop(sender.send(Err(error(state))));
            }
        }
    }

    /// Has at least so many connections, now and after one is gone.
    pub(super) async fn warm(self: &Arc<Self>, lines: usize) -> Result<(), Error> {
        self.lock().core.warm(lines);
        let failed = self.lock().core.counts.failed;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            self.pump();
            {
                let state = self.lock();
                let enough = lines.min(state.core.limits().connections);
                if state.core.is_closed() {
                    return Err(Error::closed());
                }
                if state.core.count(LineState::Up) >= enough {
                    return Ok(());
                }
                if state.core.counts.failed != failed {
                    return Err(state.unconnected(None));
                }
            }
            changed.await;
        }
    }

    /// Lets nothing more in, and closes what nobody uses. What is in flight ends.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        let tickets = state.core.close();
        self.fail(&mut state, tickets, |_| Error::closed());
        let dials = std::mem::take(&mut state.dials);
        // Leases keep their own.
        let lines = std::mem::take(&mut state.lines);
        let seats = std::mem::take(&mut state.seats);
        for id in dials.keys().chain(lines.keys()) {
            state.core.gone(*id);
        }
        drop(state);
        dials.into_values().for_each(|task| task.abort());
        drop(lines);
        seats.into_values().for_each(Waker::wake);
        self.changed.notify_waiters();
    }

    /// Ready when nothing is in flight.
    pub(super) async fn idle(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.lock().core.in_flight() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Notes how a request ended.
    pub(super) fn ended(&self, result: &'static str, took: Duration) {
        let mut state = self.lock();
        *state.results.entry(result).or_default() += 1;
        state.seconds.add(took);
    }

    pub(super) fn seat(self: &Arc<Self>) -> Seat {
        Seat {
            shared: self.clone(),
            id: None,
        }
    }
}

async fn dial(shared: Weak<Shared>, id: u64) {
    let (servers, options) = {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        (
            shared.options.servers.clone(),
            shared.options.connect.clone(),
        )
    };
    let dialled = match servers {
        Ok(servers) => options.connect(servers).await.map_err(SharedError::new),
        Err(why) => Err(SharedError::new(why)),
    };
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let mut state = shared.lock();
    state.dials.remove(&id);
    match dialled {
        Ok(client) => {
            // Whoever closed the pool meanwhile wants it no more.
            if state.core.dialled(id) {
                state.lines.insert(id, Line::new(client));
            }
        }
        Err(cause) => {
            state.cause = Some(cause);
            let tickets = state.core.dial_failed(clock::now(), id);
            shared.fail(&mut state, tickets, |state| state.unconnected(None));
        }
    }
    drop(state);
    shared.changed.notify_waiters();
    shared.pump();
}

/// Looks at lines that lost their server, for as long as somebody waits for one.
async fn watch(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        state.refresh();
        state.watched = state.core.is_stranded() || !state.seats.is_empty();
        let goes_on = state.watched;
        drop(state);
        shared.changed.notify_waiters();
        shared.pump();
        if !goes_on {
            return;
        }
    }
}

// ===== impl State =====

impl State {
    /// Looks at every line.
    pub(super) fn refresh(&mut self) {
        let mut gone = Vec::new();
        for (id, line) in &self.lines {
            match line.is_closed() {
                true => gone.push(*id),
                false => drop(self.core.see(*id, line.is_up())),
            }
        }
        for id in gone {
            self.core.gone(id);
            self.lines.remove(&id);
        }
    }

    fn unconnected(&self, pause: Option<Duration>) -> Error {
        let cause = self.cause.clone();
        let cause = cause.unwrap_or_else(|| SharedError::new("it was not tried"));
        Error::connect(cause.into(), pause)
    }

    pub(super) fn line(&self, id: u64) -> Option<&Arc<Line>> {
        self.lines.get(&id)
    }

    pub(super) fn histograms(&self) -> [(&'static str, &'static str, Histogram); 2] {
        [
            (
                "tower_flow_nats_request_seconds",
                "How long requests took",
                self.seconds.histogram(),
            ),
            (
                "tower_flow_nats_wait_seconds",
                "How long requests waited that had to wait for a connection",
                self.waits.histogram(),
            ),
        ]
    }
}

// ===== impl Buckets =====

impl Buckets {
    fn new() -> Self {
        let bounds = Bounds::seconds([
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            2.5, 5.0, 10.0,
        ]);
        Self {
            counts: vec![0; 17],
            bounds,
            sum: 0.0,
        }
    }

    fn add(&mut self, took: Duration) {
        self.counts[self.bounds.of(took)] += 1;
        self.sum += took.as_secs_f64();
    }

    fn histogram(&self) -> Histogram {
        Histogram::new(&self.bounds, self.counts.clone(), self.sum)
    }
}

// ===== impl Lease =====

impl Lease {
    /// # Panics
    ///
    /// Never: lines that are granted are there, since both are under one lock.
    fn new(shared: &Arc<Shared>, id: u64, state: &State) -> Self {
        let line = state
            .lines
            .get(&id)
            .expect("a line that was granted is there");
        Self {
            shared: shared.clone(),
            id,
            line: line.clone(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.core.release(self.id);
        let closing = state.core.is_closed();
        let waited_for = state.core.waiting() > 0;
        drop(state);
        if closing {
            self.shared.changed.notify_waiters();
        } else if waited_for {
            self.shared.pump();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.core.leave(self.ticket);
        let sender = state.waiting.remove(&self.ticket);
        drop(state);
        drop(sender);
    }
}

// ===== impl Seat =====

impl Seat {
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.shared.lock();
        state.refresh();
        if let Some(id) = self.id {
            state.seats.remove(&id);
        }
        if state.core.is_closed() {
            return Poll::Ready(Err(Error::closed()));
        }
        if !state.core.is_down() {
            return Poll::Ready(Ok(()));
        }
        let id = self.id.unwrap_or(state.next_seat);
        state.next_seat = state.next_seat.max(id + 1);
        self.id = Some(id);
        state.seats.insert(id, cx.waker().clone());
        drop(state);
        // Sees to it that somebody looks.
        self.shared.pump();
        Poll::Pending
    }
}

impl Clone for Seat {
    /// Waits for nothing yet.
    fn clone(&self) -> Self {
        self.shared.seat()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let seat = self.shared.lock().seats.remove(&id);
            drop(seat);
        }
    }
}
