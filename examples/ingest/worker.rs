//! What processes items: so many workers, each with one item at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tower_flow::BoxError;

use crate::options::Serve;
use crate::store::{Delivery, Store};

/// How long a worker waits before it tries again what did not work.
const PAUSE: Duration = Duration::from_millis(500);

/// How many items a worker processes before it lets others run, if none of them takes any time.
const TURN: usize = 4096;

/// The workers. They end when the store has nothing more for them.
#[derive(Debug)]
pub(crate) struct Workers(JoinSet<()>);

/// What it is to process an item: to take some time, and to leave a line.
#[derive(Debug)]
struct Work {
    time: Duration,
    output: Option<File>,
}

// ===== impl Workers =====

impl Workers {
    pub(crate) fn start(store: &Store, options: &Serve) -> Result<Self, BoxError> {
        let output = options.output.as_deref().map(open).transpose()?;
        let time = options.work_time;
        let work = Arc::new(Work { time, output });
        let mut workers = JoinSet::new();
        for _ in 0..options.workers {
            workers.spawn(run(store.clone(), work.clone()));
        }
        Ok(Self(workers))
    }

    /// Ends when all have; fails if one did so by a panic.
    pub(crate) async fn finish(mut self) -> Result<(), BoxError> {
        while let Some(ended) = self.0.join_next().await {
            ended?;
        }
        Ok(())
    }
}

async fn run(store: Store, work: Arc<Work>) {
    let mut since = 0;
    while let Some(delivery) = store.next().await {
        tokio::select! {
            biased;
            () = work.finish(&delivery) => {}
            never = store.hold(&delivery) => match never {},
        }
        store.done(delivery).await;
        // A worker that always finds something would keep its thread. Tokio's own budget is so small that streams, of which
        // there are more than workers, would get more of the processors.
        since += 1;
        if since == TURN {
            since = 0;
            tokio::task::yield_now().await;
        }
    }
}

// ===== impl Work =====

impl Work {
    /// Processes it until that works.
    async fn finish(&self, item: &Delivery) {
        while let Err(error) = self.process(item).await {
            eprintln!("cannot process {:?}, trying again: {error}", item.id);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn process(&self, item: &Delivery) -> io::Result<()> {
        if !self.time.is_zero() {
            tokio::time::sleep(self.time).await;
        }
        match &self.output {
            // One write, so that the lines of several processes do not mix.
            Some(file) => (&mut &*file).write_all(format!("{}\n", item.id).as_bytes()),
            None => Ok(()),
        }
    }
}

fn open(path: &Path) -> Result<File, BoxError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| format!("cannot open the output {}: {error}", path.display()).into())
}
