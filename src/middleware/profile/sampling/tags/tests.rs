use super::*;

/// One profiler at a time: what a profiler does to the flag, the tests do in turn.
static TURN: Mutex<()> = Mutex::new(());

fn own() -> Option<Arc<Journal>> {
    HERE.with(|here| here.journal.get().cloned().flatten())
}

fn tags(journal: &Journal) -> Vec<u16> {
    let mut events = Vec::new();
    journal.read(0, &mut events);
    events.iter().map(|event| event.tag).collect()
}

#[test]
fn equal_names_are_one_tag_and_there_are_only_so_many() {
    let first = Tag::new("tags", "a");
    assert_eq!(first, Tag::new("tags", "a"));
    assert_ne!(first, Tag::new("tags", "b"));
    assert_eq!(&*first.name().1, "a");
    let long = Tag::new("tags", &"ü".repeat(1_000));
    assert_eq!(long.name().1.len(), NAME);
    // A table of its own, so that tests beside this one find room.
    assert_eq!(&*Tag::OTHER.name().1, "other");
    assert_eq!(&*Tag::from_id(u16::MAX).name().1, "other");
}

#[test]
fn nothing_is_written_while_no_profiler_runs() {
    let _turn = TURN.lock();
    std::thread::spawn(|| {
        Tag::new("tags", "off").within(|| assert!(!on()));
        assert!(own().is_none());
    })
    .join()
    .unwrap();
}

#[test]
fn entering_nests_and_a_panic_leaves() {
    let _turn = TURN.lock();
    begin();
    std::thread::spawn(|| {
        let (outer, inner) = (Tag::new("tags", "outer"), Tag::new("tags", "inner"));
        outer.within(|| {
            inner.within(|| ());
            _ = std::panic::catch_unwind(|| {
                inner.within(|| std::panic::resume_unwind(Box::new(())))
            });
        });
        let journal = own().unwrap();
        let (outer, inner) = (outer.id(), inner.id());
        assert_eq!(tags(&journal), [outer, inner, outer, inner, outer, 0]);
        assert_eq!(
            journal.thread(),
            rustix::thread::gettid().as_raw_nonzero().get() as u32
        );
    })
    .join()
    .unwrap();
    finish();
}

#[test]
fn journals_go_when_their_thread_has_ended_and_no_profiler_runs() {
    let _turn = TURN.lock();
    let tag = Tag::new("tags", "mortal");
    let listed =
        |journal: &Arc<Journal>| journals().iter().any(|other| Arc::ptr_eq(other, journal));
    begin();
    let ended = std::thread::spawn(move || {
        tag.within(|| ());
        own().unwrap()
    })
    .join()
    .unwrap();
    assert!(ended.ended() && listed(&ended));
    assert_eq!(tags(&ended), [tag.id(), 0, 0]);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        tag.within(|| ());
        tell.send(own().unwrap()).unwrap();
        wait.recv().unwrap();
    });
    let living = told.recv().unwrap();
    finish();
    assert!(!listed(&ended) && listed(&living));
    go.send(()).unwrap();
    thread.join().unwrap();
    assert!(!listed(&living));
}

#[test]
fn the_two_clocks_are_one() {
    let base = Base::read();
    for _ in 0..1_000 {
        let before = nanos();
        let now = base.nanos(clock::now());
        let after = nanos();
        // The readings of the base may lie some nanoseconds apart.
        assert!(
            before <= now + 2_000 && now <= after + 2_000,
            "{before} {now} {after}"
        );
    }
    let earlier = base.instant - std::time::Duration::from_secs(1);
    assert_eq!(base.nanos(earlier), base.nanos - 1_000_000_000);
}
