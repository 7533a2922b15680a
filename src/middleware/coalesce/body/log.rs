//! What is held of a body while several read it: its chunks, and how far each reader is.
//!
//! # Invariants
//!
//! A claim stands at the chunk it takes next, or at the end. `Chunk::claims` counts those that stand at a chunk and `here`
//! those at the end, so that together they are `live`, every step costs the same however many read, and what can be let go
//! is seen at the front:
//!
//! - the first chunk that is held has a claim standing at it: what all have taken is let go in the step that took it;
//! - `held` is the sum of the chunks that are held, and less than `max_buffer` before the last of them came: who pushes asks
//!   [`is_full`](Log::is_full) first. One chunk may always be held, whatever its size;
//! - `end` is set once, behind the last chunk. Nothing is pushed after it, and every claim that is not evicted takes all
//!   chunks before it sees it;
//! - who has anything to take has no waker here: a push, an end and an eviction take out all of them;
//! - a [`Term`] is begun by the first who wants more of a full log. It counts the time in which the log is full and somebody
//!   wants more (`since` is set only then), and what those that are last take meanwhile. It ends well when that fills a log
//!   anew, or when whoever was last leaves. When it has counted `stall`, the last are evicted: so for every `max_buffer`
//!   bytes that a body has, the others wait for the last for `stall` at most, be the steps of the last ever so many. The
//!   time in which all wait for the body counts for nobody, and a full log that nobody wants more of evicts nobody;
//! - the origin reads nothing, so it has no `stall` to catch up in: when no reader is last but only the origin, it is let go
//!   of after [`COMING`]. Whoever waits is woken when that becomes so, to learn that it waits for less;
//! - who waits for room is woken by every chunk that is let go, while `since` is set: whoever parks while the log is full
//!   has seen to that;
//! - who is evicted stands at the first chunk; who evicts stands at the end of a log that is not empty: never the same.
//!
//! Nothing here runs user code. Wakers, chunks and errors that go are put in [`After`], for when the lock is let go: the drop
//! of a waker may drop a task, and with it another reader of this log.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use super::end::{End, Evicted, wrong_length};
use crate::base::clock::Instant;

/// How long a full log waits for readers that are still to come, if `stall` is not less: whoever was woken to become one
/// is polled within that, even where many tasks were. One that is not polled at all holds nobody up for longer. A model
/// knows no time.
const COMING: Duration = if cfg!(tower_flow_loom) {
    Duration::MAX
} else {
    Duration::from_millis(100)
};

/// How much may be held, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many bytes are held for readers that are behind the first; one chunk may go beyond it.
    pub(crate) max_buffer: usize,
    /// How long a full log waits in all for the last of its readers to take `max_buffer` bytes, before it goes on without
    /// them.
    pub(crate) stall: Duration,
}

#[derive(Debug)]
pub(super) struct Log {
    limits: Limits,
    /// How many bytes the body should have.
    promised: Option<u64>,
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk in `chunks`.
    base: u64,
    /// The claims at the end.
    here: usize,
    /// The bytes in `chunks`.
    held: usize,
    /// The bytes that ever came.
    written: u64,
    end: Option<End>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// How many slots are claims.
    live: usize,
    /// Whether one of those is the origin, at the start.
    origin: bool,
    /// How many of those have a waker.
    parked: usize,
    term: Option<Term>,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    claims: usize,
}

/// What the others wait for those that are last.
#[derive(Debug, Default)]
struct Term {
    /// Since when the log is full, and more of it wanted.
    since: Option<Instant>,
    /// How long it was so before.
    waited: Duration,
    /// The bytes that the last have taken, and the chunks.
    bytes: usize,
    chunks: usize,
}

/// The place of one claim. It is the claim's until it leaves.
#[derive(Debug)]
pub(super) struct Key(usize);

#[derive(Debug)]
enum Slot {
    Free,
    Claim(Claim),
    Evicted(Evicted),
}

#[derive(Debug)]
struct Claim {
    /// The number of the chunk it takes next.
    at: u64,
    /// The bytes it took.
    read: u64,
    /// It holds the log for readers to come, and reads nothing.
    origin: bool,
    waker: Option<Waker>,
}

/// What a claim finds where it stands.
#[derive(Debug)]
pub(super) enum Next {
    Chunk(Bytes),
    Over(End),
    Nothing,
}

/// What a full log says to a reader that wants more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stalled {
    /// It has to wait, until then at most; `None` for ever.
    Until(Option<Instant>),
    /// This many readers were evicted.
    Evicted(u64),
}

/// What is to be done when the lock is let go.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct After {
    wake: Vec<Waker>,
    chunks: Vec<Bytes>,
    waker: Option<Waker>,
    end: Option<End>,
}

// ===== impl Log =====

impl Log {
    /// An empty one, and the claim at its start that later ones are made from.
    pub(super) fn new(limits: Limits, promised: Option<u64>) -> (Self, Key) {
        let mut log = Self {
            limits,
            promised,
            chunks: VecDeque::new(),
            base: 0,
            here: 0,
            held: 0,
            written: 0,
            end: None,
            slots: Vec::new(),
            free: Vec::new(),
            live: 0,
            origin: true,
            parked: 0,
            term: None,
        };
        let origin = log.claim(true);
        (log, origin)
    }

