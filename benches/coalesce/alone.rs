//! What a request pays that nobody shares: the layer round services that answer at once, beside them bare and beside the
//! least a call of its own takes.

use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{Empty, Full};
use tower_flow::coalesce::CoalesceLayer;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::coalesce::{Cost, Floor, Waits, Ways, at_once, sequence};
use crate::support::plain::Bare;
use crate::support::{self, Echo, Question, yes};

const CALLS: usize = 2_000;

pub fn print() {
    let rounds = 5 * support::rounds();
    println!(
        "One request after the other, each with a key of its own: nanoseconds of a processor over the bare service of the same rows, \
         medians of {rounds} rounds of {CALLS} in turn. The floor is a hash, an entry made and removed in a table behind one \
         of 16 locks, and a box used again; the ratio is to the floor of the same rows.\n"
    );
    println!("| alone | whole | over bare | of the floor | allocations over bare |");
    println!("|---|---:|---:|---:|---:|");
    let costs = ways().measure(rounds, CALLS);
    for cost in &costs {
        let (bare, floor) = (of(&costs, cost, "bare"), of(&costs, cost, "floor"));
        let ratio = match cost.name == bare.name {
            true => "".to_owned(),
            false => format!("{:.2}", cost.ratio(floor, bare)),
        };
        println!(
            "| {} | {:.0} | {:.0} | {ratio} | {:.2} |",
            cost.name,
            cost.median(),
            cost.over(bare),
            cost.allocations - bare.allocations
        );
    }
    println!();
    let find = |name| find(&costs, name);
    let (bare, floor) = (find("bare"), find("floor"));
    println!("| target | reached |");
    println!("|---|---|");
    for name in [
        "coalesce",
        "waits: coalesce",
        "HTTP: coalesce",
        "gRPC: coalesce",
    ] {
        let ours = find(name);
        let (bare, floor) = (of(&costs, ours, "bare"), of(&costs, ours, "floor"));
        let ratio = ours.ratio(floor, bare);
        let over = ours.over(bare);
        println!(
            "| {name}: at most 1.5 × the floor | {}: {ratio:.2} × |",
            yes(ratio <= 1.5)
        );
        if name == "coalesce" {
            println!(
                "| {name}: at most 120 ns | {}: {over:.0} |",
                yes(over <= 120.0)
            );
        }
        let allocations = ours.allocations - bare.allocations;
        println!(
            "| {name}: no allocation | {}: {allocations:.2} |",
            yes(allocations < 0.005)
        );
    }
    let bypass = find("bypassed").over(bare);
    println!(
        "| bypassed: less than half the floor | {}: {bypass:.0} |",
        yes(bypass < floor.over(bare) / 2.0)
    );
}

pub fn walk(name: &str, calls: usize) {
    ways().walk(name, calls);
}

fn find<'a>(costs: &'a [Cost], name: &str) -> &'a Cost {
    costs
        .iter()
        .find(|cost| cost.name == name)
        .expect("it is measured")
}

/// What a row is compared with: the one whose name has the same beginning.
fn of<'a>(costs: &'a [Cost], cost: &Cost, name: &str) -> &'a Cost {
    match cost.name.split_once(": ") {
        Some((kind, _)) => find(costs, &format!("{kind}: {name}")),
        None => find(costs, name),
    }
}

fn ways() -> Ways {
    let mut ways = Ways::default();
    let key = |key: &u64| *key;
    ways.add("bare", reused(Bare));
    ways.add("bare, once more", reused(Bare));
    ways.add("floor", reused(Floor::new(Bare, key)));
    let coalesce = || CoalesceLayer::new(|key: &u64| Some(*key));
    ways.add("coalesce", reused(coalesce().layer(Bare)));
    ways.add("coalesce, a clone a call", cloned(coalesce().layer(Bare)));
    let nobody = CoalesceLayer::new(|_: &u64| None::<u64>);
    ways.add("bypassed", reused(nobody.layer(Bare)));

    // Most backends do not answer at once.
    ways.add("waits: bare", reused(Waits));
    ways.add("waits: floor", reused(Floor::new(Waits, key)));
    ways.add("waits: coalesce", reused(coalesce().layer(Waits)));

    ways.add("HTTP: bare", http(Site));
    ways.add("HTTP: bare, once more", http(Site));
    ways.add("HTTP: floor", http(Floor::new(Site, HttpKey::new)));
    ways.add("HTTP: coalesce", http(CoalesceLayer::http().layer(Site)));

    ways.add("gRPC: bare", grpc(Echo));
    ways.add("gRPC: bare, once more", grpc(Echo));
    ways.add("gRPC: floor", grpc(Floor::new(Echo, GrpcKey::new)));
    let methods = (0..21).map(|n| format!("/bench.Service/Method{n}"));
    ways.add(
        "gRPC: coalesce",
        grpc(CoalesceLayer::grpc(methods).layer(Echo)),
    );
    ways
}

