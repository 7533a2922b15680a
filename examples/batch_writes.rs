//! Inserts become one transaction: `cargo run --release --features full --example batch_writes`
//!
//! 64 callers put accounts into SQLite, one after the other; each is there when its transaction is synced to the disk. They do
//! so bare, then batched. The last account of every caller wants an address that only one can have.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, ErrorCode::ConstraintViolation};
use tokio::task::{JoinSet, spawn_blocking};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::{BoxError, error};

type Ids = Vec<rusqlite::Result<i64>>;

/// One transaction for all. What breaks a constraint fails alone: SQLite undoes that statement only.
fn insert(db: &Mutex<Connection>, emails: &Batch<String>) -> rusqlite::Result<Ids> {
    let mut db = db.lock().unwrap_or_else(PoisonError::into_inner);
    let transaction = db.transaction()?;
    let mut row = transaction.prepare("INSERT INTO accounts (email) VALUES (?)")?;
    let ids = emails.iter().map(|email| row.insert([email])).collect();
    drop(row);
    transaction.commit()?;
    Ok(ids)
}

fn open(path: &Path) -> Result<Connection, BoxError> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("DROP TABLE IF EXISTS accounts")?;
    db.execute_batch("CREATE TABLE accounts (id INTEGER PRIMARY KEY, email TEXT UNIQUE)")?;
    Ok(db)
}

/// What callers are told has to be what is in the table.
async fn drive<S>(what: &str, accounts: S, path: &Path) -> Result<(), BoxError>
where
    S: Service<String, Response = i64, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let (start, mut callers) = (Instant::now(), JoinSet::new());
    for caller in 0..64 {
        let accounts = accounts.clone();
        callers.spawn(async move {
            let emails = (1..100).map(|n| format!("{caller}-{n}@example.com"));
            let emails = emails.chain(["everybody@example.com".to_owned()]);
            let mut told = Vec::new();
            for email in emails {
                told.push((accounts.clone().oneshot(email.clone()).await, email));
            }
            told
        });
    }
    let told = callers.join_all().await.into_iter().flatten();
    let (took, mut stored, mut taken) = (start.elapsed(), BTreeMap::new(), 0);
    for (answer, email) in told {
        match answer {
            Ok(id) => drop(stored.insert(id, email)),
            Err(error) => {
                let cause = error::find::<rusqlite::Error>(&*error).ok_or("not of SQLite")?;
                assert_eq!(cause.sqlite_error_code(), Some(ConstraintViolation));
                taken += 1;
            }
        }
    }
    let db = Connection::open(path)?;
    let mut rows = db.prepare("SELECT id, email FROM accounts")?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    assert_eq!(rows.collect::<Result<BTreeMap<_, _>, _>>()?, stored);
    let (rows, rate) = (stored.len(), stored.len() as f64 / took.as_secs_f64());
    println!("{what}: {rows} rows in {took:.2?}, {rate:.0} a second; {taken} refused");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Beside the program: a directory for temporary files may be in memory, where nothing is synced.
    let path = std::env::current_exe()?.with_extension("db");
    let db = Arc::new(Mutex::new(open(&path)?));
    let table = service_fn(move |emails: Batch<String>| {
        let db = db.clone();
        async move { Ok::<_, BoxError>(spawn_blocking(move || insert(&db, &emails)).await??) }
    });

    let one = table.clone();
    let bare = service_fn(move |email| {
        let insert = one.clone().oneshot(Batch::new([email]));
        async move { Ok::<_, BoxError>(insert.await?.remove(0)?) }
    });
    drive("bare", bare, &path).await?;

    open(&path)?;
    let layer = BatchLayer::new().name("accounts");
    let batched = ServiceBuilder::new().layer(&layer).service(table);
    drive("batched", batched, &path).await?;
    let seen = layer.handle().snapshot();
    println!(
        "  {} transactions of {:.1} rows",
        seen.batches, seen.mean_size
    );
    std::fs::remove_file(path)?;
    Ok(())
}
