//! What a layer does, told simply: plain lists that are looked through from the front.
//!
//! It knows what must be so, not when the board finds out: the world compares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use super::super::*;

/// What became of a caller's item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits in the shard of that key.
    Waits(u64),
    /// It is in that batch.
    Sent(usize),
    Has(Told),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// The answer of that number.
    Answer(u64),
    Expired,
    Abandoned,
}

/// A request that waits, and for whom. Its turn stays what it was when others leave.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) request: u64,
    pub(super) weight: usize,
    pub(super) same: Option<u64>,
    pub(super) waits: Vec<usize>,
    turn: u64,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) queue: Vec<Entry>,
    pub(super) in_flight: usize,
    /// The number of its collector.
    pub(super) collector: Option<u64>,
    /// Why it could have been sent since that began.
    pub(super) seen: BTreeSet<&'static str>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Person {
    pub(super) deadline: Option<Instant>,
    pub(super) at: Instant,
    pub(super) fate: Fate,
}

/// What goes as one.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) requests: Vec<u64>,
    /// Who waits for which of them.
    pub(super) seats: Vec<(usize, usize)>,
    pub(super) weight: u128,
    pub(super) deadline: Option<Instant>,
    pub(super) full: bool,
}

pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) now: Instant,
    pub(super) closed: bool,
    pub(super) lines: BTreeMap<u64, Line>,
    pub(super) people: BTreeMap<usize, Person>,
    pub(super) books: Books,
    /// Items that are older were asked for.
    asked: u64,
    turns: u64,
}

