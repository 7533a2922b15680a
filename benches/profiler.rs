//! What the sampling profiler costs while it runs, and what a tag costs, with it and without.
//!
//! `cargo bench --features full --bench profiler`
//!
//! The same work is done without a profiler, at 99 Hz and at 999 Hz, in turn; its CPU time is that of the thread that does
//! it, and the profiler's own thread is told apart. What it takes to start and to stop is shown beside it, since it is paid once.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the profiler needs Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use rustix::time::{ClockId, clock_gettime};
    use tower_flow::profile::{Profiler, Tag};

    /// Polls of a round. Of 10 µs or so each, as those of a service that answers from memory: 60 ms in all.
    const POLLS: u64 = 6_000;
    const RATES: [u32; 3] = [0, 99, 999];
    const TAGS: u32 = 5_000_000;

    pub fn main() {
        let rounds = std::env::var("TOWER_FLOW_ROUNDS")
            .map_or(100, |rounds| rounds.parse().expect("a number of rounds"));
        if let Err(error) = Profiler::start(99).map(Profiler::stop) {
            return println!("{error}");
        }
        tags();
        load(rounds);
    }

    fn tags() {
        let tag = Tag::new("bench", "tag");
        let nanos = |work: &dyn Fn()| {
            let took = (0..9).map(|_| {
                let start = Instant::now();
                (0..TAGS).for_each(|_| work());
                start.elapsed().as_secs_f64() * 1e9 / f64::from(TAGS)
            });
            took.fold(f64::INFINITY, f64::min)
        };
        let within: &dyn Fn() = &|| tag.within(|| _ = black_box(1));
        let clock: &dyn Fn() = &|| {
            _ = black_box((tower_flow::clock::now(), tower_flow::clock::now()));
        };
        let off = nanos(within);
        let profiler = Profiler::start(99).expect("it started before");
        let on = nanos(within);
        drop(profiler);
        println!("tag, no profiler:     {off:>5.1} ns");
        println!(
            "tag, profiler:        {on:>5.1} ns, of which two readings of the clock {:.1} ns",
            nanos(clock)
        );
    }

    fn load(rounds: usize) {
        let mut cpu = [(); 3].map(|()| Vec::new());
        let (mut starts, mut stops, mut costs) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..rounds {
            // Each comes after each of the others equally often.
            for place in 0..RATES.len() {
                let which = match turn % 2 {
                    0 => (turn / 2 + place) % RATES.len(),
                    _ => (turn / 2 + RATES.len() - place) % RATES.len(),
                };
                let (hz, cpu) = (RATES[which], &mut cpu[which]);
                let start = Instant::now();
                let profiler = (hz > 0).then(|| Profiler::start(hz).expect("it started before"));
                if hz > 0 {
                    starts.push(start.elapsed());
                }
                // After one that is not counted: what went before it, idle or busy, is not the same for all.
                round();
                cpu.push(round().as_secs_f64());
                let Some(profiler) = profiler else { continue };
                let stop = Instant::now();
                let profile = profiler.stop().expect("it does not panic");
                stops.push(stop.elapsed());
                let counts = profile.counts();
                assert!(counts.tagged > 0, "{counts:?}");
                costs.push((hz, counts.cost.as_secs_f64() / counts.cpu.as_secs_f64()));
                black_box(profile);
            }
        }
        let [off, slow, fast] = cpu;
        // Neighbours in time are compared: what else the machine does changes more slowly than that.
        let more = |with: &[f64]| {
            let ratios = with.iter().zip(&off).map(|(with, off)| with / off);
            100.0 * (median(ratios.collect()) - 1.0)
        };
        println!(
            "one worker, {:.0} ms of CPU time a round, {rounds} rounds",
            1e3 * median(off.clone())
        );
        println!("more CPU time at  99: {:>5.2} %", more(&slow));
        println!("more CPU time at 999: {:>5.2} %", more(&fast));
        for hz in [99, 999] {
            let costs = costs.iter().filter(|(of, _)| *of == hz);
            let cost = 100.0 * median(costs.map(|(_, cost)| *cost).collect());
            println!("the profiler's own thread at {hz:>3}: {cost:.2} % of the CPU time");
        }
        println!(
            "to start: {:?}, to stop and find names: {:?}",
            middle(starts),
            middle(stops)
        );
    }

    /// The CPU time of the worker for a fixed amount of work; the profiler's own thread is told apart.
    fn round() -> Duration {
        let routes = [0, 1].map(|route| Tag::new("bench", &route.to_string()));
        let before = cpu_time();
        for poll in 0..POLLS {
            routes[poll as usize % 2].within(|| black_box(burn(10_000)));
        }
        cpu_time() - before
    }

    #[inline(never)]
    fn burn(n: u64) -> u64 {
        (0..n).fold(1, |x, i| black_box(x ^ (x << 13) ^ i))
    }

    fn cpu_time() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn median(mut numbers: Vec<f64>) -> f64 {
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    }

    fn middle(mut times: Vec<Duration>) -> Duration {
        times.sort();
        times[times.len() / 2]
    }
}