fn reused<S>(mut service: S) -> impl FnMut(usize)
where
    S: Service<u64, Error: std::fmt::Debug>,
{
    let mut from = 0;
    move |times| {
        at_once(sequence(&mut service, from, times));
        from += times as u64;
    }
}

/// A clone for every call, as servers do.
fn cloned<S>(service: S) -> impl FnMut(usize)
where
    S: Service<u64, Error: std::fmt::Debug> + Clone,
{
    let mut from = 0;
    move |times| {
        for key in from..from + times as u64 {
            at_once(sequence(&mut service.clone(), key, 1));
        }
        from += times as u64;
    }
}

// ===== HTTP =====

/// Answers at once.
#[derive(Clone)]
struct Site;

impl<B> Service<Request<B>> for Site {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> Self::Future {
        drop(black_box(req));
        let mut response = Response::new(Full::new(Bytes::from_static(b"sixteen bytes ok")));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response.headers_mut().insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("max-age=60"),
        );
        std::future::ready(Ok(response))
    }
}

/// What a browser asks a shop for.
fn questions() -> Vec<Request<Empty<Bytes>>> {
    let question = |n| {
        let mut req = Request::new(Empty::new());
        *req.uri_mut() =
            format!("https://shop.example.com/api/v1/items/{n}?fields=name,price,stock")
                .parse()
                .expect("a URI");
        let headers: [(_, &'static str); 7] = [
            (header::HOST, "shop.example.com"),
            (
                header::USER_AGENT,
                "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
            ),
            (header::ACCEPT, "application/json"),
            (header::ACCEPT_ENCODING, "gzip, deflate, br, zstd"),
            (header::ACCEPT_LANGUAGE, "en-GB,en;q=0.7,de;q=0.3"),
            (header::REFERER, "https://shop.example.com/"),
            (
                header::HeaderName::from_static("traceparent"),
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ];
        *req.headers_mut() = headers
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .into_iter()
            .collect::<HeaderMap>();
        req
    };
    (0..512).map(question).collect()
}

/// The least that such a key holds: clones of what the request has.
#[derive(PartialEq, Eq, Hash)]
struct HttpKey(Method, Uri, Option<HeaderValue>);

impl HttpKey {
    fn new<B>(req: &Request<B>) -> Self {
        Self(
            req.method().clone(),
            req.uri().clone(),
            req.headers().get(header::ACCEPT_ENCODING).cloned(),
        )
    }
}

fn http<S, B>(mut service: S) -> impl FnMut(usize)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: std::fmt::Debug>,
    B: http_body::Body + Unpin,
{
    let questions = questions();
    move |times| {
        let mut cx = Context::from_waker(Waker::noop());
        for req in questions.iter().cycle().take(times) {
            assert!(service.poll_ready(&mut cx).is_ready());
            let response = at_once(service.call(req.clone())).expect("an answer");
            read(response.into_body());
        }
    }
}

// ===== gRPC =====

/// The least that such a key holds, where the message lies in one piece.
#[derive(PartialEq, Eq, Hash)]
struct GrpcKey(PathAndQuery, Bytes);

impl GrpcKey {
    fn new<B>(req: &Request<B>) -> Self {
        let path = req.uri().path_and_query().expect("a path");
        Self(
            path.clone(),
            Bytes::from_static(b"\0\0\0\0\x10sixteen bytes ok"),
        )
    }
}

fn grpc<S, B>(mut service: S) -> impl FnMut(usize)
where
    S: Service<Request<Question>, Response = Response<B>, Error: std::fmt::Debug>,
    B: http_body::Body + Unpin,
{
    let questions = support::requests();
    move |times| {
        let mut cx = Context::from_waker(Waker::noop());
        for req in questions.iter().cycle().take(times) {
            assert!(service.poll_ready(&mut cx).is_ready());
            let response = at_once(service.call(req.clone())).expect("an answer");
            read(response.into_body());
        }
    }
}

fn read(body: impl http_body::Body + Unpin) {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        black_box(frame.is_ok());
    }
}