impl Model {
    pub(super) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            now,
            closed: false,
            lines: BTreeMap::new(),
            people: BTreeMap::new(),
            books: Books::default(),
            asked: 0,
            turns: 0,
        }
    }

    // ----- what is -----

    pub(super) fn waiting(&self) -> usize {
        let waits = |person: &&Person| matches!(person.fate, Fate::Waits(_));
        self.people.values().filter(waits).count()
    }

    pub(super) fn weight(&self) -> u128 {
        let entries = self.lines.values().flat_map(|line| &line.queue);
        entries.map(|entry| entry.weight as u128).sum()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lines.values().map(|line| line.in_flight).sum()
    }

    /// As much waits as there is room for.
    pub(super) fn is_full(&self) -> bool {
        let weight = self.rules.queue_weight;
        self.waiting() >= self.rules.queue_items
            || weight.is_some_and(|max| self.weight() >= max as u128)
    }

    fn would_be_too_heavy(&self, weight: usize) -> bool {
        let (now, most) = (self.weight(), self.rules.queue_weight);
        most.is_some_and(|max| now > 0 && now + weight as u128 > 2 * max as u128)
    }

    pub(super) fn is_open(&self) -> bool {
        self.closed || !self.is_full()
    }

    pub(super) fn is_late(&self, caller: usize) -> bool {
        let deadline = self.people[&caller].deadline;
        deadline.is_some_and(|deadline| deadline <= self.now)
    }

    /// Whether what waits under `key` is nobody's to collect.
    pub(super) fn is_orphan(&self, key: u64) -> bool {
        let line = &self.lines[&key];
        line.collector.is_none() && !line.queue.is_empty()
    }

    /// Whether it may have another batch in flight.
    pub(super) fn may_send(&self, key: u64) -> bool {
        self.lines[&key].in_flight < self.rules.max_in_flight_per_shard
    }

    /// All reasons for which a shard would be sent now, whatever the time is.
    pub(super) fn reasons(&self, key: u64) -> Vec<Flush> {
        let (line, rules) = (&self.lines[&key], &self.rules);
        let Some(oldest) = line.queue.first() else {
            return Vec::new();
        };
        let weight: u128 = line.queue.iter().map(|entry| entry.weight as u128).sum();
        let many = line.queue.len() >= rules.max_items;
        let heavy = rules.max_weight.is_some_and(|max| weight >= max as u128);
        let idle = line.in_flight == 0 || line.queue.len() >= rules.min_items;
        let reasons = [
            (Flush::Full, many || heavy),
            (Flush::Drain, self.closed),
            (Flush::Asked, oldest.turn < self.asked),
            (Flush::Idle, idle && rules.max_delay == Duration::ZERO),
            (Flush::Memory, self.is_full()),
        ];
        let reasons = reasons.into_iter().filter(|(_, is)| *is);
        reasons.map(|(flush, _)| flush).collect()
    }

    /// When a shard is due because of the time, and why.
    pub(super) fn times(&self, key: u64) -> Vec<(Flush, Instant)> {
        let (line, rules) = (&self.lines[&key], &self.rules);
        let mut times = Vec::new();
        if let Some(oldest) = line.queue.first()
            && rules.max_delay > Duration::ZERO
            && let Some(delayed) = oldest.at.checked_add(rules.max_delay)
        {
            times.push((Flush::Delay, delayed));
        }
        for caller in line.queue.iter().flat_map(|entry| &entry.waits) {
            if let Some(deadline) = self.people[caller].deadline {
                let early = deadline.checked_sub(rules.margin);
                times.push((Flush::Deadline, early.unwrap_or(self.now)));
            }
        }
        times
    }

    /// Notes for every shard why it might be sent now.
    pub(super) fn look(&mut self) {
        let keys: Vec<_> = self.lines.keys().copied().collect();
        for key in keys {
            let mut why = self.reasons(key);
            let times = self.times(key).into_iter();
            why.extend(times.filter(|(_, at)| *at <= self.now).map(|(why, _)| why));
            let seen = &mut self.lines.get_mut(&key).unwrap().seen;
            seen.extend(why.into_iter().map(Flush::as_str));
        }
    }

    // ----- what happens -----

    pub(super) fn refuses(&self, weight: usize) -> Option<Refused> {
        let max = self.rules.max_weight.unwrap_or(usize::MAX);
        if self.closed {
            Some(Refused::Closed)
        } else if weight > max && !self.rules.alone {
            Some(Refused::TooHeavy { weight, max })
        } else if self.waiting() / 2 >= self.rules.queue_items || self.would_be_too_heavy(weight) {
            Some(Refused::Full {
                waiting: self.waiting(),
                weight: self.weight(),
            })
        } else {
            None
        }
    }

    /// Accepts an item. Whether its request is needed: another may wait for the same.
    pub(super) fn push(
        &mut self,
        (caller, key, request): (usize, u64, u64),
        weight: usize,
        deadline: Option<Instant>,
        same: Option<u64>,
    ) -> bool {
        let person = Person {
            deadline,
            at: self.now,
            fate: Fate::Waits(key),
        };
        self.people.insert(caller, person);
        self.books.accepted += 1;
        self.turns += 1;
        let queue = &mut self.lines.entry(key).or_default().queue;
        let twin = queue
            .iter_mut()
            .find(|entry| same.is_some() && entry.same == same);
        if let Some(entry) = twin {
            entry.waits.push(caller);
            self.books.merged += 1;
            return false;
        }
        queue.push(Entry {
            request,
            weight,
            same,
            waits: vec![caller],
            turn: self.turns,
            at: self.now,
        });
        true
    }

    pub(super) fn flush(&mut self) {
        self.asked = self.turns + 1;
    }

    /// A caller that had no outcome has left. The request that nobody waits for now.
    pub(super) fn leave(&mut self, caller: usize, late: bool) -> Option<u64> {
        let person = self.people.remove(&caller).unwrap();
        match late {
            true => self.books.expired += 1,
            false => self.books.cancelled += 1,
        }
        let Fate::Waits(key) = person.fate else {
            return None;
        };
        let queue = &mut self.lines.get_mut(&key).unwrap().queue;
        let place = queue.iter().position(|entry| entry.waits.contains(&caller));
        let entry = &mut queue[place.unwrap()];
        entry.waits.retain(|other| *other != caller);
        if !entry.waits.is_empty() {
            return None;
        }
        let gone = queue.remove(place.unwrap());
        self.tidy(key);
        Some(gone.request)
    }

    /// What is sent of a shard, if that is sent now. Whoever is late and in the way has its outcome.
    pub(super) fn take(&mut self, key: u64, batch: usize) -> Load {
        let mut load = Load::default();
        let line = self.lines.get_mut(&key).unwrap();
        line.collector = None;
        let mut queue: VecDeque<_> = mem::take(&mut line.queue).into();
        let max = self.rules.max_weight.map_or(u128::MAX, |max| max as u128);
        let mut latest = Some(Vec::new());
        while let Some(entry) = queue.front() {
            let late = entry.waits.iter().all(|caller| self.is_late(*caller));
            let sum = load.weight + entry.weight as u128;
            let over = sum > max && !load.requests.is_empty();
            load.full |= !late && (over || load.requests.len() == self.rules.max_items);
            if load.full {
                break;
            }
            let entry = queue.pop_front().unwrap();
            for caller in entry.waits {
                let fate = match self.is_late(caller) {
                    true => {
                        self.books.expired += 1;
                        Fate::Has(Told::Expired)
                    }
                    false => {
                        load.seats.push((caller, load.requests.len()));
                        let deadline = self.people[&caller].deadline;
                        latest = latest.zip(deadline).map(|(mut all, one)| {
                            all.push(one);
                            all
                        });
                        Fate::Sent(batch)
                    }
                };
                self.people.get_mut(&caller).unwrap().fate = fate;
            }
            if !late {
                load.requests.push(entry.request);
                load.weight = sum;
            }
        }
        load.deadline = latest.and_then(|all| all.into_iter().max());
        load.full |= load.requests.len() == self.rules.max_items || load.weight >= max;
        let line = self.lines.get_mut(&key).unwrap();
        line.queue = queue.into();
        if !load.requests.is_empty() {
            line.in_flight += 1;
            self.books.batches += 1;
            self.books.sent += load.requests.len() as u64;
        }
        self.tidy(key);
        load
    }

    /// All who wait in a shard are given up.
    pub(super) fn give_up(&mut self, key: u64) {
        let line = self.lines.get_mut(&key).unwrap();
        line.collector = None;
        for entry in mem::take(&mut line.queue) {
            for caller in entry.waits {
                self.books.abandoned += 1;
                let person = self.people.get_mut(&caller).unwrap();
                person.fate = Fate::Has(Told::Abandoned);
            }
        }
        self.tidy(key);
    }

    pub(super) fn settle(&mut self, key: u64) {
        self.lines.get_mut(&key).unwrap().in_flight -= 1;
        self.tidy(key);
    }

    /// A collector of `key` has begun.
    pub(super) fn begin(&mut self, key: u64, collector: u64) {
        let line = self.lines.get_mut(&key).unwrap();
        assert_eq!(line.collector, None, "a shard has one collector");
        line.collector = Some(collector);
        line.seen.clear();
    }

    /// A shard in which nobody waits has no collector, and one in which nothing goes on is no more.
    fn tidy(&mut self, key: u64) {
        let line = self.lines.get_mut(&key).unwrap();
        if line.queue.is_empty() {
            line.collector = None;
        }
        if line.queue.is_empty() && line.in_flight == 0 {
            self.lines.remove(&key);
        }
    }
}
