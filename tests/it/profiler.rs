//! The sampling profiler, on real threads of a process of its own.

use std::hint::black_box;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tower::{Layer, ServiceExt};
use tower_flow::profile::{
    Phase, Profile, ProfileHandle, ProfileLayer, Profiler, ProfilerError, Tag,
};
use tower_flow::route::Route;
use tower_flow::{BoxError, Flow};

use crate::support::{self, allocations, scratch};

/// Runs `test` in a process of its own, since there is one profiler to a process, and it sees all threads of it: this binary
/// is started again, with that one test.
fn alone(name: &str, test: impl FnOnce()) {
    const CHILD: &str = "TOWER_FLOW_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    // One after the other, so that they do not take each other's time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("profiler::{name}"), "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    print!("{said}");
    assert!(
        output.status.success(),
        "{}\n{said}\n{errors}",
        output.status
    );
    assert!(said.contains("1 passed"), "it ran: {said}");
}

/// `None` where the kernel denies it, which the test then says, or fails under `TOWER_FLOW_REQUIRE`.
fn start(hz: u32) -> Option<Profiler> {
    match Profiler::start(hz) {
        Ok(profiler) => Some(profiler),
        Err(error @ (ProfilerError::Denied { .. } | ProfilerError::Unsupported)) => {
            let required = std::env::var_os("TOWER_FLOW_REQUIRE").is_some();
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

macro_rules! burner {
    ($($name:ident)*) => {$(
        /// Does `n` times the same amount of work, itself.
        #[inline(never)]
        fn $name(n: u64) {
            let mut x = 1u64;
            let mut i = 0;
            // No call in the loop, not even in a debug build.
            while i < n * 1_000 {
                x = (x ^ (x << 13)) ^ 7;
                i += 1;
            }
            black_box(x);
        }
    )*};
}

burner!(burn_three burn_one burn_red burn_blue burn_late burn_steady);

/// Works until this thread has used as much CPU time, however long others keep it from that.
fn until(cpu: Duration, mut work: impl FnMut()) {
    let used = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let end = used() + cpu;
    while used() < end {
        work();
    }
}

/// The samples of lines that contain all of these.
fn samples(folded: &str, parts: &[&str]) -> u64 {
    let lines = folded
        .lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[test]
fn busy_functions_are_found_with_their_shares() {
    alone("busy_functions_are_found_with_their_shares", || {
        let Some(profiler) = start(999) else { return };
        let burning = std::thread::Builder::new().name("burner".into()).spawn(|| {
            until(Duration::from_millis(800), || {
                burn_three(30);
                burn_one(10);
            });
        });
        burning.unwrap().join().unwrap();
        let state = profiler.state();
        assert_eq!((state.phase, state.hz), (Phase::Sampling, 999));
        assert!(state.samples > 100 && state.threads >= 2, "{state:?}");
        let profile = profiler.stop().unwrap();
        let (counts, folded) = (profile.counts(), profile.folded());
        println!("{counts:?}");
        let all = samples(&folded, &["(no route);burner;"]);
        let (three, one) = (
            samples(&folded, &["burn_three"]),
            samples(&folded, &["burn_one"]),
        );
        // One thread that was never idle: a sample a millisecond of the time it was not waiting for a core.
        let cpu = counts.cpu.as_secs_f64() * 999.0;
        assert!(all as f64 > 0.8 * cpu, "{all} of {cpu}\n{folded}");
        assert!(
            three + one > all * 95 / 100,
            "{three} + {one} of {all}\n{folded}"
        );
        let share = share(three, three + one);
        assert!((share - 0.75).abs() < 0.06, "{share}");
        assert_eq!((counts.lost, counts.dropped, counts.torn), (0, 0, 0));
        assert_eq!(samples(&folded, &[""]), counts.samples);
    });
}

#[test]
fn routes_get_the_time_they_used_and_no_other() {
    alone("routes_get_the_time_they_used_and_no_other", || {
        let (red, blue, outer) = (
            Tag::new("t", "red"),
            Tag::new("t", "blue"),
            Tag::new("t", "outer"),
        );
        let Some(profiler) = start(999) else { return };
        let workers = [0, 1].map(|_| {
            std::thread::spawn(move || {
                until(Duration::from_millis(800), || {
                    // Two parts red, one blue, one of the route they are called from, in turns of some microseconds.
                    outer.within(|| {
                        for _ in 0..10 {
                            red.within(|| burn_red(20));
                            burn_one(10);
                            blue.within(|| burn_blue(10));
                        }
                    });
                })
            })
        });
        for worker in workers {
            worker.join().unwrap();
        }
        let profile = profiler.stop().unwrap();
        let counts = profile.counts();
        println!("{counts:?}");
        let shares: std::collections::HashMap<_, _> = profile
            .routes()
            .into_iter()
            .map(|route| (route.route.to_string(), route.share))
            .collect();
        println!("{shares:?}");
        for (route, expected) in [("red", 0.5), ("blue", 0.25), ("outer", 0.25)] {
            assert!(
                (shares[route] - expected).abs() < 0.06,
                "{route}: {shares:?}"
            );
        }
        assert!(counts.tagged * 100 > counts.samples * 95, "{counts:?}");
        // A sample that was in red's function belongs to red, each of them of which the route is known.
        let folded = profile.folded();
        for (function, route) in [
            ("burn_red", "t red;"),
            ("burn_blue", "t blue;"),
            ("burn_one", "t outer;"),
        ] {
            let (right, all) = (
                samples(&folded, &[function, route]),
                samples(&folded, &[function]),
            );
            println!("{function}: {right} of {all} in its route");
            assert!(
                right > 50 && all - right <= counts.torn,
                "{route}: {right} of {all}\n{folded}"
            );
        }
    });
}

#[test]
fn threads_that_are_born_later_are_seen_to_the_end() {
    alone("threads_that_are_born_later_are_seen_to_the_end", || {
        let tag = Tag::new("t", "late");
        let Some(profiler) = start(999) else { return };
        for _ in 0..4 {
            let late = std::thread::Builder::new().name("late-comer".into());
            let late = late
                .spawn(move || tag.within(|| until(Duration::from_millis(300), || burn_late(10))));
            late.unwrap().join().unwrap();
        }
        let profile = profiler.stop().unwrap();
        let folded = profile.folded();
        let found = samples(&folded, &["t late;late-comer;", "burn_late"]);
        let expected = profile.counts().cpu.as_secs_f64() * 999.0;
        println!("{found} samples of {expected}");
        // Each is found 50 ms after its birth at the latest.
        assert!(
            found as f64 > 0.6 * expected,
            "{found} of {expected}\n{folded}"
        );
        assert_eq!(profile.counts().threads, 4 + threads());
    });
}

#[test]
fn there_is_one_at_a_time_and_it_says_why_not() {
    alone("there_is_one_at_a_time_and_it_says_why_not", || {
        for hz in [0, 1_000, u32::MAX] {
            assert!(matches!(Profiler::start(hz), Err(ProfilerError::Rate(it)) if it == hz));
        }
        let Some(profiler) = start(99) else { return };
        assert!(Profiler::is_running());
        let error = Profiler::start(99).unwrap_err();
        assert!(matches!(error, ProfilerError::Busy) && error.to_string().contains("already runs"));
        drop(profiler);
        assert!(!Profiler::is_running());
        for _ in 0..3 {
            start(99).unwrap().stop().unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            for length in [Duration::ZERO, Duration::from_millis(60_001), Duration::MAX] {
                let refused = Profile::take(length, 99).await;
                assert!(matches!(refused, Err(ProfilerError::Length(it)) if it == length));
            }
        });
    });
}

#[test]
fn taking_one_does_not_block_and_dropping_it_stops_it() {
    alone("taking_one_does_not_block_and_dropping_it_stops_it", || {
        if start(99).is_none() {
            return;
        }
        let before = open();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut turns = 0;
            let take = Profile::take(Duration::from_millis(300), 999);
            let mut take = std::pin::pin!(take);
            let profile = loop {
                tokio::select! {
                    biased;
                    profile = &mut take => break profile.unwrap(),
                    () = tokio::task::yield_now() => {
                        burn_steady(10);
                        turns += 1;
                    }
                }
            };
            assert!(turns > 100, "{turns}");
            let lasted = profile.counts().duration.as_secs_f64();
            assert!((0.3..30.0).contains(&lasted), "{lasted}");
            assert!(samples(&profile.folded(), &["burn_steady"]) > 0);

            let mut left = Box::pin(Profile::take(Duration::from_secs(60), 99));
            assert!(futures_util::poll!(&mut left).is_pending());
            assert!(Profiler::is_running());
            let busy = Profile::take(Duration::from_secs(1), 99).await;
            assert!(matches!(busy, Err(ProfilerError::Busy)));
            drop(left);
            let end = Instant::now() + Duration::from_secs(5);
            while Profiler::is_running() {
                assert!(Instant::now() < end, "it runs on");
                tokio::task::yield_now().await;
            }
        });
        settled(before);
    });
}

/// Threads and open files of this process.
fn open() -> (u64, u64) {
    (
        threads(),
        std::fs::read_dir("/proc/self/fd").unwrap().count() as u64,
    )
}

fn threads() -> u64 {
    std::fs::read_dir("/proc/self/task").unwrap().count() as u64
}

/// Waits until as much is open as `before`: a thread that was joined may be listed for another moment.
fn settled(before: (u64, u64)) {
    let end = Instant::now() + Duration::from_secs(5);
    while open() != before {
        assert!(Instant::now() < end, "{:?} after {before:?}", open());
        std::thread::yield_now();
    }
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    match n {
        0 => {
            _ = black_box(std::backtrace::Backtrace::force_capture());
            std::panic::resume_unwind(Box::new(n))
        }
        n => black_box(deep(n - 1)) + 1,
    }
}

/// Panics as programs do, with a hook that looks the names of its backtrace up.
#[inline(never)]
fn loud() {
    panic!("told to");
}

/// At the highest rate, with panics, backtraces, and threads that come and go: for 2 s, or 60 with `TOWER_FLOW_SOAK=1`.
#[test]
fn panics_and_backtraces_meanwhile_harm_nobody() {
    alone("panics_and_backtraces_meanwhile_harm_nobody", || {
        let soak = std::env::var("TOWER_FLOW_SOAK").is_ok_and(|soak| soak == "1");
        let length = Duration::from_secs(if soak { 60 } else { 2 });
        std::panic::set_hook(Box::new(|info| {
            black_box(format!(
                "{info}\n{}",
                std::backtrace::Backtrace::force_capture()
            ));
        }));
        // What standard library and kernel keep from the first time on.
        _ = std::panic::catch_unwind(loud);
        _ = std::panic::catch_unwind(|| deep(3));
        let Some(profiler) = start(999) else { return };
        drop(profiler);
        let before = open();
        let tag = Tag::new("t", "panics");
        let (done, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let (done, rounds) = (done.clone(), rounds.clone());
                std::thread::spawn(move || {
                    while !done.load(Relaxed) {
                        let caught = std::panic::catch_unwind(|| tag.within(|| deep(20)));
                        assert!(caught.is_err());
                        rounds.fetch_add(1, Relaxed);
                        if n == 0 {
                            _ = std::thread::spawn(move || tag.within(|| deep(5))).join();
                            assert!(std::panic::catch_unwind(|| tag.within(loud)).is_err());
                        }
                    }
                })
            })
            .collect();
        let profiler = start(999).unwrap();
        let end = Instant::now() + length;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            assert!(profiler.state().elapsed <= Duration::from_secs(62));
        }
        // It has ended by itself, or is stopped.
        let profile = profiler.stop().unwrap();
        done.store(true, Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        let counts = profile.counts();
        println!("{} rounds, {counts:?}", rounds.load(Relaxed));
        assert!(
            rounds.load(Relaxed) > 100 && counts.samples > 500,
            "{counts:?}"
        );
        assert!(counts.lost * 100 <= counts.samples, "{counts:?}");
        assert!(profile.folded().contains("t panics;"));
        assert!(!profile.svg().is_empty() && !profile.pprof().is_empty());
        drop(profile);
        settled(before);
    });
}

