//! What one thread writes down about its tags, and the profiler reads.
//!
//! # Invariants
//!
//! - One thread appends; any thread reads. Neither waits for the other, and both go on whatever the other does.
//! - Event `n` lies in slot `n % slots`. The writer stores the event first and `head = n + 1` after it, both with `Release`.
//! - A reader that loads `head` with `Acquire` sees all events below it. It loads slots with `Acquire` too: if it meets
//!   event `n + slots` in the place of event `n`, it also sees the `head` stored before that one, which is
//!   `n + slots` at least. So a second look at `head` tells which of the events it copied may be younger ones, and
//!   those are discarded as lost.
//! - An event is one word, so it is never seen half written.

#[cfg(tower_flow_loom)]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(tower_flow_loom))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A thread's events, the latest `slots` of them. In cache lines of its own, since its thread writes to it all the time.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Journal {
    /// The kernel's number of the thread.
    thread: u32,
    /// How many events were ever appended.
    head: AtomicU64,
    /// The thread has ended, or is about to.
    ended: AtomicBool,
    slots: Box<[AtomicU64]>,
}

/// From some time on, this tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// The lower 48 bits of the kernel's monotonic clock, in nanoseconds: they last for three days.
    time: u64,
    pub(crate) tag: u16,
}

// ===== impl Journal =====

impl Journal {
    pub(crate) fn new(thread: u32, slots: usize) -> Self {
        assert!(slots > 1, "{slots} slots hold no event for a reader");
        Self {
            thread,
            head: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn thread(&self) -> u32 {
        self.thread
    }

    /// How many events it holds at most. A reader gets one less, since the oldest may be on its way out.
    pub(crate) fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    /// How many events were appended so far.
    pub(crate) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Adds an event. Only ever called by one thread.
    #[inline]
    pub(crate) fn append(&self, event: Event) {
        let head = self.head.load(Ordering::Relaxed);
        let slot = &self.slots[(head % self.slots.len() as u64) as usize];
        // Release pairs with the reader's Acquire of the slot, which so sees the head of the append before.
        slot.store(event.pack(), Ordering::Release);
        // Release pairs with the Acquire of `head`.
        self.head.store(head + 1, Ordering::Release);
    }

    /// Appends to `events` those from number `from` on. Returns where to go on, and how many were overwritten before they
    /// could be read; those are the oldest.
    pub(crate) fn read(&self, from: u64, events: &mut Vec<Event>) -> (u64, u64) {
        let slots = self.slots();
        let head = self.head();
        let start = from.max((head + 1).saturating_sub(slots));
        let before = events.len();
        for n in start..head {
            // Acquire pairs with the Release in `append`.
            let word = self.slots[(n % slots) as usize].load(Ordering::Acquire);
            events.push(Event::unpack(word));
        }
        // Event n may be on its way out once the head is n + slots.
        let sound = start.max((self.head() + 1).saturating_sub(slots)).min(head);
        events.drain(before..before + (sound - start) as usize);
        (head, sound - from)
    }

    /// The thread appends no more.
    pub(crate) fn end(&self) {
        // Release pairs with the Acquire in `ended`: who sees the end can read all events.
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

// ===== impl Event =====

impl Event {
    const TIME: u64 = (1 << 48) - 1;

    #[inline]
    pub(crate) fn new(nanos: u64, tag: u16) -> Self {
        let time = nanos & Self::TIME;
        Self { time, tag }
    }

    /// Whether it was there at `nanos`, which is less than a day and a half away from it.
    pub(crate) fn by(self, nanos: u64) -> bool {
        nanos.wrapping_sub(self.time) & Self::TIME <= Self::TIME / 2
    }

    #[inline]
    fn pack(self) -> u64 {
        self.time << 16 | u64::from(self.tag)
    }

    fn unpack(word: u64) -> Self {
        Self {
            time: word >> 16,
            tag: word as u16,
        }
    }
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn an_event_is_there_from_its_time_on_even_when_the_clock_wraps() {
        let wrap = 1 << 48;
        for at in [0, 5, wrap - 1, wrap, 7 * wrap + 3] {
            let event = Event::new(at, 3);
            assert!(event.by(at) && event.by(at + 1) && event.by(at + 3_600_000_000_000));
            assert!(!event.by(at.wrapping_sub(1)));
            assert_eq!(Event::unpack(event.pack()), event);
        }
    }

    proptest! {
        /// Against a list that forgets nothing: what is read is in order, whole and the latest; the rest is counted.
        #[test]
        fn every_event_is_read_once_or_counted_as_lost(
            slots in 2usize..9,
            steps in proptest::collection::vec(0usize..12, 1..40),
        ) {
            let journal = Journal::new(1, slots);
            let (mut written, mut cursor, mut lost, mut read) = (0u64, 0, 0, 0u64);
            for appended in steps {
                for _ in 0..appended {
                    journal.append(Event::new(written, written as u16));
                    written += 1;
                }
                let mut events = Vec::new();
                let (next, gone) = journal.read(cursor, &mut events);
                let first = cursor + gone;
                let expected: Vec<_> = (first..next).map(|n| Event::new(n, n as u16)).collect();
                prop_assert_eq!(&events, &expected);
                prop_assert!(gone == 0 || events.len() == slots - 1);
                cursor = next;
                lost += gone;
                read += events.len() as u64;
            }
            prop_assert_eq!(cursor, written);
            prop_assert_eq!(lost + read, written);
        }
    }

    #[test]
    fn a_reader_that_is_overtaken_never_takes_a_young_event_for_an_old_one() {
        let journal = Arc::new(Journal::new(1, 64));
        let writer = journal.clone();
        let thread = std::thread::spawn(move || {
            for n in 0..2_000_000u64 {
                writer.append(Event::new(n, n as u16));
            }
            writer.end();
        });
        let (mut cursor, mut lost, mut read) = (0, 0, 0);
        loop {
            let ended = journal.ended();
            let mut events = Vec::new();
            let (next, gone) = journal.read(cursor, &mut events);
            for (n, event) in (cursor + gone..next).zip(&events) {
                assert_eq!(*event, Event::new(n, n as u16));
            }
            assert_eq!(next - cursor, gone + events.len() as u64);
            (cursor, lost, read) = (next, lost + gone, read + events.len());
            if ended {
                break;
            }
        }
        thread.join().unwrap();
        assert_eq!(lost + read as u64, 2_000_000);
    }
}

#[cfg(all(test, tower_flow_loom))]
mod models {
    use super::*;
    use loom::sync::Arc;

    /// However the two interleave: events are read in order, each is itself, and each is read or counted as lost.
    #[test]
    fn what_is_read_is_whole_and_in_order() {
        loom::model(|| {
            let journal = Arc::new(Journal::new(1, 2));
            let writer = journal.clone();
            let thread = loom::thread::spawn(move || {
                for n in 0..4 {
                    writer.append(Event::new(n, n as u16));
                }
                writer.end();
            });
            let (mut cursor, mut seen) = (0, 0);
            for _ in 0..2 {
                let ended = journal.ended();
                let mut events = Vec::new();
                let (next, lost) = journal.read(cursor, &mut events);
                for (n, event) in (cursor + lost..next).zip(&events) {
                    assert_eq!(*event, Event::new(n, n as u16));
                }
                seen += lost + events.len() as u64;
                assert_eq!(seen, next);
                assert!(!ended || next == 4, "{next} at the end");
                cursor = next;
            }
            thread.join().unwrap();
        });
    }
}
