use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokio::time::sleep;
use tokio_test::task;

use super::*;
use crate::base::clock;
use crate::base::inspect::Value;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn same(dial: &Dial) -> bool {
    Dial::current().is_some_and(|current| Arc::ptr_eq(&current.0, &dial.0))
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl DialObserver for Log {
    fn started(&self, phase: Phase) {
        self.0.lock().unwrap().push(format!("{phase} starts"));
    }

    fn ended(&self, phase: Phase, failed: bool) {
        let how = if failed { "fails" } else { "ends" };
        self.0.lock().unwrap().push(format!("{phase} {how}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_knows_where_it_is_and_how_long_each_phase_took() {
    let start = clock::now();
    let log = Arc::new(Log::default());
    let dial = Dial::observed(start, log.clone());
    assert_eq!(
        (dial.phase(), dial.durations()),
        (None, Durations::default())
    );
    let connector = async {
        Phase::Dns
            .mark(async {
                sleep(ms(5)).await;
                Ok::<_, ()>(())
            })
            .await?;
        sleep(ms(1)).await;
        let connecting = Dial::current().unwrap().span(Phase::Connect);
        sleep(ms(20)).await;
        connecting.done();
        Phase::Tls
            .mark(std::future::pending::<Result<(), ()>>())
            .await
    };
    let mut scoped = task::spawn(dial.scope(connector));
    let wanted = [(Phase::Dns, 5), (Phase::Connect, 21), (Phase::Tls, 0)];
    for (n, (phase, wait)) in wanted.into_iter().enumerate() {
        assert!(scoped.poll().is_pending());
        if n == 1 {
            assert_eq!(dial.phase(), None, "between two phases");
            tokio::time::advance(ms(1)).await;
            assert!(scoped.poll().is_pending());
            assert_eq!(dial.phase(), Some(phase));
            tokio::time::advance(ms(wait - 1)).await;
            continue;
        }
        assert_eq!(dial.phase(), Some(phase));
        tokio::time::advance(ms(wait)).await;
    }
    tokio::time::advance(ms(1_000)).await;
    drop(scoped);
    assert_eq!(
        dial.phase(),
        Some(Phase::Tls),
        "whoever gave up can still say where"
    );
    assert_eq!(
        dial.durations(),
        Durations {
            dns: Some(ms(5)),
            connect: Some(ms(20)),
            tls: Some(ms(1_000)),
            handshake: None
        }
    );
    assert_eq!(dial.ended(Phase::Connect), Some(start + ms(26)));
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "dns starts",
            "dns ends",
            "connect starts",
            "connect ends",
            "tls starts",
            "tls fails"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn phases_that_nest_or_repeat_do_no_harm() {
    let at = |n| clock::now() + ms(n);
    let dial = Dial::new(clock::now());
    dial.leave(Phase::Dns, at(1));
    assert_eq!(dial.duration(Phase::Dns), None, "never begun, never ended");
    dial.enter(Phase::Connect, at(0));
    dial.enter(Phase::Connect, at(1));
    dial.enter(Phase::Tls, at(2));
    assert_eq!(dial.phase(), Some(Phase::Tls));
    // The outer one first.
    dial.leave(Phase::Connect, at(5));
    assert_eq!(dial.phase(), Some(Phase::Tls));
    dial.leave(Phase::Tls, at(6));
    dial.leave(Phase::Tls, at(60));
    assert_eq!(dial.phase(), None);
    assert_eq!(dial.duration(Phase::Connect), Some(ms(5)));
    assert_eq!(dial.duration(Phase::Tls), Some(ms(4)));
    dial.enter(Phase::Connect, at(10));
    dial.leave(Phase::Connect, at(12));
    assert_eq!(dial.duration(Phase::Connect), Some(ms(7)), "tried again");
    // All at once, in any order.
    for phase in Phase::ALL {
        dial.enter(phase, at(20));
    }
    for phase in [3, 0, 4, 1, 2].map(|n| Phase::ALL[n]) {
        dial.leave(phase, at(21));
    }
    assert_eq!(dial.phase(), None);
}

#[test]
fn the_innermost_failure_is_the_one_told() {
    let now = clock::now();
    let dial = Dial::new(now);
    dial.enter(Phase::Connect, now);
    dial.enter(Phase::Dns, now);
    dial.fail(Phase::Dns, now);
    dial.fail(Phase::Connect, now);
    assert_eq!(dial.phase(), Some(Phase::Dns));
    dial.enter(Phase::Tls, now);
    dial.leave(Phase::Tls, now);
    assert_eq!(dial.phase(), None, "it went on");
}

#[test]
fn a_scope_is_entered_for_each_poll_and_left_even_by_a_panic() {
    let (outer, inner) = (Dial::new(clock::now()), Dial::new(clock::now()));
    let nested = async {
        assert!(same(&outer));
        inner
            .scope(async {
                assert!(same(&inner));
                tokio::task::yield_now().await;
                assert!(same(&inner));
            })
            .await;
        assert!(same(&outer));
        panic!("told to");
    };
    let mut scoped = task::spawn(outer.scope(nested));
    assert!(scoped.poll().is_pending());
    assert!(Dial::current().is_none());
    let elsewhere = std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            let panicked = catch_unwind(AssertUnwindSafe(|| scoped.poll().is_ready())).is_err();
            panicked && Dial::current().is_none()
        });
        elsewhere.join().unwrap()
    });
    assert!(
        elsewhere,
        "it is polled by another thread, and nothing is left there"
    );
}

#[tokio::test(start_paused = true)]
async fn timings_of_a_new_connection_have_curls_names() {
    let start = clock::now();
    let dial = Dial::new(start + ms(10));
    for (phase, from, to) in [
        (Phase::Dns, 10, 15),
        (Phase::Connect, 15, 35),
        (Phase::Tls, 35, 65),
        (Phase::Handshake, 65, 70),
    ] {
        dial.enter(phase, start + ms(from));
        dial.leave(phase, start + ms(to));
    }
    let timings = Timings::new(start, start + ms(71), start + ms(100), None, Some(&dial));
    assert_eq!((timings.reused(), timings.idle()), (false, None));
    assert_eq!((timings.wait(), timings.first_byte()), (ms(71), ms(100)));
    let phases = Phase::ALL.map(|phase| timings.phase(phase).unwrap());
    assert_eq!(phases, [71, 5, 20, 30, 5].map(ms));
    assert_eq!(timings.end(), None);
    let unfinished = r#""time_total":null}"#;
    assert!(timings.to_value().to_string().ends_with(unfinished));
    let seen = timings.clone();
    timings.finish(start + ms(250));
    timings.finish(start + ms(999));
    assert_eq!(seen.end(), Some(ms(250)), "the first end counts");
    assert_eq!(
        seen.to_value().to_string(),
        r#"{"time_queue":0.01,"time_namelookup":0.015,"time_connect":0.035,"time_appconnect":0.065,"time_pretransfer":0.071,"time_starttransfer":0.1,"time_total":0.25}"#
    );
}

#[tokio::test(start_paused = true)]
async fn timings_of_a_reused_connection_are_its_wait() {
    let start = clock::now();
    let timings = Timings::new(start, start + ms(3), start + ms(9), Some(ms(400)), None);
    assert_eq!((timings.reused(), timings.idle()), (true, Some(ms(400))));
    let made = [
        timings.dns(),
        timings.connect(),
        timings.tls(),
        timings.handshake(),
    ];
    assert_eq!(made, [None; 4]);
    assert_eq!(
        timings.to_value().to_string(),
        r#"{"time_queue":0.003,"time_namelookup":null,"time_connect":null,"time_appconnect":null,"time_pretransfer":0.003,"time_starttransfer":0.009,"time_total":null}"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_dial_older_than_its_request_took_none_of_its_time() {
    let start = clock::now() + ms(100);
    let dial = Dial::new(start - ms(30));
    dial.enter(Phase::Connect, start - ms(30));
    dial.leave(Phase::Connect, start - ms(10));
    let timings = Timings::new(start, start, start + ms(5), None, Some(&dial));
    assert_eq!(timings.connect(), Some(ms(20)));
    let value = timings.to_value();
    let zero = Value::from(Duration::ZERO);
    assert_eq!(value.get("time_queue"), Some(&zero));
    assert_eq!(value.get("time_connect"), Some(&zero));
}

#[test]
fn they_go_where_requests_go() {
    fn sent<T: Clone + Send + Sync + 'static>() {}
    sent::<Dial>();
    sent::<Timings>();
}