/// A profile with a route whose name would like to be a script.
fn hostile() -> Option<Profile> {
    let tag = Tag::new("api", "/<script>alert(1)</script>;\n\"&");
    let profiler = start(999)?;
    tag.within(|| until(Duration::from_millis(300), || burn_steady(10)));
    Some(profiler.stop().unwrap())
}

#[test]
fn pprof_reads_what_is_written_for_it() {
    alone("pprof_reads_what_is_written_for_it", || {
        let Some(python) = support::python() else {
            return;
        };
        let go = PathBuf::from(python).with_file_name("go");
        if !support::found(go.to_str().unwrap()) {
            return;
        }
        let Some(profile) = hostile() else { return };
        let path = scratch("profile").join("cpu.pb");
        std::fs::write(&path, profile.pprof()).unwrap();
        let pprof = |options: &[&str]| {
            let output = Command::new(&go)
                .args(["tool", "pprof"])
                .args(options)
                .arg(&path)
                .env("PPROF_TMPDIR", path.parent().unwrap())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            said
        };
        let top = pprof(&["-top"]);
        println!("{}", top.lines().take(8).collect::<Vec<_>>().join("\n"));
        assert!(
            top.contains("Type: cpu") && top.contains("Duration: "),
            "{top}"
        );
        let first = top
            .lines()
            .find(|line| line.contains('%') && line.contains("::"))
            .unwrap();
        assert!(first.contains("burn_steady"), "{top}");
        let tags = pprof(&["-tags"]);
        for part in ["layer:", "route:", "thread:", "api", "<script>"] {
            assert!(tags.contains(part), "{part} in {tags}");
        }
        let raw = pprof(&["-raw"]);
        let count = profile.counts().samples;
        let listed: u64 = raw
            .lines()
            .skip_while(|line| *line != "Samples:")
            .take_while(|line| *line != "Locations")
            .filter_map(|line| line.trim_start().split_once(' ')?.0.parse::<u64>().ok())
            .sum();
        assert_eq!(listed, count, "{raw}");
        assert!(raw.contains("Period: 1001001"), "{raw}");
    });
}

