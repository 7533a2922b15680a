//! One flight: a request that is sent once, and all who wait for it. Plain data: no lock, no clock, no task.
//!
//! ```text
//!            step: Drive          finish           publish
//!   Parked ─────────────► Driven ────────► Driven ─────────► Over ──► free, when the last has left
//!      ▲                    │ │  (unlisted)                   ▲
//!      └────── park ────────┘ └── fail (panic, timeout) ──────┤
//!      └────── the leader leaves, and its policy ends it ─────┘
//! ```
//!
//! # Invariants
//!
//! - The work is in exactly one place: in the flight (`Parked`), or with the one who drives it (`Driven`).
//! - Who waits has a seat, and in it the waker of its last poll, unless that waker was taken to be woken. Whoever
//!   changes what a waiter may find wakes all seats: nobody sleeps over an end, over work that asks to be polled, or over
//!   a driver that left.
//! - `direct` work was last polled with a waiter's own waker. A newcomer finds that and drives with the shared one, or
//!   leaves `notified` for the driver it finds: from then on a wake reaches all.
//! - `notified` is set by a wake and cleared when somebody begins to drive. Work that is not direct and not notified has
//!   nothing to be polled for.
//! - Nothing foreign is cloned or dropped here, wakers apart: what is replaced or over is handed out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;

use crate::base::clock::Instant;
use crate::base::priority::Priority;

/// What flights carry. All of it is foreign to them.
pub(super) trait Cargo {
    /// What equal requests have in common.
    type Key: Eq;
    /// The future, and what it needs to be polled by anybody.
    type Work;
    /// A result fit for many.
    type Shared;
    /// What only the leader may have.
    type Own;
}

/// Why a flight ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It took too long.
    TimedOut,
    /// Its leader left, or its task was dropped.
    Abandoned,
    /// It panicked.
    Panicked,
}

/// What a flight that is over has for those who followed.
pub(super) enum Others<C: Cargo> {
    /// The result. The leader's too.
    Take(Arc<C::Shared>),
    /// Nothing: each sends its own request.
    Released,
    /// Nothing: they join anew.
    Anew,
    /// An error. The leader's too, unless it has something of its own.
    Failed(Failure),
}

/// What one waiter gets in the end.
pub(super) enum Verdict<C: Cargo> {
    Own(C::Own),
    Take(Arc<C::Shared>),
    Released,
    Anew,
    Failed(Failure),
}

pub(super) enum State<C: Cargo> {
    Parked(C::Work),
    Driven,
    Over {
        own: Option<C::Own>,
        others: Others<C>,
        /// When, if somebody has asked the clock.
        at: Option<Instant>,
    },
}

/// What a waiter that asks is told.
pub(super) enum Asked<C: Cargo> {
    /// To poll the work: with its own waker if `direct`, else with the shared one. `asked` is the greatest priority of
    /// those who wait.
    Drive {
        work: C::Work,
        direct: bool,
        asked: Priority,
    },
    /// To wait; its waker is in its seat. What was there goes.
    Wait { stale: Option<Waker> },
    /// That it is over, and what it gets.
    Over(Landed<C>),
}

/// What a waiter leaves a flight with, and when that was there, if somebody has asked the clock.
pub(super) struct Landed<C: Cargo> {
    pub(super) verdict: Verdict<C>,
    pub(super) at: Option<Instant>,
}

pub(super) struct Flight<C: Cargo> {
    /// Unlike that of any other flight of its shard, ever; 0 for none.
    pub(super) id: u64,
    pub(super) hash: u64,
    /// Whether an entry of the table leads here.
    pub(super) listed: bool,
    pub(super) state: State<C>,
    /// Whether the leader waits still.
    pub(super) leader: bool,
    /// Whether it ends when the leader has left, once nobody drives it.
    pub(super) orphan: Option<Orphan>,
    /// Whether a task of its own drives it.
    pub(super) detached: bool,
    pub(super) direct: bool,
    pub(super) notified: bool,
    /// The greatest priority among those who joined.
    pub(super) asked: Priority,
    /// The priority its request was sent with.
    pub(super) sent: Option<Priority>,
    /// When it first had to wait.
    pub(super) since: Option<Instant>,
    /// How many have joined the leader.
    pub(super) followers: u32,
    seats: Seats,
}

/// What becomes of a flight whose leader left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orphan {
    /// Those who followed begin anew.
    Anew,
    /// Those who followed fail.
    Fail,
}

