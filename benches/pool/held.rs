//! A thousand connections in use at once, for a minute.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use tower_flow::pool::ConnPool;
use tower_flow::pool::connect::http;
use tower_service::Service;

use crate::clients::Nothing;
use crate::server::{Server, Setup, Speaks, runtime};
use crate::support::{self, yes};

const CALLERS: usize = 1_024;
const THINK: Duration = Duration::from_millis(100);

pub fn print() {
    // Both ends of each are this process', and there are others.
    if let Err(limit) = files(2 * CALLERS as u64 + 100) {
        println!(
            "{CALLERS} connections: not measured, as this process may open {limit} files; raise it with `ulimit -n`"
        );
        return;
    }
    let seconds = support::rounds().max(2) as u64;
    let server = Server::with(Setup {
        speaks: Speaks::Http1,
        think: THINK,
        tls: None,
    });
    let uri: Uri = format!("http://{}/", server.address)
        .parse()
        .expect("a URI");
    let (open, times, errors) = runtime().block_on(held(&uri, Duration::from_secs(seconds)));
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{CALLERS} callers for {seconds} s, one request after the other on as many connections; an answer takes {} ms.\n",
        THINK.as_millis()
    );
    println!(
        "| connections open, least and most | requests | errors | p50, ms | p90, ms | p99, ms | longest, ms |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    println!(
        "| {} to {} | {} | {errors} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
        open.0,
        open.1,
        times.len(),
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(1.0)
    );
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| 1,000 connections and more, and no error | {}: {}, {errors} errors in {} requests |",
        yes(open.0 >= 1_000 && errors == 0),
        open.0,
        times.len()
    );
}

/// The least and the most connections, the microseconds each request took, and how many failed.
async fn held(uri: &Uri, time: Duration) -> ((usize, usize), Histogram<u64>, u64) {
    let pool: ConnPool<Nothing> = ConnPool::builder(http())
        .max_connections(CALLERS)
        .max_connections_per_host(CALLERS)
        .max_connecting_per_host(64)
        .max_idle(CALLERS)
        .max_idle_per_host(CALLERS)
        .build();
    let there = pool.warm(uri, CALLERS).await.expect("connections");
    assert_eq!(there, CALLERS);
    let end = Instant::now() + time;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut pool, uri) = (pool.clone(), uri.clone());
            tokio::spawn(async move {
                let (mut times, mut errors) = (Vec::new(), 0);
                while Instant::now() < end {
                    let mut req = Request::new(Empty::new());
                    *req.uri_mut() = uri.clone();
                    let start = Instant::now();
                    match pool.call(req).await {
                        Ok(response) => match response.into_body().collect().await {
                            Ok(_) => times.push(start.elapsed().as_micros() as u64),
                            Err(_) => errors += 1,
                        },
                        Err(_) => errors += 1,
                    }
                }
                (times, errors)
            })
        })
        .collect();
    let (mut least, mut most) = (usize::MAX, 0);
    while Instant::now() < end {
        let open = pool.stats().open as usize;
        (least, most) = (least.min(open), most.max(open));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut all = Histogram::new(3).expect("a histogram");
    let mut failed = 0;
    for caller in callers {
        let (times, errors) = caller.await.expect("it only calls");
        failed += errors;
        for time in times {
            all.record(time).expect("any time");
        }
    }
    ((least, most), all, failed)
}

/// Sees to it that so many files may be open, or says how many may.
#[cfg(target_os = "linux")]
fn files(wanted: u64) -> Result<(), u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let (now, most) = (
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    );
    if now >= wanted {
        return Ok(());
    }
    if most < wanted {
        return Err(most);
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(|_| now)
}

#[cfg(not(target_os = "linux"))]
fn files(_: u64) -> Result<(), u64> {
    Ok(())
}