#[test]
fn a_flame_graph_is_well_formed_and_runs_no_script_of_others() {
    alone(
        "a_flame_graph_is_well_formed_and_runs_no_script_of_others",
        || {
            let Some(python) = support::python() else {
                return;
            };
            let Some(profile) = hostile() else { return };
            let svg = profile.svg();
            assert!(svg.contains("burn_steady") && svg.contains("&lt;script&gt;"));
            let check = "import sys, xml.etree.ElementTree as tree\n\
                     root = tree.parse(sys.stdin).getroot()\n\
                     kinds = [node.tag.split('}')[1] for node in root.iter()]\n\
                     assert kinds.count('script') == 1, kinds\n\
                     titles = [node.text for node in root.iter() if node.tag.endswith('title')]\n\
                     assert any('<script>alert(1)</script>' in title for title in titles), titles\n";
            let output = support::run(Command::new(python).args(["-c", check]), svg.as_bytes());
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        },
    );
}

#[test]
fn a_kernel_that_denies_is_quoted() {
    const FILTERED: &str = "TOWER_FLOW_FILTERED";
    if std::env::var_os(FILTERED).is_some() {
        let before = open();
        let error = Profiler::start(99).unwrap_err();
        assert!(matches!(error, ProfilerError::Denied { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("perf_event_open in the container's seccomp profile"),
            "{error}"
        );
        assert!(!Profiler::is_running());
        return settled(before);
    }
    // As container runtimes do it.
    let Some(python) = support::python() else {
        return;
    };
    let mut child = Command::new(python)
        .arg(support::script("without_perf.py"))
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "profiler::a_kernel_that_denies_is_quoted",
            "--nocapture",
        ])
        .env(FILTERED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let output = child.wait_with_output().unwrap();
    std::io::stderr().write_all(&output.stderr).unwrap();
    assert!(status.success(), "{status}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn tags_allocate_for_the_first_time_only() {
    alone("tags_allocate_for_the_first_time_only", || {
        let tag = Tag::new("t", "counted");
        let before = allocations();
        tag.within(|| ());
        assert_eq!(allocations() - before, 0, "off");
        let Some(profiler) = start(99) else { return };
        tag.within(|| ());
        let before = allocations();
        for _ in 0..100_000 {
            tag.within(|| ());
        }
        assert_eq!(allocations() - before, 0, "on");
        drop(profiler);
    });
}

/// The request is its route.
#[derive(Clone)]
struct ByName;

impl Route<String> for ByName {
    fn of<'a>(&self, req: &'a String) -> Option<&'a str> {
        Some(req)
    }
}

