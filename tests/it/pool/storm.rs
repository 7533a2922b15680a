//! Everything at once, at random: never a connection over a cap, never a request served twice, nothing left behind.
//!
//! A failed run prints its seed; `TOWER_FLOW_SEED` repeats it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tower::Service;
use tower_flow::phases::Phase;
use tower_flow::pool::{ConnPool, ErrorKind};

use super::network::{Dial, Host, Network, Speak};
use super::{Payload, Pool, ask, fetch, get, header, ms, named, payload, post, rest, secs, tasks};

// ===== chance =====

/// A small generator of numbers (splitmix64) that tells its seed when the test fails.
pub struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    pub fn new() -> Self {
        let given = std::env::var("TOWER_FLOW_SEED").ok();
        let given = given.map(|seed| seed.parse().expect("a number"));
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        Self { seed, state: seed }
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with TOWER_FLOW_SEED={}", self.seed);
        }
    }
}

// ===== weather =====

#[derive(Debug, Clone, Copy)]
enum Op {
    Ask,
    Cancel,
    /// The server cuts a connection.
    Close,
    Goaway,
    /// A GOAWAY that leaves the newest streams unserved.
    Cutoff,
    /// Another limit of streams, live.
    Settings,
    /// Dials fail, hang, take their time, or work.
    Dial,
    /// The host speaks another protocol from the next connection on, or none.
    Speak,
    CloseIdle,
    Refresh,
    Warm,
    Release,
    Wait,
}

struct Weather {
    ops: usize,
    /// How often each comes, relative to the others.
    mix: Vec<(usize, Op)>,
    hosts: usize,
    total: usize,
    per_host: usize,
    allowance: usize,
    /// Time passes by itself; otherwise nothing waits longer than it must.
    paused: bool,
}

const CALM: &[(usize, Op)] = &[(40, Op::Ask), (5, Op::Release), (5, Op::Wait)];

impl Weather {
    fn of(ops: usize, more: &[(usize, Op)]) -> Self {
        Self {
            ops,
            mix: [CALM, more].concat(),
            hosts: 8,
            total: 16,
            per_host: 4,
            allowance: 0,
            paused: true,
        }
    }

