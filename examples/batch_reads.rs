//! Reads of rows by id become one query: `cargo run --features full --example batch_reads`
//!
//! A thousand comments are shown at once, and each asks for its author's name: a hundred rows, asked for ten times each. The
//! table is SQLite's; a database server would be a network away, for which 1 ms and a pool of four connections stand.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params_from_iter};
use tokio::{sync::Semaphore, task::JoinSet};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::{BoxError, Rejection};

static CONNECTIONS: Semaphore = Semaphore::const_new(4);
static QUERIES: AtomicU64 = AtomicU64::new(0);

/// The names of those authors that there are.
async fn select(db: &Mutex<Connection>, ids: &[u32]) -> Result<HashMap<u32, String>, BoxError> {
    let _connection = CONNECTIONS.acquire().await?;
    tokio::time::sleep(Duration::from_millis(1)).await;
    QUERIES.fetch_add(1, Relaxed);
    let marks = vec!["?"; ids.len()].join(",");
    let query = format!("SELECT id, name FROM authors WHERE id IN ({marks})");
    let db = db.lock().unwrap_or_else(PoisonError::into_inner);
    let mut query = db.prepare(&query)?;
    let rows = query.query_map(params_from_iter(ids), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Shows a thousand comments: how many queries it took, and how long.
async fn show<S>(what: &str, authors: S) -> Result<(), BoxError>
where
    S: Service<u32, Response = String, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + 'static,
{
    let (start, before, mut comments) = (Instant::now(), QUERIES.load(Relaxed), JoinSet::new());
    for comment in 0..1_000 {
        let id = comment * 7 % 100;
        let name = authors.clone().oneshot(id);
        comments.spawn(async move {
            let name = name.await.map_err(Into::into)?;
            assert_eq!(name, format!("author {id}"));
            Ok::<_, BoxError>(())
        });
    }
    let shown: Result<Vec<_>, _> = comments.join_all().await.into_iter().collect();
    let (comments, queries) = (shown?.len(), QUERIES.load(Relaxed) - before);
    let took = start.elapsed();
    println!("{what}: {comments} comments, {queries} queries, {took:.1?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let db = Connection::open_in_memory()?;
    db.execute_batch("CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")?;
    for id in 0..100 {
        db.execute("INSERT INTO authors VALUES (?1, 'author ' || ?1)", [id])?;
    }
    let db = Arc::new(Mutex::new(db));

    let table = db.clone();
    let bare = service_fn(move |id: u32| {
        let db = table.clone();
        async move {
            let name = select(&db, &[id]).await?.remove(&id);
            name.ok_or_else(|| BoxError::from("no such author"))
        }
    });
    show("bare", bare).await?;

    let layer = BatchLayer::new()
        .name("authors")
        .max_items(100)
        .dedup_by(|id: &u32| *id);
    let authors = ServiceBuilder::new()
        .layer(&layer)
        .service_fn(move |ids: Batch<u32>| {
            let db = db.clone();
            async move {
                // Rows come in no order, and not for every id.
                let keys = ids.keys(|id| *id);
                let found = select(&db, &ids.into_vec()).await?;
                Ok::<_, BoxError>(keys.answer(found))
            }
        });
    show("batched", authors.clone()).await?;
    let merged = layer.handle().snapshot().merged;
    println!("  {merged} asked for what another already waited for");

    // Two ids in one query, one of which has no row: the other has its answer all the same.
    let (known, unknown) = tokio::join!(authors.clone().oneshot(42), authors.oneshot(4_242));
    let error = unknown.expect_err("there is no such author");
    let reason = Rejection::find(&*error).map(Rejection::reason);
    println!("42 is {:?}; 4242: {error} ({reason:?})", known?);
    Ok(())
}