/// Works for as much CPU time, in a poll of the layer's.
fn service(
    layer: &ProfileLayer<ByName>,
) -> impl tower::Service<String, Response = (), Error = BoxError, Future: Send> + Clone + Send + use<>
{
    layer.layer(tower::service_fn(async |name: String| {
        let time = if name == "dear" { 30 } else { 10 };
        until(Duration::from_millis(time), || burn_three(1));
        Ok::<_, BoxError>(())
    }))
}

#[test]
fn polls_of_a_layer_are_samples_of_its_routes_and_none_of_its_numbers_change() {
    alone(
        "polls_of_a_layer_are_samples_of_its_routes_and_none_of_its_numbers_change",
        || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            // One that looks at all, one at a tenth, one that is off: the profiler sees all of them.
            for every in [1, 10, 0] {
                let layer = ProfileLayer::new("shop").route_with(ByName).every(every);
                let outer = ProfileLayer::new("outer");
                let service = outer.layer(service(&layer));
                let run = || {
                    runtime.block_on(async {
                        for _ in 0..12 {
                            service.clone().oneshot("dear".to_owned()).await.unwrap();
                            service.clone().oneshot("cheap".to_owned()).await.unwrap();
                        }
                    });
                };
                // The names become routes.
                run();
                let billed = |handle: ProfileHandle| {
                    let hot = handle.hot().into_iter();
                    hot.map(|path| path.busy).sum::<Duration>()
                };
                let before = billed(outer.handle());
                let Some(profiler) = start(999) else { return };
                run();
                let folded = profiler.stop().unwrap().folded();
                let outer = billed(outer.handle()) - before;
                let of = |route| samples(&folded, &[&format!("shop {route};"), "burn_three"]);
                let (dear, cheap) = (of("dear"), of("cheap"));
                let all = samples(&folded, &["burn_three"]);
                // A layer that was off learns its routes now: one call of each is nobody's.
                let known = dear + cheap + of("other");
                assert!(known as f64 > 0.9 * all as f64, "{folded}");
                let share = share(dear, dear + cheap);
                assert!((share - 0.75).abs() < 0.08, "{share}\n{folded}");
                if every == 0 {
                    // It takes no time from the one round it either.
                    assert!(outer > Duration::from_millis(400), "{outer:?}");
                } else {
                    assert!(
                        outer < Duration::from_millis(50),
                        "{outer:?} is the inner one's"
                    );
                }
            }
        },
    );
}