    fn next(&self, dice: &mut Dice) -> Op {
        let all: usize = self.mix.iter().map(|(weight, _)| weight).sum();
        let mut at = dice.roll(all);
        for (weight, op) in &self.mix {
            if at < *weight {
                return *op;
            }
            at -= weight;
        }
        unreachable!("the weights sum up")
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Served,
    Dropped,
    Cut,
    Failed(&'static str),
}

fn failed(kind: ErrorKind) -> End {
    End::Failed(match kind {
        ErrorKind::Overloaded => "overloaded",
        ErrorKind::AcquireTimeout => "acquire timeout",
        ErrorKind::Connect => "connect",
        ErrorKind::ConnectTimeout => "connect timeout",
        ErrorKind::BackingOff => "backing off",
        ErrorKind::Send { sent: true } => "sent",
        ErrorKind::Send { sent: false } => "unsent",
        kind => panic!("{kind:?} in a storm"),
    })
}

/// How the caller treats its answer.
#[derive(Debug, Clone, Copy)]
enum Reads {
    All,
    Nothing,
    OneFrame,
    Later,
}

async fn flight(pool: Pool, req: http::Request<Payload>, id: usize, reads: Reads) -> End {
    let mut pool = pool;
    let asked = pool.call(req);
    drop(pool);
    let mut response = match asked.await {
        Ok(response) => response,
        Err(error) => return failed(error.kind()),
    };
    assert_eq!(
        header(&response, "x-id"),
        id.to_string(),
        "the answer of another"
    );
    match reads {
        Reads::All => {}
        Reads::Nothing => return End::Dropped,
        Reads::OneFrame => {
            let _ = response.body_mut().frame().await;
            return End::Dropped;
        }
        Reads::Later => tokio::time::sleep(ms(id as u64 % 20)).await,
    }
    match response.into_body().collect().await {
        Ok(_) => End::Served,
        Err(_) => End::Cut,
    }
}

/// What the counters may never show.
fn check(net: &Network, hosts: &[Host], weather: &Weather, op: impl Debug) {
    assert!(
        net.open.peak() <= weather.total,
        "{} open after {op:?}",
        net.open.peak()
    );
    for host in hosts {
        let most = weather.per_host + weather.allowance;
        assert!(
            host.open.peak() <= most,
            "{} open to one host after {op:?}",
            host.open.peak()
        );
        assert!(
            host.dialling.peak() <= 3,
            "{} dials at once after {op:?}",
            host.dialling.peak()
        );
    }
}

async fn storm(weather: Weather) {
    let mut dice = Dice::new();
    let net = Network::new();
    let hosts: Vec<_> = (0..weather.hosts)
        .map(|n| net.host(&format!("h{n}.test")))
        .collect();
    for (n, host) in hosts.iter().enumerate() {
        if n % 2 == 1 {
            host.http2(3);
        }
    }
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(weather.total)
        .max_connections_per_host(weather.per_host)
        .draining_allowance(weather.allowance)
        .max_connecting_per_host(3)
        .max_idle(weather.total / 2)
        .max_idle_per_host(3)
        .max_requests_per_connection(50)
        .max_pending_per_host(40)
        .idle_timeout(ms(300))
        .max_lifetime(secs(2), 0.5)
        .connect_timeout(ms(100))
        .acquire_timeout(ms(500))
        .backoff(ms(5), ms(50))
        .build();
    let mut flights: Vec<(usize, JoinHandle<End>)> = Vec::new();
    let mut ends: BTreeMap<End, usize> = BTreeMap::new();
    let mut served = Vec::new();
    for id in 0..weather.ops {
        let host = dice.pick(&hosts);
        let op = weather.next(&mut dice);
        match op {
            Op::Ask => {
                let path = match dice.roll(20) {
                    0..8 => "/".to_owned(),
                    8..12 => format!("/sleep/{}", dice.roll(40)),
                    12..16 => format!("/bytes/{}", dice.roll(100) * dice.roll(1_000)),
                    16 => "/close".to_owned(),
                    17 => "/hold".to_owned(),
                    18 => format!("/head/{}", dice.roll(2) * 30_000),
                    _ => "/echo".to_owned(),
                };
                let req = if path == "/echo" {
                    post(id, host.uri(&path), payload(vec![b'y'; dice.roll(50_000)]))
                } else {
                    named(id, host.uri(&path))
                };
                let reads = match dice.roll(10) {
                    0 => Reads::Nothing,
                    1 => Reads::OneFrame,
                    2 => Reads::Later,
                    _ => Reads::All,
                };
                flights.push((id, tokio::spawn(flight(pool.clone(), req, id, reads))));
            }
            Op::Cancel if !flights.is_empty() => {
                let (_, flight) = flights.swap_remove(dice.roll(flights.len()));
                flight.abort();
            }
            Op::Close | Op::Goaway | Op::Cutoff | Op::Settings => {
                let conns = host.conns();
                if !conns.is_empty() {
                    let conn = dice.pick(&conns);
                    match op {
                        Op::Close => conn.close(),
                        Op::Goaway => conn.goaway(),
                        Op::Cutoff => conn.goaway_after(1 + 2 * dice.roll(20) as u32),
                        _ => conn.settings(dice.roll(5) as u32),
                    }
                }
            }
            Op::Dial => {
                let dial = match dice.roll(10) {
                    0 => Dial::Refuses,
                    1 => Dial::Fails(ms(20)),
                    2 => Dial::Hangs(Phase::Connect),
                    3 => Dial::Takes(ms(30)),
                    4 => Dial::PanicsInPoll,
                    _ => Dial::Connects,
                };
                host.dial(dial);
            }
            Op::Speak => {
                let speak = match dice.roll(10) {
                    0 => Speak::garbage(),
                    1 => Speak::silent(),
                    2 => Speak::closes_at_once(),
                    3 => Speak::closes_at_first_byte(),
                    4 => Speak::preface_cut_off(),
                    5 => Speak::stray(),
                    6 | 7 => Speak::Http1,
                    _ => Speak::Http2,
                };
                let alpn = dice.percent(20).then(|| dice.percent(50));
                host.speaks(speak).set(|setup| setup.alpn_h2 = alpn);
            }
            Op::CloseIdle => drop(pool.close_idle()),
            Op::Refresh => drop(pool.refresh(&host.uri("/"))),
            Op::Warm => {
                let (pool, uri, n) = (pool.clone(), host.uri("/"), dice.roll(6));
                let warm = tokio::spawn(async move {
                    let _ = pool.warm(&uri, n).await;
                });
                if dice.percent(50) {
                    warm.abort();
                }
            }
            Op::Release => drop(host.release()),
            Op::Wait if weather.paused => {
                tokio::time::sleep(ms(dice.roll(30) as u64)).await;
            }
            Op::Cancel | Op::Wait => {}
        }
        for _ in 0..dice.roll(3) {
            tokio::task::yield_now().await;
        }
        check(&net, &hosts, &weather, op);
        // As many as a program of that size has under way.
        while flights.len() > 150 {
            let at = dice.roll(flights.len());
            let (id, flight) = flights.swap_remove(at);
            let end = ended(flight, &hosts).await;
            *ends.entry(end).or_default() += 1;
            served.extend((end == End::Served).then_some(id));
        }
    }
    // The sky clears: all that is under way ends, and every host serves again.
    for (n, host) in hosts.iter().enumerate() {
        host.dial(Dial::Connects).set(|setup| setup.alpn_h2 = None);
        host.speaks(if n % 2 == 1 {
            Speak::Http2
        } else {
            Speak::Http1
        });
    }
    for (id, flight) in flights {
        let end = ended(flight, &hosts).await;
        *ends.entry(end).or_default() += 1;
        served.extend((end == End::Served).then_some(id));
    }
    tokio::time::sleep(ms(100)).await;
    // Connections that cannot serve may still be there: silent ones, those whose limit is no stream at all.
    for host in &hosts {
        pool.refresh(&host.uri("/"));
    }
    pool.close_idle();
    tokio::time::sleep(ms(200)).await;
    for host in &hosts {
        let answer = tokio::time::timeout(secs(10), fetch(&pool, get(host.uri("/")))).await;
        assert_eq!(
            answer.expect("served in time").1,
            "hello",
            "{:?}",
            pool.stats()
        );
    }
    tokio::time::sleep(ms(20)).await;
    check(&net, &hosts, &weather, "the end");
    let stats = pool.stats();
    assert_eq!(
        (stats.waiting, stats.dialling, stats.active, stats.streams),
        (0, 0, 0, 0),
        "{stats:?}"
    );
    assert_eq!(stats.open as usize, net.open.now(), "{stats:?}");
    assert!(stats.peak_open as usize <= weather.total);
    assert_eq!(net.seen_twice(), [""; 0], "no request is served twice");
    for id in &served {
        assert_eq!(net.seen(&id.to_string()), 1);
    }
    assert!(served.len() > weather.ops / 20, "{ends:?}");
    drop(pool);
    for _ in 0..1_000 {
        if net.open.now() + tasks() == 0 {
            break;
        }
        tokio::time::sleep(ms(1)).await;
    }
    assert_eq!(
        (net.open.now(), net.alive.now(), net.served.now(), tasks()),
        (0, 0, 0, 0)
    );
}

/// Waits for the end of a request. Held ones are let go from time to time.
async fn ended(mut flight: JoinHandle<End>, hosts: &[Host]) -> End {
    let mut hung = secs(0);
    loop {
        match tokio::time::timeout(ms(50), &mut flight).await {
            Ok(end) => return end.unwrap(),
            Err(_) => hung += ms(50),
        }
        for host in hosts {
            while host.release().is_some() {}
            // An answer that stays away is the server's fault; what the pool must bound are dials and waits.
            if hung > secs(5) {
                host.conns().iter().for_each(|conn| conn.close());
            }
        }
        assert!(hung < secs(60), "a request hangs");
    }
}

// ===== storms =====

// A hundred thousand operations in total, in five kinds of weather.

#[tokio::test(start_paused = true)]
async fn a_storm_of_cancels_keeps_every_cap() {
    storm(Weather::of(
        20_000,
        &[(30, Op::Cancel), (3, Op::Settings), (2, Op::CloseIdle)],
    ))
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_closes_keeps_every_cap() {
    storm(Weather::of(
        20_000,
        &[(20, Op::Close), (5, Op::Cancel), (3, Op::Refresh)],
    ))
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_goaways_keeps_every_cap() {
    for allowance in [0, 2] {
        let mut weather = Weather::of(
            10_000,
            &[
                (15, Op::Goaway),
                (10, Op::Cutoff),
                (5, Op::Settings),
                (5, Op::Cancel),
            ],
        );
        weather.allowance = allowance;
        storm(weather).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_failing_and_hanging_dials_keeps_every_cap() {
    storm(Weather::of(
        20_000,
        &[
            (20, Op::Dial),
            (10, Op::Close),
            (5, Op::Cancel),
            (3, Op::Warm),
        ],
    ))
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_everything_keeps_every_cap() {
    let everything = [
        (8, Op::Cancel),
        (4, Op::Close),
        (3, Op::Goaway),
        (2, Op::Cutoff),
        (3, Op::Settings),
        (4, Op::Dial),
        (4, Op::Speak),
        (1, Op::CloseIdle),
        (2, Op::Refresh),
        (2, Op::Warm),
        (10, Op::Wait),
    ];
    let mut weather = Weather::of(20_000, &everything);
    weather.hosts = 20;
    weather.allowance = 1;
    storm(weather).await;
}

/// Four threads: what the clock of one cannot bring about.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_many_threads_keeps_every_cap() {
    let mut weather = Weather::of(
        10_000,
        &[
            (10, Op::Cancel),
            (5, Op::Close),
            (5, Op::Goaway),
            (1, Op::CloseIdle),
            (1, Op::Refresh),
        ],
    );
    weather.paused = false;
    storm(weather).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_first_requests_half_of_them_cancelled_keep_every_cap() {
    let mut dice = Dice::new();
    for round in 0..10 {
        let net = Network::new();
        let hosts: Vec<_> = (0..4).map(|n| net.host(&format!("h{n}.test"))).collect();
        for host in &hosts {
            if dice.percent(50) {
                host.http2(1 + dice.roll(100) as u32);
            }
            host.dial(Dial::Takes(Duration::from_micros(dice.roll(5_000) as u64)));
        }
        let pool: Pool = ConnPool::builder(net.connector())
            .max_connections(32)
            .max_connections_per_host(16)
            .max_connecting_per_host(3)
            .build();
        // Each reads its own answer: an unread one keeps its stream.
        let mut flights: Vec<_> = (0..1_000)
            .map(|id| {
                let req = named(id, dice.pick(&hosts).uri("/sleep/3"));
                tokio::spawn(flight(pool.clone(), req, id, Reads::All))
            })
            .collect();
        for _ in 0..500 {
            flights.swap_remove(dice.roll(flights.len())).abort();
            if dice.percent(2) {
                tokio::time::sleep(ms(dice.roll(5) as u64)).await;
            }
        }
        for flight in flights {
            assert_eq!(flight.await.unwrap(), End::Served, "round {round}");
        }
        rest().await;
        assert!(net.open.peak() <= 32, "round {round}: {}", net.open.peak());
        for host in &hosts {
            assert!(host.open.peak() <= 16 && host.dialling.peak() <= 3);
        }
        assert_eq!(net.seen_twice(), [""; 0]);
        drop(pool);
        rest().await;
        assert_eq!((net.open.now(), net.served.now(), tasks()), (0, 0, 0));
    }
}

// ===== a thousand pools =====

/// A pool with connections in every state is made and dropped.
async fn made_and_dropped(net: &Network, hosts: &[Host; 4]) {
    let [h1, h2, hangs, refuses] = hosts;
    let pool: Pool = ConnPool::builder(net.connector())
        .max_connections(6)
        .max_connections_per_host(2)
        .max_lifetime(secs(600), 0.1)
        .build();
    // Idle, leased, streaming, dialling, refused, waiting.
    fetch(&pool, get(h1.uri("/"))).await;
    let mut asked = Vec::new();
    asked.extend((0..3).map(|_| ask(&pool, get(h1.uri("/hold")))));
    asked.extend((0..3).map(|_| ask(&pool, get(h2.uri("/hold")))));
    asked.extend((0..3).map(|_| ask(&pool, get(hangs.uri("/")))));
    asked.extend((0..3).map(|_| ask(&pool, get(refuses.uri("/")))));
    let response = ask(&pool, get(h2.uri("/stream"))).response().await;
    let warm = tokio::spawn({
        let (pool, uri) = (pool.clone(), hangs.uri("/"));
        async move { drop(pool.warm(&uri, 2).await) }
    });
    rest().await;
    warm.abort();
    asked.into_iter().for_each(super::Asked::cancel);
    drop((pool, response));
    rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_pools_leave_no_task_no_socket_and_no_byte() {
    let mut before = 0;
    for n in 0..1_100 {
        let net = Network::new();
        let hosts = ["a.test", "b.test", "c.test", "d.test"].map(|name| net.host(name));
        hosts[1].http2(100);
        hosts[2].dial(Dial::Hangs(Phase::Tls));
        hosts[3].dial(Dial::Refuses);
        made_and_dropped(&net, &hosts).await;
        assert_eq!(
            (net.open.now(), net.served.now(), tasks()),
            (0, 0, 0),
            "after {n}"
        );
        drop((net, hosts));
        if n == 100 {
            // The runtime's own tables have their size by now.
            before = crate::support::bytes();
        }
    }
    let left = crate::support::bytes() - before;
    assert!(left < 1_000, "{left} bytes are left of a thousand pools");
}
