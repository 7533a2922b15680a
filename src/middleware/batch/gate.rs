//! Who waits for room.
//!
//! The gate reserves nothing: a caller that is woken looks again, and one that comes late finds the hard cap. One is woken for
//! every place that becomes free; one that is woken and leaves, or finds more room than it needs, wakes the next; whoever
//! comes while others wait is behind them. A caller that is woken and never comes holds up the others no longer than until
//! nothing is under way: then all in line are woken.

use std::task::Waker;

use super::items::KEPT;
use super::list::{Linked, Links, List};

/// A place in the line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat(u32);

#[derive(Debug, Default)]
pub(super) struct Line {
    seats: Seats,
    free: Vec<u32>,
    waiting: List,
}

#[derive(Debug, Default)]
struct Seats(Vec<Sitting>);

#[derive(Debug)]
struct Sitting {
    links: Links,
    /// Nobody to wake: it was woken, and is in no list.
    waker: Option<Waker>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Waits, at the end of the line; or at its front after it was woken in vain. Gives a waker that is not needed any more.
    pub(super) fn wait(&mut self, seat: &mut Option<Seat>, waker: &Waker) -> Option<Waker> {
        match *seat {
            Some(Seat(place)) => {
                let sitting = &mut self.seats.0[place as usize];
                let old = sitting.waker.replace(waker.clone());
                if old.is_none() {
                    self.waiting.push_front(&mut self.seats, place);
                }
                old
            }
            None => {
                let sitting = Sitting {
                    links: Links::default(),
                    waker: Some(waker.clone()),
                };
                let place = match self.free.pop() {
                    Some(place) => {
                        self.seats.0[place as usize] = sitting;
                        place
                    }
                    None => {
                        self.seats.0.push(sitting);
                        (self.seats.0.len() - 1) as u32
                    }
                };
                self.waiting.push_back(&mut self.seats, place);
                *seat = Some(Seat(place));
                None
            }
        }
    }

    /// Whoever first came, unless nobody waits.
    pub(super) fn next(&mut self) -> Option<Waker> {
        let place = self.waiting.pop_front(&mut self.seats)?;
        self.seats.0[place as usize].waker.take()
    }

    #[cfg(all(test, not(tower_flow_loom)))]
    pub(super) fn room(&self) -> usize {
        self.seats.0.capacity() + self.free.capacity()
    }

    /// Of all who wait, who go on waiting.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        self.seats.0.iter().filter_map(|seat| seat.waker.clone())
    }

    /// Gives a seat back, with its waker unless that was woken.
    pub(super) fn leave(&mut self, Seat(place): Seat) -> Option<Waker> {
        let waker = self.seats.0[place as usize].waker.take();
        if waker.is_some() {
            self.waiting.remove(&mut self.seats, place);
        }
        self.free.push(place);
        if self.free.len() == self.seats.0.len() && self.seats.0.capacity() > KEPT {
            self.free = Vec::new();
            self.seats.0 = Vec::new();
        }
        waker
    }
}

impl Linked for Seats {
    fn links(&mut self, place: u32) -> &mut Links {
        &mut self.0[place as usize].links
    }
}
