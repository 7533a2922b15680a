//! The queue itself: a lane for every partition and priority, all in one slab.
//!
//! Pure: no clock, no lock, no task; moments are passed in and wakers handed out.
//!
//! # Invariants
//!
//! - A node is linked into its lane exactly while it is `Waiting`; `waiting` counts those.
//! - A ticket owns its node: the node is freed when the ticket is taken or given up, and by nobody else. So a node that
//!   was granted or refused stays until its owner looks.
//! - Every transition out of `Waiting` takes the node's waker; whoever caused it wakes it after the lock is gone.

use std::cmp::Reverse;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::codel::{Codel, Tally};
use super::{Order, Queue};
use crate::base::clock::Instant;
use crate::base::deadline::Deadline;
use crate::base::error::Reason;
use crate::base::priority::Priority;

const NONE: u32 = u32::MAX;
const LEVELS: usize = Priority::ALL.len();

/// A place in the queue. Given back by [`Lanes::poll`] once it is granted or refused, or by [`Lanes::give_up`].
#[derive(Debug, PartialEq, Eq)]
pub(in crate::middleware::shed) struct Ticket(u32);

/// Who wants to wait.
#[derive(Debug, Clone, Copy)]
pub(in crate::middleware::shed) struct Entry {
    pub(in crate::middleware::shed) priority: Priority,
    pub(in crate::middleware::shed) partition: u16,
    pub(in crate::middleware::shed) deadline: Option<Deadline>,
    /// It waits no longer than this.
    pub(in crate::middleware::shed) until: Instant,
    /// In a dry run: it runs already, and only shows what would become of it.
    pub(in crate::middleware::shed) ghost: bool,
}

/// Somebody was refused, now or after a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::middleware::shed) struct Refused {
    pub(in crate::middleware::shed) reason: Reason,
    pub(in crate::middleware::shed) priority: Priority,
}

/// Somebody stopped waiting, and why; to be woken after the lock is gone.
#[derive(Debug)]
pub(in crate::middleware::shed) struct Left {
    pub(in crate::middleware::shed) waker: Option<Waker>,
    pub(in crate::middleware::shed) refused: Option<Refused>,
    /// How long it waited.
    pub(in crate::middleware::shed) waited: Duration,
    pub(in crate::middleware::shed) partition: u16,
    pub(in crate::middleware::shed) ghost: bool,
}

#[derive(Debug)]
pub(in crate::middleware::shed) struct Lanes {
    order: Order,
    places: usize,
    codel: Codel,
    /// A request with less time left than this cannot finish.
    needs: Duration,
    nodes: Vec<Node>,
    free: u32,
    waiting: usize,
    /// The lowest priority that came to wait in this interval of the queue's, and in the one before.
    came: [usize; 2],
    /// By partition, then by priority.
    lanes: Box<[Lane]>,
}

#[derive(Debug)]
struct Node {
    state: State,
    entry: Entry,
    since: Instant,
    waker: Option<Waker>,
    /// In its lane, or the next free one.
    next: u32,
    prev: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Granted,
    Refused(Refused),
    Free,
}

#[derive(Debug, Clone, Copy)]
struct Lane {
    oldest: u32,
    newest: u32,
    len: usize,
}

// ===== impl Ticket =====

impl Ticket {
    /// No place.
    pub(in crate::middleware::shed) const NONE: Self = Self(NONE);
}

// ===== impl Lanes =====

impl Lanes {
    pub(in crate::middleware::shed) fn new(queue: &Queue, limit: usize, partitions: usize) -> Self {
        let empty = Lane {
            oldest: NONE,
            newest: NONE,
            len: 0,
        };
        Self {
            order: queue.order,
            places: queue.places(limit),
            codel: Codel::new(queue.patience, queue.interval),
            needs: Duration::ZERO,
            nodes: Vec::new(),
            free: NONE,
            waiting: 0,
            came: [LEVELS; 2],
            lanes: vec![empty; partitions.max(1) * LEVELS].into(),
        }
    }

    pub(in crate::middleware::shed) fn tune(
        &mut self,
        places: usize,
        floor: Option<Duration>,
        needs: Duration,
    ) {
        self.places = places;
        self.codel.tune(floor);
        self.needs = needs;
    }

    pub(in crate::middleware::shed) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(in crate::middleware::shed) fn places(&self) -> usize {
        self.places
    }

    /// How many of each priority wait.
    pub(in crate::middleware::shed) fn depths(&self) -> [usize; LEVELS] {
        let mut depths = [0; LEVELS];
        for (index, lane) in self.lanes.iter().enumerate() {
            depths[index % LEVELS] += lane.len;
        }
        depths
    }

