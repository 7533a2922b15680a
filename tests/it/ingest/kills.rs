//! `kill -9` at any moment: what was acknowledged is processed, and what is processed twice is what the rule says.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::server::Server;
use super::*;

const WORKERS: usize = 3;

/// Moments nobody has chosen. `TOWER_FLOW_SEED` chooses them again.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("TOWER_FLOW_SEED").map(|seed| seed.parse().unwrap());
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = seed.unwrap_or(now);
        eprintln!("TOWER_FLOW_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    async fn a_moment(&mut self) {
        tokio::time::sleep(Duration::from_millis(20 + self.below(200))).await;
    }
}

/// Sends items until nobody answers any more. What was not answered it sends again, with the same ids.
struct Feeder {
    name: &'static str,
    next: usize,
    open: Vec<String>,
    acknowledged: BTreeSet<String>,
}

impl Feeder {
    fn new(name: &'static str) -> Self {
        let (open, acknowledged) = (Vec::new(), BTreeSet::new());
        Self {
            name,
            next: 0,
            open,
            acknowledged,
        }
    }

    /// Until somebody is killed.
    async fn feed(mut self, client: Client) -> Self {
        loop {
            while self.open.len() < 20 {
                self.open.push(format!("{} {}", self.name, self.next));
                self.next += 1;
            }
            // No more than the workers can do, so that the end is soon.
            tokio::time::sleep(Duration::from_millis(40)).await;
            if let Err(status) = self.once(&client).await {
                // Of a server that lives, and tells that it cannot: NATS is away.
                let lives = status.metadata().contains_key("ingest-accepted");
                if !lives {
                    return self;
                }
            }
        }
    }

    /// All that is open: one by itself and the rest as a stream.
    async fn once(&mut self, client: &Client) -> Result<(), Status> {
        let Some(first) = self.open.first().cloned() else {
            return Ok(());
        };
        match send(client, &first).await {
            Ok(_) => self.acknowledge(1),
            // It has no count; that of the stream tells whether anybody is there.
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => return Err(status),
        }
        match send_all(client, &self.open).await {
            Ok(answer) => {
                assert_eq!(answer.accepted as usize, self.open.len());
                self.acknowledge(self.open.len());
                Ok(())
            }
            Err(status) => {
                if status.metadata().contains_key("ingest-accepted") {
                    self.acknowledge(accepted(&status));
                }
                Err(status)
            }
        }
    }

    fn acknowledge(&mut self, count: usize) {
        self.acknowledged.extend(self.open.drain(..count));
    }
}

/// Waits until all that was acknowledged is processed; how many were processed more than once.
fn settle(output: &Path, feeders: &[&Feeder]) -> usize {
    let wanted = || feeders.iter().flat_map(|feeder| &feeder.acknowledged);
    assert!(wanted().count() > 40, "something was acknowledged");
    until("all that was acknowledged is processed", || {
        let processed = processed(output);
        wanted().all(|id| processed.contains_key(id))
    });
    let processed = processed(output);
    let twice: Vec<_> = processed.iter().filter(|(_, count)| **count > 1).collect();
    eprintln!("{} acknowledged, twice: {twice:?}", wanted().count());
    twice.iter().map(|(_, count)| **count - 1).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_file_nothing_acknowledged_is_lost() {
    let (mut dice, dir) = (Dice::new(), scratch());
    let (wal, output) = (dir.join("wal"), dir.join("output"));
    // Short, so that it is written anew now and then.
    let flags = [
        "--wal",
        text(&wal),
        "--wal-max",
        "20000",
        "--output",
        text(&output),
    ];
    let flags = [&flags[..], &["--workers", "3", "--work-time", "1ms"]].concat();
    let (mut one, mut other) = (Feeder::new("one"), Feeder::new("other"));
    const KILLS: usize = 6;
    for _ in 0..KILLS {
        let ingest = Ingest::start(&flags);
        let client = ingest.client().await;
        let feeding = [
            tokio::spawn(one.feed(client.clone())),
            tokio::spawn(other.feed(client)),
        ];
        dice.a_moment().await;
        ingest.program.kill();
        let [first, second] = feeding;
        (one, other) = (first.await.unwrap(), second.await.unwrap());
    }
    let ingest = Ingest::start(&flags);
    let client = ingest.client().await;
    one.once(&client).await.unwrap();
    other.once(&client).await.unwrap();
    let twice = settle(&output, &[&one, &other]);
    assert!(
        twice <= KILLS * WORKERS,
        "one for each worker that was killed"
    );
    assert_eq!(ingest.end(), 0);
}

fn flags<'a>(url: &'a str, output: &'a str) -> Vec<&'a str> {
    let flags = ["--store", url, "--output", output, "--ack-wait", "1s"];
    [&flags[..], &["--workers", "3", "--work-time", "1ms"]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_on_a_stream_one_is_killed_and_nothing_is_lost() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (mut dice, output, url) = (Dice::new(), scratch().join("output"), server.url());
    let flags = flags(&url, text(&output));
    let stays = Ingest::start(&flags);
    let calm = tokio::spawn(Feeder::new("calm").feed(stays.client().await));
    let mut feeder = Feeder::new("killed");
    const KILLS: usize = 4;
    for _ in 0..KILLS {
        let ingest = Ingest::start(&flags);
        let feeding = tokio::spawn(feeder.feed(ingest.client().await));
        dice.a_moment().await;
        ingest.program.kill();
        feeder = feeding.await.unwrap();
    }
    let client = stays.client().await;
    feeder.once(&client).await.unwrap();
    // SIGTERM while it is fed: its feeder is told.
    let heir = Ingest::start(&flags);
    assert_eq!(stays.end(), 0);
    let mut calm = calm.await.unwrap();
    calm.once(&heir.client().await).await.unwrap();
    let twice = settle(&output, &[&feeder, &calm]);
    assert!(
        twice <= KILLS * WORKERS,
        "one for each worker that was killed"
    );
    assert_eq!(heir.end(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_server_is_killed_and_nothing_is_lost() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    let (mut dice, output, url) = (Dice::new(), scratch().join("output"), server.url());
    let flags = flags(&url, text(&output));
    let (first, second) = (Ingest::start(&flags), Ingest::start(&flags));
    let one = tokio::spawn(Feeder::new("one").feed(first.client().await));
    let other = tokio::spawn(Feeder::new("other").feed(second.client().await));
    const KILLS: usize = 3;
    for _ in 0..KILLS {
        dice.a_moment().await;
        server.kill();
        dice.a_moment().await;
        server.up();
        // Until it is heard of again.
        let client = first.client().await;
        let late = Instant::now() + PATIENCE;
        while let Err(status) = send(&client, "").await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(Instant::now() < late, "{status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    dice.a_moment().await;
    let heir = Ingest::start(&flags);
    assert_eq!((first.end(), second.end()), (0, 0));
    let (mut one, mut other) = (one.await.unwrap(), other.await.unwrap());
    let client = heir.client().await;
    one.once(&client).await.unwrap();
    other.once(&client).await.unwrap();
    settle(&output, &[&one, &other]);
    // What the server has forgotten by each kill, once more at most. Those without an id were sent by nobody in particular.
    let mut counts = processed(&output).into_iter();
    assert!(counts.all(|(id, count)| id.is_empty() || count <= 1 + KILLS));
    assert_eq!(heir.end(), 0);
}
