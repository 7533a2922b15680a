//! The pool's lock, and what is done by what the state machine decides.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::super::error::Error;
use super::super::line::Line;
use super::buckets::Buckets;
use super::core::{Asked, Core, Limits, LineState};
use super::lease::{Lease, Place, Seat};
use super::tasks::{Dialling, LOOK, Watched, dial, watch};
use crate::base::clock::{self, Instant};
use crate::base::error::SharedError;
use crate::base::metrics::Histogram;

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
    pub(super) changed: Notify,
}

/// How one who waits is told.
type Granted = oneshot::Sender<Result<Lease, Error>>;

pub(super) struct State {
    pub(super) core: Core,
    pub(super) lines: HashMap<u64, Arc<Line>>,
    /// Dials under way; none has a task before that is spawned.
    pub(super) dials: HashMap<u64, Option<AbortHandle>>,
    pub(super) waiting: HashMap<u64, Granted>,
    /// Who asked whether the pool is ready while it was not.
    pub(super) seats: HashMap<u64, Waker>,
    pub(super) next_seat: u64,
    /// Whether a task looks at lines that are down.
    pub(super) watched: bool,
    pub(super) cause: Option<SharedError>,
    pub(super) results: HashMap<&'static str, u64>,
    seconds: Buckets,
    waits: Buckets,
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
            let retired: Vec<_> = std::iter::from_fn(|| {
                let id = state.core.retired()?;
                state.lines.remove(&id)
            })
            .collect();
            let mut dials = Vec::new();
            while here.is_some()
                && let Some(id) = state.core.dial(now)
            {
                state.dials.insert(id, None);
                dials.push(id);
            }
            let seats = match state.core.is_down() && !state.core.is_closed() {
                true => HashMap::new(),
                false => std::mem::take(&mut state.seats),
            };
            let unwatched = !state.watched && (state.core.is_stranded() || !state.seats.is_empty());
            let watches = here.as_ref().filter(|_| unwatched);
            state.watched |= watches.is_some();
            let granted = state.core.grant().map(|(ticket, id)| {
                let lease = Lease::new(self, id, &state);
                (state.waiting.remove(&ticket), lease)
            });
            drop(state);
            // A runtime that ends drops a task within `spawn`, and the task takes the lock then.
            if let Some(here) = watches {
                drop(here.spawn(watch(Watched(Arc::downgrade(self)))));
            }
            for id in dials {
                let Some(here) = &here else { break };
                let task = here.spawn(dial(Dialling::new(self, id))).abort_handle();
                match self.lock().dials.get_mut(&id) {
                    Some(dial) => *dial = Some(task),
                    // It ended already, or the pool was closed.
                    None => task.abort(),
                }
            }
            drop(retired);
            seats.into_values().for_each(Waker::wake);
            match granted {
                // One who has gone in this moment drops the lease, which is passed on.
                Some((Some(sender), lease)) => drop(sender.send(Ok(lease))),
                Some((None, lease)) => drop(lease),
                None => return,
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
                let mut state = self.lock();
                state.refresh();
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
            // Of a line that is down nobody tells that it is back.
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// Lets nothing more in, and closes what nobody uses. What is in flight ends.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        let tickets = state.core.close();
        let waiting = state.leaving(tickets);
        let dials = std::mem::take(&mut state.dials);
        // Leases keep their own.
        let lines = std::mem::take(&mut state.lines);
        let seats = std::mem::take(&mut state.seats);
        for id in dials.keys().chain(lines.keys()) {
            state.core.gone(*id);
        }
        drop(state);
        dials.into_values().flatten().for_each(|task| task.abort());
        drop(lines);
        for sender in waiting {
            drop(sender.send(Err(Error::closed())));
        }
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
        Seat::new(self.clone())
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

    /// Who waits under `tickets`, to be told once the lock is free.
    pub(super) fn leaving(&mut self, tickets: Vec<u64>) -> Vec<Granted> {
        let senders = tickets
            .iter()
            .filter_map(|ticket| self.waiting.remove(ticket));
        senders.collect()
    }

    pub(super) fn unconnected(&self, pause: Option<Duration>) -> Error {
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