    /// Lets somebody wait. When the queue is full, somebody of lower rank is turned out for it, or it is refused.
    pub(in crate::middleware::shed) fn push(
        &mut self,
        now: Instant,
        entry: Entry,
        under: impl Fn(u16) -> bool,
    ) -> Result<(Ticket, Option<Left>), Refused> {
        let refused = |reason| Refused {
            reason,
            priority: entry.priority,
        };
        if entry
            .deadline
            .is_some_and(|deadline| deadline.left(now) < self.needs || deadline.passed(now))
        {
            return Err(refused(Reason::Deadline));
        }
        let mut left = None;
        if self.waiting >= self.places {
            // The last partition is nobody's: it has no share to exceed.
            let named = self.lanes.len() / LEVELS - 1;
            let reason = |partition: u16| match self.places {
                _ if usize::from(partition) < named && !under(partition) => Reason::Quota,
                0 => Reason::Limit,
                _ => Reason::QueueFull,
            };
            let victim = self.victim(entry, &under);
            let victim = victim.ok_or_else(|| refused(reason(entry.partition)))?;
            let reason = reason(self.nodes[victim as usize].entry.partition);
            left = Some(self.refuse(victim, now, reason));
        }
        let node = Node {
            state: State::Waiting,
            entry,
            since: now,
            waker: None,
            next: NONE,
            prev: NONE,
        };
        let index = self.free;
        let index = if index == NONE {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        } else {
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        self.link(index);
        Ok((Ticket(index), left))
    }

    /// Who is to be shed before anybody is granted, if anybody is.
    pub(in crate::middleware::shed) fn shed(
        &mut self,
        now: Instant,
        tally: impl FnOnce() -> Tally,
    ) -> Option<Left> {
        if self.order != Order::Codel || self.waiting == 0 {
            return None;
        }
        let oldest = self.lanes.iter().filter(|lane| lane.len > 0);
        let delay = oldest
            .map(|lane| self.waited(lane.oldest, now))
            .max()
            .unwrap_or_default();
        self.note(now, delay, tally);
        if !self.codel.sheds(delay) {
            return None;
        }
        // Only of the lowest priority that waits: the others are not too many, they are in bad company. One at a time,
        // each to be woken.
        let level = self.lowest()?;
        let lanes = self.lanes.iter().skip(level).step_by(LEVELS);
        let mut oldest = lanes.filter(|lane| lane.len > 0).map(|lane| lane.oldest);
        let overdue = oldest.find(|node| self.codel.sheds(self.waited(*node, now)))?;
        Some(self.refuse(overdue, now, Reason::QueueTimeout))
    }

    /// Refuses everybody whose time is up.
    pub(in crate::middleware::shed) fn expire(&mut self, now: Instant) -> Vec<Left> {
        let overdue = |node: &&Node| node.state == State::Waiting && node.entry.until <= now;
        let nodes = self.nodes.iter().enumerate();
        let overdue: Vec<_> = nodes
            .filter(|(_, node)| overdue(node))
            .map(|(index, node)| {
                let deadline = node.entry.deadline;
                let late = deadline.is_some_and(|deadline| deadline.passed(now));
                (
                    index as u32,
                    if late {
                        Reason::Deadline
                    } else {
                        Reason::QueueTimeout
                    },
                )
            })
            .collect();
        let overdue = overdue.into_iter();
        overdue
            .map(|(index, reason)| self.refuse(index, now, reason))
            .collect()
    }

    /// Grants the next one a slot; or refuses it, when it could not finish in time.
    pub(in crate::middleware::shed) fn grant(
        &mut self,
        now: Instant,
        under: impl Fn(u16) -> bool,
        tally: impl FnOnce() -> Tally,
    ) -> Option<Left> {
        // Partitions below their share first, then the higher priority, then whoever waits longest: none starves
        // another of its rank.
        let lanes = self.lanes.iter().enumerate();
        let (place, lane) =
            lanes
                .filter(|(_, lane)| lane.len > 0)
                .max_by_key(|(index, lane)| {
                    let since = self.nodes[lane.oldest as usize].since;
                    (
                        under((index / LEVELS) as u16),
                        index % LEVELS,
                        Reverse(since),
                    )
                })?;
        let newest = match self.order {
            Order::Fifo => false,
            Order::Lifo => true,
            Order::Codel => self.codel.standing() && Some(place % LEVELS) == self.lowest(),
        };
        let index = if newest { lane.newest } else { lane.oldest };
        let entry = self.nodes[index as usize].entry;
        let late = entry
            .deadline
            .is_some_and(|deadline| deadline.left(now) < self.needs || deadline.passed(now));
        Some(if late {
            self.refuse(index, now, Reason::Deadline)
        } else {
            let left = self.leave(index, now, State::Granted);
            if self.waiting == 0 && self.order == Order::Codel {
                self.note(now, Duration::ZERO, tally);
            }
            left
        })
    }

    /// What became of a ticket. Once it is more than waiting, the ticket is no more. While it waits `waker` is kept, and
    /// the one before is left in its place, to be dropped after the lock is gone.
    pub(in crate::middleware::shed) fn poll(
        &mut self,
        ticket: &Ticket,
        waker: &mut Option<Waker>,
    ) -> Poll<Result<(), Refused>> {
        let node = &mut self.nodes[ticket.0 as usize];
        let settled = match node.state {
            State::Waiting => {
                std::mem::swap(&mut node.waker, waker);
                return Poll::Pending;
            }
            State::Granted => Ok(()),
            State::Refused(refused) => Err(refused),
            State::Free => unreachable!("a ticket owns its node"),
        };
        self.release(ticket.0);
        Poll::Ready(settled)
    }

    /// Gives a ticket up. Returns whether it held a slot, which is now to be released, whether it had been refused, and
    /// its waker, to be dropped after the lock is gone.
    pub(in crate::middleware::shed) fn give_up(
        &mut self,
        ticket: &Ticket,
    ) -> (bool, bool, Option<Waker>) {
        let node = &mut self.nodes[ticket.0 as usize];
        let (state, waker) = (node.state, node.waker.take());
        if state == State::Waiting {
            self.unlink(ticket.0);
        }
        self.release(ticket.0);
        let refused = matches!(state, State::Refused(_));
        (state == State::Granted, refused, waker)
    }

    /// Who is turned out of a full queue for `entry`: of the lowest rank, and lower than its own, the oldest. In an
    /// order where the newest goes first also the oldest of its own.
    fn victim(&self, entry: Entry, under: &impl Fn(u16) -> bool) -> Option<u32> {
        let rank = |partition: u16, level: usize| (under(partition), level);
        let own = rank(entry.partition, entry.priority as usize);
        let lanes = self.lanes.iter().enumerate();
        let (lowest, lane) = lanes
            .filter(|(_, lane)| lane.len > 0)
            .map(|(index, lane)| (rank((index / LEVELS) as u16, index % LEVELS), lane))
            .min_by_key(|(rank, _)| *rank)?;
        let yields = lowest < own || (lowest == own && self.order != Order::Fifo);
        yields.then_some(lane.oldest)
    }

    fn note(&mut self, now: Instant, delay: Duration, tally: impl FnOnce() -> Tally) {
        if self.codel.note(now, delay, tally) {
            self.came = [LEVELS, self.came[0]];
        }
    }

    /// The priority that there is too much of, if it waits: the lowest there is. While lower ones come and are shed,
    /// those above them are not too many.
    fn lowest(&self) -> Option<usize> {
        let lanes = self.lanes.iter().enumerate();
        let waits = lanes
            .filter(|(_, lane)| lane.len > 0)
            .map(|(index, _)| index % LEVELS)
            .min()?;
        (waits <= self.came[0].min(self.came[1])).then_some(waits)
    }

    fn waited(&self, index: u32, now: Instant) -> Duration {
        now.saturating_duration_since(self.nodes[index as usize].since)
    }

    fn refuse(&mut self, index: u32, now: Instant, reason: Reason) -> Left {
        let priority = self.nodes[index as usize].entry.priority;
        let refused = Refused { reason, priority };
        let mut left = self.leave(index, now, State::Refused(refused));
        left.refused = Some(refused);
        left
    }

    fn leave(&mut self, index: u32, now: Instant, state: State) -> Left {
        self.unlink(index);
        let waited = self.waited(index, now);
        let node = &mut self.nodes[index as usize];
        node.state = state;
        Left {
            waker: node.waker.take(),
            refused: None,
            waited,
            partition: node.entry.partition,
            ghost: node.entry.ghost,
        }
    }

    fn lane(&mut self, index: u32) -> &mut Lane {
        let entry = self.nodes[index as usize].entry;
        &mut self.lanes[usize::from(entry.partition) * LEVELS + entry.priority as usize]
    }

    fn link(&mut self, index: u32) {
        let level = self.nodes[index as usize].entry.priority as usize;
        self.came[0] = self.came[0].min(level);
        let lane = self.lane(index);
        let before = std::mem::replace(&mut lane.newest, index);
        lane.len += 1;
        if before == NONE {
            lane.oldest = index;
        } else {
            self.nodes[before as usize].next = index;
            self.nodes[index as usize].prev = before;
        }
        self.waiting += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Node { prev, next, .. } = self.nodes[index as usize];
        let lane = self.lane(index);
        lane.len -= 1;
        if prev == NONE {
            lane.oldest = next;
        }
        if next == NONE {
            lane.newest = prev;
        }
        if prev != NONE {
            self.nodes[prev as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        self.waiting -= 1;
    }

    fn release(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.state = State::Free;
        node.waker = None;
        node.next = std::mem::replace(&mut self.free, index);
    }
}