/// A place for each waiter's waker.
#[derive(Default)]
struct Seats {
    /// Most flights have no other.
    first: Seat,
    /// From the second on.
    rest: Vec<Seat>,
    vacant: Option<u32>,
    taken: u32,
}

/// Room for the seats of a flight that many wait for, to be used again.
#[derive(Default)]
pub(super) struct Benches(Vec<Seat>);

enum Seat {
    /// Leads to the next vacant one.
    Vacant(Option<u32>),
    Taken(Option<Waker>),
}

impl Default for Seat {
    fn default() -> Self {
        Self::Vacant(None)
    }
}

/// So many seats beside the first a place keeps from flight to flight.
const FEW: usize = 4;

/// How many wakers are taken at a time.
const BATCH: usize = 32;

/// Wakers taken under a lock, to be woken outside.
pub(super) struct Wakers {
    list: [Option<Waker>; BATCH],
    len: usize,
}

// ===== impl Flight =====

impl<C: Cargo> Flight<C> {
    /// The place of a flight.
    pub(super) fn vacant() -> Self {
        Self {
            id: 0,
            hash: 0,
            listed: false,
            state: State::Driven,
            leader: false,
            orphan: None,
            detached: false,
            direct: true,
            notified: false,
            asked: Priority::default(),
            sent: None,
            since: None,
            followers: 0,
            seats: Seats::default(),
        }
    }

    /// A flight begins in a vacant place, driven by its leader, who sits in seat 0.
    pub(super) fn begin(&mut self, id: u64, hash: u64, asked: Priority) {
        debug_assert_eq!(self.id, 0, "the place is vacant");
        self.id = id;
        self.hash = hash;
        self.listed = true;
        self.leader = true;
        self.orphan = None;
        self.detached = false;
        self.direct = true;
        self.notified = false;
        self.asked = asked;
        self.sent = None;
        self.since = None;
        self.followers = 0;
        self.seats.first = Seat::Taken(None);
        self.seats.taken = 1;
    }

    /// It is over, and nobody waits: its place is vacant. What it held.
    pub(super) fn end(&mut self, benches: &mut Benches) -> State<C> {
        debug_assert_eq!(self.seats.taken, 0, "nobody waits");
        self.id = 0;
        self.seats.vacant = None;
        self.seats.rest.clear();
        if self.seats.rest.capacity() > FEW {
            let rest = std::mem::take(&mut self.seats.rest);
            if rest.capacity() > benches.0.capacity() {
                benches.0 = rest;
            }
        }
        std::mem::replace(&mut self.state, State::Driven)
    }

    /// How many wait.
    pub(super) fn crowd(&self) -> u32 {
        self.seats.taken
    }

    /// Whether a caller that matters this much is served well by this flight.
    pub(super) fn suits(&self, priority: Priority) -> bool {
        self.sent.is_none_or(|sent| priority <= sent)
    }

