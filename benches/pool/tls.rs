//! What a cap costs where connections are dear, and what warming saves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use rcgen::{CertificateParams, KeyPair};
use tokio_rustls::TlsAcceptor;
use tower_flow::pool::connect::rustls::pki_types::PrivateKeyDer;
use tower_flow::pool::connect::rustls::{RootCertStore, ServerConfig, crypto};
use tower_flow::pool::connect::{Alpn, Https, TlsConnector, tcp};
use tower_flow::pool::{Builder, ConnPool, Protocol};
use tower_service::Service;

use crate::clients::Nothing;
use crate::server::{Server, Setup, Speaks, runtime};
use crate::support::{self, median, yes};

const CALLERS: usize = 20;
const HANDSHAKE: Duration = Duration::from_millis(100);
const THINK: Duration = Duration::from_millis(5);

/// A pool of some tuning, cold or warmed.
struct Row {
    name: &'static str,
    tuned: fn(Builder<Https>) -> Builder<Https>,
    /// Connections made before the first round.
    warm: usize,
    /// A new pool for each round.
    cold: bool,
}

const ROWS: [Row; 4] = [
    Row {
        name: "cap 2, cold",
        tuned: cap,
        warm: 0,
        cold: true,
    },
    Row {
        name: "cap 2, warmed",
        tuned: cap,
        warm: 2,
        cold: false,
    },
    Row {
        name: "tuned, cap 50, cold",
        tuned,
        warm: 0,
        cold: true,
    },
    Row {
        name: "tuned, cap 50, warmed",
        tuned,
        warm: CALLERS,
        cold: false,
    },
];

fn cap(builder: Builder<Https>) -> Builder<Https> {
    builder.max_connections_per_host(2)
}

/// It knows what the server speaks, so that the first dial is not alone.
fn tuned(builder: Builder<Https>) -> Builder<Https> {
    builder
        .max_connections_per_host(50)
        .max_idle_per_host(50)
        .max_connecting_per_host(50)
        .protocol(Protocol::Http1)
}

pub fn print() {
    let (server, connector) = start();
    let uri: Uri = format!("https://localhost:{}/", server.address.port())
        .parse()
        .expect("a URI");
    let runtime = runtime();
    let rounds = support::rounds().div_ceil(3);
    let mut times = vec![Vec::new(); ROWS.len()];
    let mut handshakes = vec![0; ROWS.len()];
    let make = |row: &Row| -> ConnPool<Nothing> {
        (row.tuned)(ConnPool::builder(connector.clone())).build()
    };
    runtime.block_on(async {
        let pools: Vec<_> = ROWS.iter().map(make).collect();
        for _ in 0..rounds {
            for (index, row) in ROWS.iter().enumerate() {
                let pool = match row.cold {
                    true => make(row),
                    false => pools[index].clone(),
                };
                if row.warm > 0 {
                    let there = pool.warm(&uri, row.warm).await.expect("a connection");
                    assert!(there >= row.warm);
                }
                let before = pool.stats().connects_ok;
                times[index].push(round(&pool, &uri).await.as_secs_f64() * 1e3);
                handshakes[index] += pool.stats().connects_ok - before;
            }
        }
    });
    println!(
        "{CALLERS} callers, one HTTP/1 request each and all at once: that is a round, and it takes until the last answer. \
         The server's handshake takes {} ms, an answer {} ms; medians of {rounds} rounds in turn.\n",
        HANDSHAKE.as_millis(),
        THINK.as_millis()
    );
    println!("| pool | a round, ms | of the tuned, warmed one | handshakes in it |");
    println!("|---|---:|---:|---:|");
    let medians: Vec<_> = times.into_iter().map(median).collect();
    let best = medians[ROWS.len() - 1];
    for (index, row) in ROWS.iter().enumerate() {
        println!(
            "| {} | {:.1} | {:.1} | {:.1} |",
            row.name,
            medians[index],
            medians[index] / best,
            handshakes[index] as f64 / rounds as f64
        );
    }
    println!();
    println!("| target | reached |");
    println!("|---|---|");
    for (index, row) in ROWS.iter().enumerate().take(2) {
        let ratio = medians[index] / best;
        println!(
            "| tuned and warmed ≥ 10× {} | {}: {ratio:.1}× |",
            row.name,
            yes(ratio >= 10.0)
        );
    }
}

/// Until the last of the callers has its answer.
async fn round(pool: &ConnPool<Nothing>, uri: &Uri) -> Duration {
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let mut req = Request::new(Empty::new());
            *req.uri_mut() = uri.clone();
            let answer = pool.clone().call(req);
            tokio::spawn(async {
                let response = answer.await.expect("an answer");
                response.into_body().collect().await.expect("the whole");
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no request fails");
    }
    start.elapsed()
}

/// A server nobody but the connector trusts.
fn start() -> (Server, Https) {
    let names = vec!["localhost".to_owned()];
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(names).expect("a name");
    let certificate = certificate.self_signed(&key).expect("a signature");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let ring = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("ring's own")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::from(key))
        .expect("its key");
    let server = Server::with(Setup {
        speaks: Speaks::Http1,
        think: THINK,
        tls: Some((TlsAcceptor::from(Arc::new(config)), HANDSHAKE)),
    });
    let connector = TlsConnector::new(tcp()).roots(roots).alpn(Alpn::Http1);
    (server, connector)
}
