//! What listeners cost: the server's thread, with so many of them in other threads.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::busy::Busy;
use crate::support::{bounded, cpu, median, rounds, yes};

/// How long each round is.
const ROUND: Duration = Duration::from_secs(4);

pub fn print() {
    let busy = Arc::new(Busy::new(200));
    let (addr, spent) = server(&busy);
    let traffic = Arc::new(AtomicBool::new(true));
    let caller = {
        let (busy, traffic) = (busy.clone(), traffic.clone());
        // Every row of every table changes with every update.
        std::thread::spawn(move || {
            while traffic.load(Relaxed) {
                busy.call_all();
                std::thread::sleep(Duration::from_millis(200));
            }
        })
    };
    let counts = [0u64, 1, 100];
    let mut shares: [Vec<f64>; 3] = Default::default();
    let sizes = Arc::new((AtomicUsize::new(0), AtomicU64::new(0)));
    for _ in 0..(rounds() / 12).max(2) {
        for (count, shares) in counts.iter().zip(&mut shares) {
            let ended = Arc::new(AtomicBool::new(false));
            let threads: Vec<_> = (0..*count)
                .map(|_| {
                    let (ended, sizes) = (ended.clone(), sizes.clone());
                    std::thread::spawn(move || listen(addr, &ended, &sizes))
                })
                .collect();
            std::thread::sleep(Duration::from_secs(2));
            let (start, before) = (Instant::now(), spent.load(Relaxed));
            let heard = sizes.1.load(Relaxed);
            std::thread::sleep(ROUND);
            let used = spent.load(Relaxed) - before;
            let heard = sizes.1.load(Relaxed) - heard;
            assert!(
                heard >= 3 * count,
                "all are told: {heard} updates for {count}"
            );
            shares.push(used as f64 / start.elapsed().as_nanos() as f64 * 100.0);
            ended.store(true, Relaxed);
            threads
                .into_iter()
                .for_each(|thread| thread.join().expect("it ends"));
        }
    }
    traffic.store(false, Relaxed);
    caller.join().expect("it ends");
    let [none, one, many] = shares.map(median);
    println!("### 200 routes and 50 hosts, all in use, an update a second\n");
    println!("| clients | server's thread, % of a core, median | reached |\n|---|---:|---|");
    println!("| 0 | {none:.2} | |\n| 1 | {one:.2} | |");
    println!("| 100 | {many:.2} | 2 %: {} |", yes(many <= 2.0));
    let largest = sizes.0.load(Relaxed);
    println!(
        "\nThe largest update: {largest} bytes (20 KB: {}).",
        yes(largest <= 20_000)
    );
    bounded("100 clients, % of a core", many, 2.0);
    assert!(largest <= 20_000, "an update of {largest} bytes");
}

/// The endpoint on a thread of its own, and the nanoseconds that thread has used.
fn server(busy: &Busy) -> (SocketAddr, Arc<AtomicU64>) {
    let (spent, admin) = (Arc::new(AtomicU64::new(0)), busy.flow.admin());
    let (tell, told) = mpsc::channel();
    let used = spent.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let bound = admin.bind("127.0.0.1:0".parse().expect("an address")).await;
            let server = bound.expect("bound");
            tell.send(server.local_addr()).expect("it is waited for");
            tokio::spawn(server.run());
            loop {
                used.store(cpu().as_nanos() as u64, Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    });
    (told.recv().expect("it is bound"), spent)
}

/// Listens, and notes how large updates are.
fn listen(addr: SocketAddr, ended: &AtomicBool, sizes: &(AtomicUsize, AtomicU64)) {
    let mut stream = TcpStream::connect(addr).expect("connected");
    let asked = format!("GET /events HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    stream.write_all(asked.as_bytes()).expect("written");
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("set");
    let mut buffer = vec![0; 1 << 16];
    let mut event = Vec::new();
    while !ended.load(Relaxed) {
        let Ok(read) = stream.read(&mut buffer) else {
            continue;
        };
        assert!(read > 0, "it goes on");
        event.extend_from_slice(&buffer[..read]);
        while let Some(end) = event.windows(2).position(|two| two == b"\n\n") {
            let tick = event[..end]
                .windows(11)
                .position(|text| text == b"event: tick");
            if let Some(start) = tick {
                sizes.0.fetch_max(end + 2 - start, Relaxed);
                sizes.1.fetch_add(1, Relaxed);
            }
            event.drain(..end + 2);
        }
    }
}