    /// Another waiter; its seat.
    pub(super) fn join(&mut self, priority: Priority, benches: &mut Benches) -> u32 {
        self.asked = self.asked.max(priority);
        self.followers += 1;
        self.seats.sit(benches)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over { .. })
    }

    /// What the waiter in `seat` shall do, in a flight that is not over.
    pub(super) fn ask(&mut self, seat: u32, waker: &Waker) -> Asked<C> {
        match &self.state {
            State::Over { .. } => unreachable!("it has a verdict"),
            State::Driven => {
                // Its driver lends the work a waker that reaches nobody else: it shall be polled once more.
                self.notified |= self.direct && !self.detached;
            }
            State::Parked(_) if self.direct || self.notified => {
                let State::Parked(work) = std::mem::replace(&mut self.state, State::Driven) else {
                    unreachable!("it was parked a line ago");
                };
                self.notified = false;
                self.direct = self.crowd() == 1;
                return Asked::Drive {
                    work,
                    direct: self.direct,
                    asked: self.asked,
                };
            }
            State::Parked(_) => {}
        }
        let stale = self.seats.put(seat, waker);
        Asked::Wait { stale }
    }

    /// Takes the work back from the waiter in `seat`. Whether all must be woken, for there is something to poll it for.
    pub(super) fn park(
        &mut self,
        work: C::Work,
        seat: u32,
        waker: &Waker,
    ) -> (bool, Option<Waker>) {
        debug_assert!(matches!(self.state, State::Driven), "somebody drove it");
        self.state = State::Parked(work);
        (self.notified, self.seats.put(seat, waker))
    }

    /// Somebody wakes the work. Whether all must be woken.
    pub(super) fn ring(&mut self) -> bool {
        self.notified = true;
        // Whoever drives it sees the mark when done.
        matches!(self.state, State::Parked(_))
    }

    /// The waiter in `seat` leaves; its waker.
    pub(super) fn stand(&mut self, seat: u32, leader: bool) -> Option<Waker> {
        self.leader &= !leader;
        self.seats.stand(seat)
    }

    /// What a waiter gets of a flight that is over; the last takes all that is left.
    pub(super) fn verdict(&mut self, leader: bool, last: bool) -> Landed<C> {
        let State::Over { own, others, at } = &mut self.state else {
            unreachable!("asked only of flights that are over");
        };
        let at = *at;
        if leader && let Some(own) = own.take() {
            let verdict = Verdict::Own(own);
            return Landed { verdict, at };
        }
        let verdict = match others {
            Others::Take(_) if last => {
                let others = std::mem::replace(others, Others::Released);
                let Others::Take(shared) = others else {
                    unreachable!("it was a line ago");
                };
                Verdict::Take(shared)
            }
            Others::Take(shared) => Verdict::Take(shared.clone()),
            Others::Released => Verdict::Released,
            Others::Anew => Verdict::Anew,
            Others::Failed(failure) => Verdict::Failed(*failure),
        };
        Landed { verdict, at }
    }

    /// How many ever waited at a time.
    #[cfg(all(test, not(tower_flow_loom)))]
    pub(super) fn places(&self) -> usize {
        1 + self.seats.rest.len()
    }

    /// Takes wakers from seat `from` on. Where to go on, if there are more.
    pub(super) fn wakers(&mut self, from: usize, into: &mut Wakers) -> Option<usize> {
        let seats = std::iter::once(&mut self.seats.first).chain(&mut self.seats.rest);
        for (place, seat) in seats.enumerate().skip(from) {
            if let Seat::Taken(waker) = seat
                && waker.is_some()
            {
                if into.len == BATCH {
                    return Some(place);
                }
                into.list[into.len] = waker.take();
                into.len += 1;
            }
        }
        None
    }
}

// ===== impl Seats =====

impl Seats {
    fn sit(&mut self, benches: &mut Benches) -> u32 {
        self.taken += 1;
        match self.vacant {
            Some(seat) => {
                let place = self.at(seat);
                let Seat::Vacant(next) = std::mem::replace(place, Seat::Taken(None)) else {
                    unreachable!("the list leads from one vacant seat to the next");
                };
                self.vacant = next;
                seat
            }
            None => {
                let full = self.rest.len() == self.rest.capacity();
                if full && benches.0.capacity() > self.rest.len() && self.rest.len() >= FEW {
                    benches.0.append(&mut self.rest);
                    std::mem::swap(&mut self.rest, &mut benches.0);
                }
                self.rest.push(Seat::Taken(None));
                self.rest.len() as u32
            }
        }
    }

    fn at(&mut self, seat: u32) -> &mut Seat {
        match seat {
            0 => &mut self.first,
            seat => &mut self.rest[seat as usize - 1],
        }
    }

    fn put(&mut self, seat: u32, waker: &Waker) -> Option<Waker> {
        let Seat::Taken(place) = self.at(seat) else {
            unreachable!("only who sits there writes there");
        };
        match place {
            Some(there) if there.will_wake(waker) => None,
            _ => place.replace(waker.clone()),
        }
    }

    fn stand(&mut self, seat: u32) -> Option<Waker> {
        let vacant = Seat::Vacant(self.vacant);
        let Seat::Taken(waker) = std::mem::replace(self.at(seat), vacant) else {
            unreachable!("only who sits there leaves");
        };
        self.vacant = Some(seat);
        self.taken -= 1;
        waker
    }
}

// ===== impl Wakers =====

impl Wakers {
    pub(super) fn new() -> Self {
        Self {
            list: [const { None }; BATCH],
            len: 0,
        }
    }

    /// Wakes all. One that panics keeps no other asleep; its panic is handed out.
    pub(super) fn wake(&mut self) -> Result<(), Box<dyn Any + Send>> {
        let mut result = Ok(());
        for waker in &mut self.list[..std::mem::take(&mut self.len)] {
            if let Some(waker) = waker.take() {
                let woken = catch_unwind(AssertUnwindSafe(|| waker.wake()));
                result = result.and(woken);
            }
        }
        result
    }
}