    /// A claim at the start, or why there is none: `origin` was evicted.
    pub(super) fn join(&mut self, origin: &Key) -> Result<Key, Evicted> {
        match &self.slots[origin.0] {
            Slot::Evicted(evicted) => Err(*evicted),
            _ => Ok(self.claim(false)),
        }
    }

    /// A claim at the first chunk that is held. While the origin stands there, that is the first of all.
    fn claim(&mut self, origin: bool) -> Key {
        let claim = Slot::Claim(Claim {
            at: self.base,
            read: 0,
            origin,
            waker: None,
        });
        *self.standing(self.base) += 1;
        self.live += 1;
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = claim;
                Key(slot)
            }
            None => {
                self.slots.push(claim);
                Key(self.slots.len() - 1)
            }
        }
    }

    /// Takes what stands before `key`. `now` is asked only when others wait for that.
    pub(super) fn next(
        &mut self,
        key: &Key,
        now: impl FnOnce() -> Instant,
        after: &mut After,
    ) -> Next {
        let claim = match &mut self.slots[key.0] {
            Slot::Claim(claim) => claim,
            Slot::Evicted(evicted) => return Next::Over(End::Evicted(*evicted)),
            Slot::Free => return Next::Nothing,
        };
        let index = (claim.at - self.base) as usize;
        let Some(chunk) = self.chunks.get_mut(index) else {
            return match &self.end {
                Some(end) => Next::Over(end.clone()),
                None => Next::Nothing,
            };
        };
        claim.at += 1;
        claim.read += chunk.bytes.len() as u64;
        let at = claim.at;
        chunk.claims -= 1;
        let first = index == 0;
        let last = first && chunk.claims == 0;
        let bytes = if last {
            // Whoever takes a chunk last gets the chunk itself.
            std::mem::take(&mut chunk.bytes)
        } else {
            chunk.bytes.clone()
        };
        *self.standing(at) += 1;
        if last {
            self.chunks.pop_front();
            self.let_go(bytes.len());
            self.advance(bytes.len(), now, after);
        } else if first {
            self.hasten(after);
        }
        Next::Chunk(bytes)
    }

    /// Whether nothing may be pushed for now.
    ///
    /// Entries for chunks may take as much as the chunks: many small ones fill it too.
    pub(super) fn is_full(&self) -> bool {
        !self.chunks.is_empty() && self.fills(self.held, self.chunks.len())
    }

    fn fills(&self, bytes: usize, chunks: usize) -> bool {
        let max_buffer = self.limits.max_buffer;
        bytes >= max_buffer || chunks > max_buffer / size_of::<Chunk>() + 16
    }

    /// Puts `bytes` behind all others, unless that is more than was promised.
    pub(super) fn push(&mut self, bytes: Bytes, after: &mut After) {
        let written = self.written + bytes.len() as u64;
        if self.promised.is_some_and(|promised| promised < written) {
            after.chunks.push(bytes);
            return self.finish(End::Error(wrong_length(written, self.promised)), after);
        }
        self.written = written;
        self.held += bytes.len();
        let claims = std::mem::take(&mut self.here);
        self.chunks.push_back(Chunk { bytes, claims });
        self.wake_all(after);
    }

    /// Nothing follows. An end that comes too early for what was promised is an error, but not before the first byte: that
    /// is how the answer to a `HEAD` ends, which promises what a `GET` would bring.
    pub(super) fn finish(&mut self, end: End, after: &mut After) {
        let clean = matches!(end, End::Clean | End::Trailers(_));
        let short = self.written > 0
            && self
                .promised
                .is_some_and(|promised| promised != self.written);
        if clean && short {
            after.end = Some(end);
            self.end = Some(End::Error(wrong_length(self.written, self.promised)));
        } else {
            self.end = Some(end);
        }
        self.wake_all(after);
    }

    pub(super) fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// Somebody at the end of a full log wants more `now`. Evicts the last when they took too little for too long; the log
    /// may still be full then.
    pub(super) fn stalled(&mut self, now: Instant, after: &mut After) -> Stalled {
        let stall = if self.waits_for_origin() {
            self.limits.stall.min(COMING)
        } else {
            self.limits.stall
        };
        let term = self.term.get_or_insert_default();
        let since = *term.since.get_or_insert(now);
        let left = stall.saturating_sub(term.waited);
        match since.checked_add(left) {
            Some(due) if due <= now => Stalled::Evicted(self.evict(after)),
            due => Stalled::Until(due),
        }
    }

    /// Whether all readers have taken the first chunk, and only the origin keeps it.
    fn waits_for_origin(&self) -> bool {
        self.origin && self.chunks.front().is_some_and(|first| first.claims == 1)
    }

    /// A reader has left the first chunk: who waits may have to wait for less.
    fn hasten(&mut self, after: &mut After) {
        let wanted = self.term.as_ref().is_some_and(|term| term.since.is_some());
        if wanted && self.waits_for_origin() {
            self.wake_all(after);
        }
    }

    fn evict(&mut self, after: &mut After) -> u64 {
        let base = self.base;
        let last = |slot: &&mut Slot| matches!(slot, Slot::Claim(claim) if claim.at == base);
        let going =
            |slot: &Slot| matches!(slot, Slot::Claim(claim) if !claim.origin && claim.at != base);
        let evicted = Evicted {
            limits: self.limits,
            took: self.term.as_ref().map_or(0, |term| term.bytes),
            others: self.slots.iter().filter(|slot| going(slot)).count(),
        };
        let mut readers = 0;
        for slot in self.slots.iter_mut().filter(last) {
            let was = std::mem::replace(slot, Slot::Evicted(evicted));
            self.live -= 1;
            if let Slot::Claim(claim) = was {
                readers += u64::from(!claim.origin);
                self.origin &= !claim.origin;
                self.parked -= usize::from(claim.waker.is_some());
                after.wake.extend(claim.waker);
            }
        }
        if let Some(first) = self.chunks.front_mut() {
            first.claims = 0;
        }
        self.trim(after);
        readers
    }

    /// Gives `key` back; what only it needed goes.
    pub(super) fn leave(&mut self, key: Key, after: &mut After) {
        let was = std::mem::replace(&mut self.slots[key.0], Slot::Free);
        self.free.push(key.0);
        let Slot::Claim(claim) = was else { return };
        self.parked -= usize::from(claim.waker.is_some());
        after.waker = claim.waker;
        *self.standing(claim.at) -= 1;
        self.live -= 1;
        self.origin &= !claim.origin;
        self.trim(after);
        if claim.at == self.base {
            self.hasten(after);
        }
        if self.live == 0 {
            after.end = self.end.take();
        }
    }

    /// Whether nobody reads it, and nobody will.
    pub(super) fn abandoned(&self) -> bool {
        self.live == 0
    }

    /// Whether `key` is still to take anything, and how many bytes of it are here; `None` when it was evicted.
    pub(super) fn ahead(&self, key: &Key) -> Option<(bool, u64)> {
        match &self.slots[key.0] {
            Slot::Claim(claim) => {
                let any = claim.at < self.base + self.chunks.len() as u64;
                Some((any, self.written - claim.read))
            }
            _ => None,
        }
    }

    /// How the body ended for those that stayed.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Leaves `waker`, to be taken out and woken by the next thing that happens.
    pub(super) fn park(&mut self, key: &Key, waker: Waker) {
        if let Slot::Claim(claim) = &mut self.slots[key.0] {
            debug_assert!(
                claim.waker.is_none(),
                "whoever parks has taken its last waker out"
            );
            claim.waker = Some(waker);
            self.parked += 1;
        }
    }

    /// Takes out what `key` parked.
    pub(super) fn unpark(&mut self, key: &Key) -> Option<Waker> {
        match &mut self.slots[key.0] {
            Slot::Claim(claim) => {
                let waker = claim.waker.take();
                self.parked -= usize::from(waker.is_some());
                waker
            }
            _ => None,
        }
    }

    pub(super) fn wake_all(&mut self, after: &mut After) {
        if self.parked == 0 {
            return;
        }
        after.wake.reserve(self.parked);
        for slot in &mut self.slots {
            if let Slot::Claim(claim) = slot {
                after.wake.extend(claim.waker.take());
            }
        }
        self.parked = 0;
    }

    /// The claims that stand at chunk `at`.
    fn standing(&mut self, at: u64) -> &mut usize {
        match self.chunks.get_mut((at - self.base) as usize) {
            Some(chunk) => &mut chunk.claims,
            None => &mut self.here,
        }
    }

    /// Lets go of what nobody stands at any more, from the front. Others are the last then, with a term of their own.
    fn trim(&mut self, after: &mut After) {
        let base = self.base;
        while self.chunks.front().is_some_and(|first| first.claims == 0)
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.let_go(chunk.bytes.len());
            after.chunks.push(chunk.bytes);
        }
        if base < self.base
            && let Some(Term { since: Some(_), .. }) = self.term.take()
        {
            self.wake_all(after);
        }
    }

    /// The first chunk, of `len` bytes, was taken out.
    fn let_go(&mut self, len: usize) {
        self.base += 1;
        self.held -= len;
    }

    /// The last have taken the first chunk, of `len` bytes.
    fn advance(&mut self, len: usize, now: impl FnOnce() -> Instant, after: &mut After) {
        let full = self.is_full();
        let Some(mut term) = self.term.take() else {
            return;
        };
        if term.since.is_some() {
            self.wake_all(after);
        }
        term.bytes = term.bytes.saturating_add(len);
        term.chunks += 1;
        if self.fills(term.bytes, term.chunks) {
            return;
        }
        if let Some(since) = term.since.take_if(|_| !full) {
            term.waited += now().saturating_duration_since(since);
        }
        self.term = Some(term);
    }
}

// ===== impl After =====

impl After {
    /// Wakes, then drops.
    pub(super) fn run(self) {
        for waker in self.wake {
            waker.wake();
        }
    }
}

#[cfg(all(test, not(tower_flow_loom)))]
mod tests;
