#![allow(clippy::unwrap_used)] // A test that fails here has failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

use proptest::prelude::*;

use super::*;
use crate::base::clock;
use crate::base::error::SharedError;

/// Less than [`COMING`], for what is not about that.
const STALL: Duration = Duration::from_millis(90);
/// More than that.
const LONG: Duration = Duration::from_millis(150);

fn log(max_buffer: usize, promised: Option<u64>) -> (Log, Key) {
    log_for(max_buffer, STALL, promised)
}

fn log_for(max_buffer: usize, stall: Duration, promised: Option<u64>) -> (Log, Key) {
    Log::new(Limits { max_buffer, stall }, promised)
}

fn push(log: &mut Log, bytes: &'static str) {
    let mut after = After::default();
    log.push(Bytes::from_static(bytes.as_bytes()), &mut after);
    after.run();
}

fn finish(log: &mut Log, end: End) {
    let mut after = After::default();
    log.finish(end, &mut after);
    after.run();
}

fn next(log: &mut Log, key: &Key) -> Next {
    let mut after = After::default();
    let next = log.next(key, clock::now, &mut after);
    after.run();
    next
}

fn takes(log: &mut Log, key: &Key) -> String {
    match next(log, key) {
        Next::Chunk(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("no chunk but {other:?}"),
    }
}

fn leave(log: &mut Log, key: Key) {
    let mut after = After::default();
    log.leave(key, &mut after);
    after.run();
}

fn stalled(log: &mut Log, now: Instant) -> Stalled {
    let mut after = After::default();
    let stalled = log.stalled(now, &mut after);
    after.run();
    stalled
}

#[test]
fn every_reader_takes_all_chunks_and_then_the_end() {
    let (mut log, origin) = log(10, None);
    let early = log.join(&origin).unwrap();
    push(&mut log, "ab");
    assert_eq!(takes(&mut log, &early), "ab");
    push(&mut log, "cd");
    let late = log.join(&origin).unwrap();
    finish(&mut log, End::Clean);
    assert_eq!(takes(&mut log, &early), "cd");
    assert!(matches!(next(&mut log, &early), Next::Over(End::Clean)));
    assert_eq!(takes(&mut log, &late), "ab");
    assert_eq!(takes(&mut log, &late), "cd");
    assert!(matches!(next(&mut log, &late), Next::Over(End::Clean)));
}

#[test]
fn what_all_have_taken_is_let_go_and_what_one_needs_is_kept() {
    let (mut log, origin) = log(10, None);
    let [fast, slow] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
    push(&mut log, "ab");
    push(&mut log, "cd");
    takes(&mut log, &fast);
    takes(&mut log, &slow);
    assert_eq!(log.held, 4, "the origin stands at the start");
    leave(&mut log, origin);
    assert_eq!(log.held, 2);
    takes(&mut log, &fast);
    assert_eq!(log.held, 2);
    leave(&mut log, slow);
    assert_eq!(log.held, 0);
}

#[test]
fn a_chunk_is_moved_to_whoever_takes_it_last() {
    let (mut log, origin) = log(10, None);
    let [first, last] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
    leave(&mut log, origin);
    let mut after = After::default();
    log.push(Bytes::from(vec![1, 2, 3]), &mut after);
    after.run();
    let Next::Chunk(one) = next(&mut log, &first) else {
        panic!("it is there")
    };
    drop(one);
    let Next::Chunk(two) = next(&mut log, &last) else {
        panic!("it is there")
    };
    assert!(two.is_unique());
}

#[test]
fn a_log_holds_one_chunk_whatever_its_size_and_no_second() {
    let (mut log, _origin) = log(0, None);
    assert!(!log.is_full());
    push(&mut log, "much more than nothing");
    assert!(log.is_full());
}

#[test]
fn many_small_chunks_fill_a_log_too() {
    let (mut log, _origin) = log(4_000, None);
    let mut chunks = 0;
    while !log.is_full() {
        push(&mut log, "");
        chunks += 1;
    }
    assert!(chunks * size_of::<Chunk>() < 5_000, "{chunks} chunks");
}

#[test]
fn the_last_are_evicted_when_somebody_has_wanted_more_for_the_stall() {
    let (mut log, origin) = log(4, None);
    let keys: Vec<Key> = (0..4).map(|_| log.join(&origin).unwrap()).collect();
    leave(&mut log, origin);
    push(&mut log, "ab");
    push(&mut log, "cd");
    takes(&mut log, &keys[0]);
    takes(&mut log, &keys[0]);
    takes(&mut log, &keys[1]);
    let start = clock::now();
    let due = start + STALL;
    assert_eq!(stalled(&mut log, start), Stalled::Until(Some(due)));
    assert_eq!(
        stalled(&mut log, due - Duration::from_nanos(1)),
        Stalled::Until(Some(due))
    );
    assert_eq!(stalled(&mut log, due), Stalled::Evicted(2));
    assert_eq!(log.held, 2, "the other has not taken the second");
    for slow in &keys[2..] {
        let Next::Over(End::Evicted(evicted)) = next(&mut log, slow) else {
            panic!("it stays")
        };
        assert_eq!((evicted.took, evicted.others), (0, 2));
    }
    assert_eq!(takes(&mut log, &keys[1]), "cd");
    assert!(matches!(next(&mut log, &keys[1]), Next::Nothing));
}

fn takes_at(log: &mut Log, key: &Key, now: Instant) {
    let mut after = After::default();
    assert!(matches!(log.next(key, || now, &mut after), Next::Chunk(_)));
    after.run();
}

/// A full log of chunks of 2 bytes; who is first has taken all, who is last none.
fn held_up() -> (Log, Key, Key) {
    let (mut log, origin) = log(4, None);
    let [fast, slow] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
    leave(&mut log, origin);
    for bytes in ["ab", "cd"] {
        push(&mut log, bytes);
        takes(&mut log, &fast);
    }
    (log, fast, slow)
}

#[test]
fn a_term_ends_well_when_the_last_have_taken_as_much_as_fills_a_log() {
    let (mut log, fast, slow) = held_up();
    let mut now = clock::now();
    for _ in 0..10 {
        stalled(&mut log, now);
        now += STALL - Duration::from_millis(1);
        for _ in 0..2 {
            takes_at(&mut log, &slow, now);
        }
        assert!(log.term.is_none());
        for _ in 0..2 {
            push(&mut log, "ef");
            takes(&mut log, &fast);
        }
    }
}

#[test]
fn who_trickles_is_evicted_after_all_waits_together() {
    let (mut log, fast, slow) = held_up();
    let start = clock::now();
    let due = start + STALL;
    assert_eq!(stalled(&mut log, start), Stalled::Until(Some(due)));
    let step = due - Duration::from_millis(1);
    takes_at(&mut log, &slow, step);
    assert!(!log.is_full());
    // They wait for the body for longer than that, which counts for nobody.
    let full = step + STALL * 5;
    push(&mut log, "ef");
    takes(&mut log, &fast);
    let due = full + Duration::from_millis(1);
    assert_eq!(stalled(&mut log, full), Stalled::Until(Some(due)));
    assert_eq!(stalled(&mut log, due), Stalled::Evicted(1));
    let Next::Over(End::Evicted(evicted)) = next(&mut log, &slow) else {
        panic!("it stays")
    };
    assert_eq!((evicted.took, evicted.others), (2, 1));
}

#[test]
fn a_step_that_leaves_a_log_full_wakes_and_gives_no_more_time() {
    let (mut log, origin) = log(4, None);
    let [fast, slow] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
    leave(&mut log, origin);
    for bytes in ["a", "bcdefg"] {
        push(&mut log, bytes);
        takes(&mut log, &fast);
    }
    let start = clock::now();
    stalled(&mut log, start);
    let woken = Arc::new(Woken::default());
    log.park(&fast, Waker::from(woken.clone()));
    takes(&mut log, &slow);
    assert!(log.is_full(), "it was the small one");
    assert_eq!(woken.0.load(SeqCst), 1);
    assert_eq!(stalled(&mut log, start + STALL), Stalled::Evicted(1));
}

#[test]
fn small_chunks_that_fill_a_log_are_enough_when_they_are_taken() {
    let (mut log, origin) = log(4_000, None);
    let [fast, slow] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
    leave(&mut log, origin);
    let mut chunks = 0;
    while !log.is_full() {
        push(&mut log, "a");
        takes(&mut log, &fast);
        chunks += 1;
    }
    stalled(&mut log, clock::now());
    for _ in 0..chunks {
        assert!(log.term.is_some());
        takes(&mut log, &slow);
    }
    assert!(log.term.is_none());
}

#[test]
fn when_the_last_leaves_the_next_has_a_term_of_its_own() {
    let (mut log, origin) = log(4, None);
    let keys: Vec<Key> = (0..3).map(|_| log.join(&origin).unwrap()).collect();
    leave(&mut log, origin);
    for bytes in ["a", "bcdefg"] {
        push(&mut log, bytes);
        takes(&mut log, &keys[0]);
    }
    takes(&mut log, &keys[1]);
    let start = clock::now();
    stalled(&mut log, start);
    let [_fast, _slow, last] = <[Key; 3]>::try_from(keys).unwrap();
    leave(&mut log, last);
    let later = start + STALL;
    let until = Stalled::Until(Some(later + STALL));
    assert_eq!(stalled(&mut log, later), until);
}

#[test]
fn an_origin_that_is_last_alone_is_evicted_soon_and_counts_as_none() {
    let limits = Limits {
        max_buffer: 2,
        stall: Duration::MAX,
    };
    let (mut log, origin) = Log::new(limits, None);
    let reader = log.join(&origin).unwrap();
    push(&mut log, "ab");
    takes(&mut log, &reader);
    let now = clock::now();
    let due = now + COMING;
    assert_eq!(stalled(&mut log, now), Stalled::Until(Some(due)));
    assert_eq!(stalled(&mut log, due), Stalled::Evicted(0));
    assert!(log.join(&origin).is_err());
    assert!(!log.is_full());
}

#[test]
fn a_stall_shorter_than_that_holds_for_an_origin_too() {
    let (mut log, origin) = log(2, None);
    let reader = log.join(&origin).unwrap();
    push(&mut log, "ab");
    takes(&mut log, &reader);
    let now = clock::now();
    assert_eq!(stalled(&mut log, now), Stalled::Until(Some(now + STALL)));
}

#[test]
fn a_reader_beside_the_origin_has_its_stall_and_wakes_when_it_goes_on() {
    for leaves in [false, true] {
        let limits = Limits {
            max_buffer: 2,
            stall: COMING * 50,
        };
        let (mut log, origin) = Log::new(limits, None);
        let [fast, slow] = [log.join(&origin).unwrap(), log.join(&origin).unwrap()];
        push(&mut log, "ab");
        takes(&mut log, &fast);
        let now = clock::now();
        let until = Stalled::Until(Some(now + limits.stall));
        assert_eq!(stalled(&mut log, now), until);
        let woken = Arc::new(Woken::default());
        log.park(&fast, Waker::from(woken.clone()));
        if leaves {
            leave(&mut log, slow);
        } else {
            takes(&mut log, &slow);
        }
        assert_eq!(woken.0.load(SeqCst), 1, "it waits for the origin only");
        assert_eq!(stalled(&mut log, now + COMING), Stalled::Evicted(0));
        leave(&mut log, origin);
    }
}

#[test]
fn an_end_before_what_was_promised_is_an_error() {
    for end in [End::Clean, End::Trailers(Arc::default())] {
        let (mut log, origin) = log(10, Some(10));
        let reader = log.join(&origin).unwrap();
        push(&mut log, "fives");
        finish(&mut log, end);
        assert_eq!(takes(&mut log, &reader), "fives");
        let Next::Over(End::Error(error)) = next(&mut log, &reader) else {
            panic!("a clean end")
        };
        assert!(
            error
                .to_string()
                .starts_with("body ended after 5 of 10 bytes"),
            "{error}"
        );
    }
}

#[test]
fn an_end_before_the_first_byte_is_that_of_an_answer_to_head() {
    let (mut log, origin) = log(10, Some(10));
    let reader = log.join(&origin).unwrap();
    push(&mut log, "");
    finish(&mut log, End::Clean);
    assert_eq!(takes(&mut log, &reader), "");
    assert!(matches!(next(&mut log, &reader), Next::Over(End::Clean)));
}

#[test]
fn more_than_was_promised_is_an_error_at_once() {
    let (mut log, origin) = log(10, Some(4));
    let reader = log.join(&origin).unwrap();
    push(&mut log, "four");
    push(&mut log, "five");
    assert_eq!(takes(&mut log, &reader), "four");
    assert!(matches!(next(&mut log, &reader), Next::Over(End::Error(_))));
}

#[test]
fn what_was_promised_and_came_is_a_clean_end() {
    let (mut log, origin) = log(10, Some(4));
    let reader = log.join(&origin).unwrap();
    push(&mut log, "four");
    finish(&mut log, End::Clean);
    takes(&mut log, &reader);
    assert!(matches!(next(&mut log, &reader), Next::Over(End::Clean)));
}

/// What the log does, in lists: chunks by number, and where each claim stands.
struct Model {
    max_buffer: usize,
    chunks: Vec<Vec<u8>>,
    end: Option<u8>,
    origin: Option<Place>,
    readers: Vec<Option<Reader>>,
    term: Option<Wait>,
}

#[derive(Default)]
struct Wait {
    since: Option<Instant>,
    waited: Duration,
    taken: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    At(usize),
    Evicted,
}

struct Reader {
    key: Key,
    place: Place,
    woken: Arc<Woken>,
    parked: bool,
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Model {
    fn base(&self) -> usize {
        let readers = self.readers.iter().flatten().map(|reader| reader.place);
        let places = readers.chain(self.origin);
        places
            .filter_map(|place| match place {
                Place::At(at) => Some(at),
                Place::Evicted => None,
            })
            .min()
            .unwrap_or(self.chunks.len())
    }

    fn held(&self) -> &[Vec<u8>] {
        &self.chunks[self.base()..]
    }

    fn full(&self) -> bool {
        let held: Vec<usize> = self.held().iter().map(Vec::len).collect();
        !held.is_empty() && self.fills(&held)
    }

    fn fills(&self, chunks: &[usize]) -> bool {
        let many = chunks.len() > self.max_buffer / size_of::<Chunk>() + 16;
        chunks.iter().sum::<usize>() >= self.max_buffer || many
    }

    fn waits_for_origin(&self) -> bool {
        let mut readers = self.readers.iter().flatten();
        let alone = readers.all(|reader| reader.place != Place::At(0));
        self.origin == Some(Place::At(0)) && !self.chunks.is_empty() && alone
    }

    /// The last reader that was beside the origin has gone on.
    fn hasten(&mut self) {
        let wanted = self.term.as_ref().is_some_and(|term| term.since.is_some());
        if wanted && self.waits_for_origin() {
            for reader in self.readers.iter_mut().flatten() {
                reader.parked = false;
            }
        }
    }

    /// Who waited for room does no longer, when chunks from `base` on were let go of: taken, or given up.
    fn advance(&mut self, base: usize, taken: bool, now: Instant) {
        if self.base() == base {
            return;
        }
        let Some(mut term) = self.term.take() else {
            return;
        };
        if term.since.is_some() {
            for reader in self.readers.iter_mut().flatten() {
                reader.parked = false;
            }
        }
        let gone = &self.chunks[base..self.base()];
        term.taken.extend(gone.iter().map(Vec::len));
        if !taken || self.fills(&term.taken) {
            return;
        }
        if let Some(since) = term.since.take_if(|_| !self.full()) {
            term.waited += now - since;
        }
        self.term = Some(term);
    }
}

/// Bytes that are counted while they are anywhere.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, SeqCst);
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Push(u8),
    Finish(u8),
    Join,
    Poll(usize),
    Leave(usize),
    Close,
    Pass(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u8..12).prop_map(Step::Push),
        1 => (0u8..3).prop_map(Step::Finish),
        3 => Just(Step::Join),
        20 => (0usize..8).prop_map(Step::Poll),
        2 => (0usize..8).prop_map(Step::Leave),
        1 => Just(Step::Close),
        4 => (0u8..80).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// A failing case prints itself and the seed that made it.
    #[test]
    fn a_log_does_what_lists_do(steps in steps(), max_buffer in 0usize..40) {
        let (mut log, origin) = log_for(max_buffer, LONG, None);
        let mut origin = Some(origin);
        let alive = Arc::new(AtomicUsize::new(0));
        let mut now = clock::now();
        let mut byte = 0u8;
        let mut model = Model {
            max_buffer,
            chunks: Vec::new(),
            end: None,
            origin: Some(Place::At(0)),
            readers: Vec::new(),
            term: None,
        };
        for step in steps {
            let mut after = After::default();
            let base = model.base();
            let mut taken = false;
            let waits_for_origin = model.waits_for_origin();
            match step {
                Step::Push(len) => {
                    prop_assert_eq!(log.is_full(), model.full());
                    if log.is_full() || log.ended() || log.abandoned() {
                        continue;
                    }
                    let bytes: Vec<u8> = (0..len).map(|_| { byte = byte.wrapping_add(1); byte }).collect();
                    alive.fetch_add(1, SeqCst);
                    log.push(Bytes::from_owner(Counted(bytes.clone(), alive.clone())), &mut after);
                    model.chunks.push(bytes);
                    model.readers.iter_mut().flatten().for_each(|reader| reader.parked = false);
                }
                Step::Finish(how) => {
                    if log.ended() || log.abandoned() {
                        continue;
                    }
                    log.finish(match how {
                        0 => End::Clean,
                        1 => End::Trailers(Arc::default()),
                        _ => End::Error(SharedError::new("reset")),
                    }, &mut after);
                    model.end = Some(how);
                    model.readers.iter_mut().flatten().for_each(|reader| reader.parked = false);
                }
                Step::Join => {
                    let Some(origin) = &origin else { continue };
                    match log.join(origin) {
                        Ok(key) => {
                            prop_assert!(model.origin == Some(Place::At(0)));
                            let woken = Arc::default();
                            model.readers.push(Some(Reader { key, place: Place::At(0), woken, parked: false }));
                        }
                        Err(_) => prop_assert!(model.origin == Some(Place::Evicted)),
                    }
                }
                Step::Poll(which) => {
                    let full = model.full();
                    let stall = if model.waits_for_origin() { LONG.min(COMING) } else { LONG };
                    let Some(Some(reader)) = model.readers.get_mut(which) else { continue };
                    match (log.next(&reader.key, || now, &mut after), reader.place) {
                        (Next::Chunk(bytes), Place::At(at)) => {
                            prop_assert_eq!(bytes.as_ref(), &model.chunks[at][..]);
                            reader.place = Place::At(at + 1);
                            taken = true;
                        }
                        (Next::Over(End::Evicted(_)), Place::Evicted) => {}
                        (Next::Over(end), Place::At(at)) => {
                            prop_assert_eq!(at, model.chunks.len());
                            let fits = match end {
                                End::Clean => model.end == Some(0),
                                End::Trailers(_) => model.end == Some(1),
                                End::Error(_) => model.end == Some(2),
                                End::Evicted(_) => false,
                            };
                            prop_assert!(fits);
                        }
                        (Next::Nothing, Place::At(at)) => {
                            prop_assert_eq!(at, model.chunks.len());
                            prop_assert!(model.end.is_none());
                            drop(log.unpark(&reader.key));
                            reader.parked = true;
                            log.park(&reader.key, Waker::from(reader.woken.clone()));
                            if full {
                                let term = model.term.get_or_insert_default();
                                let since = *term.since.get_or_insert(now);
                                let due = since + stall.saturating_sub(term.waited);
                                match log.stalled(now, &mut after) {
                                    Stalled::Until(until) => {
                                        prop_assert_eq!(until, Some(due));
                                        prop_assert!(now < due);
                                    }
                                    Stalled::Evicted(n) => {
                                        prop_assert!(now >= due);
                                        let mut gone = 0;
                                        for reader in model.readers.iter_mut().flatten() {
                                            if reader.place == Place::At(base) {
                                                reader.place = Place::Evicted;
                                                gone += 1;
                                            }
                                        }
                                        if model.origin == Some(Place::At(base)) {
                                            model.origin = Some(Place::Evicted);
                                        }
                                        prop_assert_eq!(n, gone);
                                    }
                                }
                            }
                        }
                        (next, _) => prop_assert!(false, "{next:?}"),
                    }
                }
                Step::Leave(which) => {
                    let Some(reader) = model.readers.get_mut(which).and_then(Option::take) else { continue };
                    log.leave(reader.key, &mut after);
                }
                Step::Close => {
                    let Some(origin) = origin.take() else { continue };
                    log.leave(origin, &mut after);
                    model.origin = None;
                }
                Step::Pass(ms) => now += Duration::from_millis(ms.into()),
            }
            after.run();
            model.advance(base, taken, now);
            if !waits_for_origin && matches!(step, Step::Poll(_) | Step::Leave(_)) {
                model.hasten();
            }
            // Nothing more is held than somebody needs, and all that is.
            let held: usize = model.held().iter().map(Vec::len).sum();
            let greatest = model.held().iter().map(Vec::len).max().unwrap_or(0);
            prop_assert_eq!(log.held, held);
            prop_assert!(held <= max_buffer + greatest);
            prop_assert_eq!(alive.load(SeqCst), model.held().len());
            prop_assert_eq!(log.term.is_some(), model.term.is_some());
            if let (Some(term), Some(wait)) = (&log.term, &model.term) {
                prop_assert_eq!((term.since, term.waited), (wait.since, wait.waited));
            }
            for reader in model.readers.iter().flatten() {
                // Who was woken is no longer parked, and nobody else is woken.
                let waker = match &log.slots[reader.key.0] {
                    Slot::Claim(claim) => claim.waker.is_some(),
                    _ => false,
                };
                prop_assert_eq!(waker, reader.parked);
                if let (Place::At(at), Some((any, ahead))) = (reader.place, log.ahead(&reader.key)) {
                    prop_assert_eq!(any, at < model.chunks.len());
                    prop_assert_eq!(ahead as usize, model.chunks[at..].iter().map(Vec::len).sum::<usize>());
                }
            }
        }
        for key in model.readers.into_iter().flatten().map(|reader| reader.key).chain(origin) {
            leave(&mut log, key);
        }
        prop_assert!(log.abandoned() && log.chunks.is_empty() && log.here == 0 && log.parked == 0);
        prop_assert_eq!(log.free.len(), log.slots.len());
        prop_assert_eq!(alive.load(SeqCst), 0);
        prop_assert!(log.end.is_none());
    }
}
