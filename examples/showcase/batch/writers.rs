//! Who writes when, and what came of it.

use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tower::{Service, ServiceExt as _};
use tower_flow::BoxError;

use super::backend::Rows;
use crate::arrivals::{Answers, Random};

/// When writes are made within `time`, `rate` a second, each whenever it likes: a Poisson process.
pub(super) fn plan(rate: f64, time: Duration) -> Vec<Duration> {
    let mut random = Random(23);
    let mut due = Duration::ZERO;
    let next = || {
        due += random.gap(rate);
        Some(due)
    };
    std::iter::from_fn(next)
        .take_while(|due| *due < time)
        .collect()
}

/// A write when each of `dues` is over, of its number; every writer looks for it in the row it is told.
pub(super) async fn drive<S>(
    service: S,
    dues: Vec<Duration>,
    rows: Rows,
) -> Result<Answers, BoxError>
where
    S: Service<u64, Response = u64, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + 'static,
{
    let runtime = Handle::current();
    // tokio's timers go by milliseconds, in which two writes are due; a thread can sleep for less.
    let write = move || {
        let start = Instant::now();
        let writes = dues.into_iter().zip(0..).map(|(due, write)| {
            thread::sleep((start + due).saturating_duration_since(Instant::now()));
            let (service, rows) = (service.clone(), rows.clone());
            runtime.spawn(async move {
                let row = service.oneshot(write).await.map_err(Into::into)?;
                let time = (start + due).elapsed();
                match rows.get(row) {
                    Some(found) if found == write => Ok(time),
                    found => Err(format!("{write} was told row {row}, which is {found:?}").into()),
                }
            })
        });
        (start, writes.collect())
    };
    let (start, writers) = tokio::task::spawn_blocking(write).await?;
    Answers::of(start, writers).await
}