#[test]
fn the_endpoint_takes_profiles() {
    alone("the_endpoint_takes_profiles", || {
        let Some(profiler) = start(99) else { return };
        drop(profiler);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let flow = Flow::new("t");
            let layer = ProfileLayer::new("shop").route_with(ByName).attach(&flow);
            let service = service(&layer);
            let working = tokio::spawn(async move {
                loop {
                    service.clone().oneshot("dear".to_owned()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let server = flow
                .admin()
                .bind("127.0.0.1:0".parse().unwrap())
                .await
                .unwrap();
            let url = format!(
                "http://{}/debug/profile?hz=499&seconds=",
                server.local_addr()
            );
            tokio::spawn(server.run());
            // Of two at the same time one has to wait until the other is done, whichever came first.
            let (taken, refused) = loop {
                let url = format!("{url}1&format=folded");
                let get = || crate::http::get(&url, "*/*");
                let (one, other) = tokio::join!(get(), get());
                match (one.status().as_u16(), other.status().as_u16()) {
                    (200, 409) => break (one, other),
                    (409, 200) => break (other, one),
                    // The machine is so busy that they came one after the other.
                    statuses => assert_eq!(statuses, (200, 200)),
                }
            };
            assert!(refused.body().ends_with(b"\n") && refused.body().len() < 200);
            let folded = String::from_utf8(taken.body().to_vec()).unwrap();
            assert!(samples(&folded, &["shop dear;"]) > 50, "{folded}");
            for (format, kind, start) in [
                ("svg", "image/svg+xml", &b"<?xml"[..]),
                ("pb", "application/octet-stream", &b""[..]),
            ] {
                let taken = crate::http::get(&format!("{url}1&format={format}"), "*/*").await;
                assert_eq!(taken.headers()["content-type"], kind);
                assert!(taken.body().starts_with(start) && taken.body().len() > 500);
            }
            working.abort();
        });
    });
}
