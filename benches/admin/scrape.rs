//! How long a scrape of very many series takes, and what those notice of it who record meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use tower_flow::metrics::Format;

use crate::busy::{Busy, call};
use crate::support::{bounded, cpu, median, rounds, yes};

pub fn print() {
    let busy = Arc::new(Busy::new(224));
    let text = String::from_utf8(busy.flow.encode(Format::Classic)).expect("text");
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let (mut scrapes, mut alone, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds() {
        alone.push(record(&busy, || {
            std::thread::sleep(std::time::Duration::from_millis(100))
        }));
        let took = record(&busy, || {
            for _ in 0..3 {
                let start = cpu();
                std::hint::black_box(busy.flow.encode(Format::Classic));
                scrapes.push((cpu() - start).as_secs_f64() * 1e3);
            }
        });
        beside.push(took);
    }
    let scrape = median(scrapes);
    println!(
        "### A scrape of {series} series, {:.0} KB\n",
        text.len() as f64 / 1e3
    );
    println!("| what | median | reached |\n|---|---:|---|");
    println!(
        "| a scrape, with one thread recording, ms of a core | {scrape:.1} | 50 ms: {} |",
        yes(scrape <= 50.0)
    );
    for (what, took) in [("alone", alone), ("beside scrapes", beside)] {
        let mean = median(took.iter().map(|took| took.0));
        let slow = median(took.iter().map(|took| took.1));
        println!("| a call {what}, ns | {mean:.0} | |\n| the slowest of 1,000, ns | {slow:.0} | |");
    }
    bounded("a scrape, ms", scrape, 50.0);
}

/// What a call takes, and the slowest in a thousand, while `meanwhile` runs in this thread.
fn record(busy: &Arc<Busy>, meanwhile: impl FnOnce()) -> (f64, f64) {
    let ended = Arc::new(AtomicBool::new(false));
    let recording = {
        let (busy, ended) = (busy.clone(), ended.clone());
        std::thread::spawn(move || {
            let mut service = busy.service();
            let mut took = Vec::new();
            while !ended.load(Relaxed) {
                for route in &busy.routes {
                    let route = route.clone();
                    let start = Instant::now();
                    call(&mut service, route);
                    took.push(start.elapsed().as_nanos() as f64);
                }
            }
            took.sort_by(f64::total_cmp);
            (median(took.iter().copied()), took[took.len() * 999 / 1000])
        })
    };
    meanwhile();
    ended.store(true, Relaxed);
    recording.join().expect("it ends")
}
