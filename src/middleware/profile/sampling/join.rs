//! Samples meet the tags their threads wrote down.

use std::sync::Arc;

use super::tags::{self, Event, Journal, Tag};

/// The journals of all threads, read as far as they were written.
#[derive(Debug, Default)]
pub(super) struct Tags {
    known: Vec<Known>,
    /// How much of a journal was filled between two readings, of the fullest one.
    fill: f64,
}

/// A journal and what of it may still be asked for.
#[derive(Debug)]
struct Known {
    journal: Arc<Journal>,
    next: u64,
    /// In order. The first one counts from its time on.
    events: Vec<Event>,
    /// Events before these were overwritten, so what was before them is not known.
    torn: bool,
    /// How often it was read since its thread ended.
    over: u8,
}

/// What is known of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tagged {
    /// It belongs to this, or to [`Tag::NONE`].
    By(Tag),
    /// The thread wrote faster than it was read.
    Torn,
}

// ===== impl Tags =====

impl Tags {
    /// What was written so far is of no concern: it was before the profiler started.
    pub(super) fn begin(&mut self) {
        for journal in tags::journals().iter() {
            self.known.push(Known::new(journal, journal.head()));
        }
    }

    /// Reads on. What was before `since` will not be asked for any more, except what was still true at that time.
    pub(super) fn read(&mut self, since: u64) {
        {
            let mut journals = tags::journals();
            // The samples taken while the last events were read came one batch later; they were asked for the second time.
            journals.retain(|journal| {
                let known = self
                    .known
                    .iter()
                    .find(|known| Arc::ptr_eq(&known.journal, journal));
                known.is_none_or(|known| known.over < 2)
            });
            self.known.retain(|known| known.over < 2);
            for journal in journals.iter() {
                let is_new = !self
                    .known
                    .iter()
                    .any(|known| Arc::ptr_eq(&known.journal, journal));
                if is_new {
                    self.known.push(Known::new(journal, 0));
                }
            }
        }
        self.fill = 0.0;
        for known in &mut self.known {
            self.fill = self.fill.max(known.read(since));
        }
    }

    /// How much of a journal was filled since it was read before, of the fullest one: above 1 events were lost.
    pub(super) fn fill(&self) -> f64 {
        self.fill
    }

    /// What `thread` worked for at `time`.
    pub(super) fn at(&self, thread: u32, time: u64) -> Tagged {
        // The kernel may have given the number of an ended thread to a new one: the younger journal is asked first.
        let mut journals = self.known.iter().rev();
        let found = journals.find_map(|known| {
            (known.journal.thread() == thread)
                .then(|| known.at(time))
                .flatten()
        });
        found.unwrap_or(Tagged::By(Tag::NONE))
    }
}

// ===== impl Known =====

impl Known {
    fn new(journal: &Arc<Journal>, next: u64) -> Self {
        Self {
            journal: journal.clone(),
            next,
            events: Vec::new(),
            torn: false,
            over: 0,
        }
    }

    fn read(&mut self, since: u64) -> f64 {
        let past = self.events.partition_point(|event| event.by(since));
        // The last of them may still be true.
        self.events.drain(..past.saturating_sub(1));
        // Asked before reading: then nothing follows what is read.
        self.over += u8::from(self.journal.ended());
        let before = self.events.len();
        let (next, lost) = self.journal.read(self.next, &mut self.events);
        if lost > 0 {
            self.events.drain(..before);
            self.torn = true;
        }
        let written = next - self.next;
        self.next = next;
        written as f64 / self.journal.slots() as f64
    }

    /// `None` when it says nothing about that time.
    fn at(&self, time: u64) -> Option<Tagged> {
        match self.events.partition_point(|event| event.by(time)) {
            0 if self.torn && !self.events.is_empty() => Some(Tagged::Torn),
            0 => None,
            after => Some(Tagged::By(Tag::from_id(self.events[after - 1].tag))),
        }
    }
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests {
    use super::*;

    fn written(journal: &Journal, events: impl IntoIterator<Item = (u64, u16)>) {
        for (time, tag) in events {
            journal.append(Event::new(time, tag));
        }
    }

    fn by(tag: u16) -> Option<Tagged> {
        Some(Tagged::By(Tag::from_id(tag)))
    }

    #[test]
    fn a_sample_belongs_to_the_last_line_at_or_before_it() {
        let journal = Arc::new(Journal::new(1, 16));
        let mut known = Known::new(&journal, 0);
        // Two inside one another, then nothing, and an empty visit.
        written(
            &journal,
            [(10, 1), (20, 2), (30, 1), (40, 0), (50, 3), (50, 0)],
        );
        known.read(0);
        let at: Vec<_> = [9, 10, 19, 20, 29, 30, 39, 40, 49, 50, 99]
            .map(|time| known.at(time))
            .into();
        assert_eq!(
            at,
            [
                None,
                by(1),
                by(1),
                by(2),
                by(2),
                by(1),
                by(1),
                by(0),
                by(0),
                by(0),
                by(0)
            ]
        );
    }

    #[test]
    fn what_is_still_true_is_kept_and_the_rest_forgotten() {
        let journal = Arc::new(Journal::new(1, 16));
        let mut known = Known::new(&journal, 0);
        written(&journal, [(10, 1), (20, 2)]);
        known.read(0);
        known.read(100);
        assert_eq!(known.events.len(), 1);
        assert_eq!(known.at(500), by(2));
        written(&journal, [(510, 3)]);
        known.read(600);
        assert_eq!((known.at(509), known.at(510)), (by(2), by(3)));
    }

    #[test]
    fn a_torn_journal_says_that_it_does_not_know() {
        let journal = Arc::new(Journal::new(1, 4));
        let mut known = Known::new(&journal, 0);
        written(&journal, [(1, 9)]);
        known.read(0);
        written(&journal, (10..20).map(|n| (n, n as u16)));
        assert!(known.read(0) > 1.0);
        // Three of ten are left.
        assert_eq!(known.at(16), Some(Tagged::Torn));
        assert_eq!(known.at(17), by(17));
    }
}
