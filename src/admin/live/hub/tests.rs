use super::*;

/// The name of the next event, and whether it has all tables and knobs.
fn next(listener: &mut Listener) -> Poll<Option<String>> {
    let next = listener.poll_next(&mut Context::from_waker(Waker::noop()));
    next.map(|event| {
        let event = String::from_utf8(event?.to_vec()).unwrap();
        assert!(event.ends_with("}\n\n"), "{event}");
        let whole = event.contains("\"knobs\":[[0,0,");
        let name = event
            .split_once("event: ")?
            .1
            .split_once('\n')?
            .0
            .to_owned();
        Some(if whole { name + ", whole" } else { name })
    })
}

fn told(name: &str) -> Poll<Option<String>> {
    Poll::Ready(Some(name.to_owned()))
}

/// A layer with a knob that nobody turns.
#[derive(Debug)]
struct Still;

impl crate::inspect::Inspect for Still {
    fn kind(&self) -> &'static str {
        "still"
    }

    fn name(&self) -> std::borrow::Cow<'_, str> {
        "still".into()
    }

    fn snapshot(&self) -> crate::inspect::Value {
        panic!("nobody asks for what has no tables")
    }

    fn collect(&self, _: &mut crate::metrics::Families) {}

    fn knobs(&self) -> Vec<crate::inspect::Knob> {
        vec![crate::inspect::Knob::new("knob", "Does nothing", true)]
    }

    fn hot(&self) -> Vec<crate::inspect::HotPath> {
        panic!("a layer's fault takes nothing else with it")
    }
}

fn hub() -> Arc<Hub> {
    let flow = Flow::new("orders");
    flow.attach(Still);
    let hub = Hub::new(flow, 2);
    // The test is its clock.
    hub.desk().ticking = true;
    hub
}

#[test]
fn who_falls_behind_gets_all_again() {
    let hub = hub();
    let start = clock::now();
    let second = |n| start + Duration::from_secs(n);
    let mut fast = hub.listen("\"knobs\":false".to_owned(), None).unwrap();
    let mut slow = hub.listen("\"knobs\":false".to_owned(), None).unwrap();
    assert!(hub.listen(String::new(), None).is_err());
    assert_eq!(next(&mut slow), told("state"));
    assert_eq!(next(&mut fast), told("state"));
    assert_eq!(next(&mut fast), Poll::Pending);
    hub.tick(second(0));
    assert_eq!(next(&mut fast), told("tick, whole"));
    assert_eq!(next(&mut slow), told("tick, whole"));
    for n in 1..=KEPT as u64 + 1 {
        hub.tick(second(n));
        assert_eq!(next(&mut fast), told("tick"));
        assert_eq!(next(&mut fast), Poll::Pending);
    }
    assert_eq!(next(&mut slow), Poll::Pending, "what it missed is gone");
    hub.tick(second(6));
    for listener in [&mut fast, &mut slow] {
        assert_eq!(next(listener), told("tick, whole"));
    }
}

#[test]
fn who_takes_nothing_is_put_out_and_one_who_left_makes_room() {
    let hub = hub();
    let start = clock::now();
    let mut fast = hub.listen(String::new(), None).unwrap();
    let link = crate::admin::link::Link::new(true);
    let mut slow = hub.listen(String::new(), Some(link.hold())).unwrap();
    next(&mut slow).is_ready().then_some(()).unwrap();
    // As long as its connection takes something it may be behind.
    for n in 0..30 {
        link.wrote(n % 9 == 0, start + Duration::from_secs(n));
        hub.tick(start + Duration::from_secs(n));
        while next(&mut fast).is_ready() {}
    }
    let start = start + Duration::from_secs(28);
    for n in 2..=11 {
        assert_eq!(hub.desk().seats.len(), 2, "{n}");
        hub.tick(start + Duration::from_secs(n));
        while next(&mut fast).is_ready() {}
    }
    assert_eq!(hub.desk().seats.len(), 1);
    assert!(!link.is_held());
    assert_eq!(next(&mut slow), Poll::Ready(None));
    let again = hub.listen(String::new(), None);
    assert_eq!(hub.desk().seats.len(), 2);
    drop((slow, again, fast));
    assert_eq!(hub.desk().seats.len(), 0);
}

#[test]
fn what_is_long_comes_in_pieces() {
    let hub = hub();
    let start = clock::now();
    let head = format!("\"head\":\"{}\"", "x".repeat(3 * PIECE));
    let mut listener = hub.listen(head, None).unwrap();
    let mut piece = || {
        let mut cx = Context::from_waker(Waker::noop());
        match listener.poll_next(&mut cx) {
            Poll::Ready(piece) => piece.map(|piece| piece.len()),
            Poll::Pending => panic!("there is more"),
        }
    };
    // A piece every eight seconds is slow, but not stuck.
    for n in 0..3 {
        assert_eq!(piece(), Some(PIECE));
        hub.tick(start + Duration::from_secs(8 * n));
    }
    assert!(piece().is_some_and(|last| last < PIECE));
    hub.tick(start + Duration::from_secs(24));
    hub.tick(start + Duration::from_secs(40));
    assert_eq!(piece(), None);
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_a_long_silence_is_told_of_then() {
    let hub = Hub::new(Flow::new("orders"), 4);
    let state = |listener: &mut Listener| {
        let event = listener.poll_next(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(event)) = event else {
            panic!("it begins with the state")
        };
        let event = String::from_utf8(event.to_vec()).unwrap();
        let data = event.split_once("data: ").unwrap().1;
        serde_json::from_str::<serde_json::Value>(data).unwrap()
    };
    let mut first = hub.listen("\"head\":1".to_owned(), None).unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    state(&mut first);
    drop(first);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let mut second = hub.listen("\"head\":1".to_owned(), None).unwrap();
    let state = state(&mut second);
    assert!(state["uptime"].as_f64() > Some(3600.0), "{state}");
    assert_eq!(state["history"]["at"].as_array().unwrap().len(), 1);
}
