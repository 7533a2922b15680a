//! The connection pool against networks made for it.

mod acceptance;
mod corners;
mod faults;
mod legacy;
mod network;
mod rules;
#[cfg(target_os = "linux")]
mod sockets;
mod storm;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use tokio::task::JoinHandle;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::pool::{ConnPool, Error, ResponseBody};

pub type Payload = BoxBody<Bytes, BoxError>;
pub type Pool = ConnPool<Payload>;

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Lets everything happen that needs no time. Under paused time the clock moves only when all tasks wait.
pub async fn rest() {
    tokio::time::sleep(ms(1)).await;
}

/// Tasks of this runtime that have not ended; the test itself is none.
pub fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

// ===== requests =====

pub fn empty() -> Payload {
    Empty::new().map_err(BoxError::from).boxed()
}

pub fn payload(bytes: impl Into<Bytes>) -> Payload {
    Full::new(bytes.into()).map_err(BoxError::from).boxed()
}

pub fn get(uri: Uri) -> Request<Payload> {
    Request::get(uri).body(empty()).unwrap()
}

/// A request that servers know again.
pub fn named(id: impl ToString, uri: Uri) -> Request<Payload> {
    let req = Request::get(uri).header("x-id", id.to_string());
    req.body(empty()).unwrap()
}

pub fn post(id: impl ToString, uri: Uri, body: Payload) -> Request<Payload> {
    let req = Request::post(uri).header("x-id", id.to_string());
    req.body(body).unwrap()
}

// ===== responses =====

/// The connection that served it, by the server's number.
pub fn conn<B>(response: &Response<B>) -> u64 {
    response.headers()["x-conn"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

pub fn header<'a, B>(response: &'a Response<B>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

/// The whole body.
pub async fn text<B>(response: Response<B>) -> String
where
    B: Body,
    B::Error: std::fmt::Debug,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

// ===== asking =====

/// A request under way, in a task of its own.
#[derive(Debug)]
pub struct Asked(JoinHandle<Result<Response<ResponseBody>, Error>>);

pub fn ask(pool: &Pool, req: Request<Payload>) -> Asked {
    Asked(tokio::spawn(pool.clone().call(req)))
}

impl Asked {
    pub async fn result(self) -> Result<Response<ResponseBody>, Error> {
        self.0.await.expect("the request's own task ends in peace")
    }

    pub async fn response(self) -> Response<ResponseBody> {
        self.result()
            .await
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub async fn error(self) -> Error {
        match self.result().await {
            Ok(response) => panic!("answered by {response:?}"),
            Err(error) => error,
        }
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    pub fn cancel(self) {
        self.0.abort();
    }
}

/// The whole answer: the connection it came by, and the body.
pub async fn fetch(pool: &Pool, req: Request<Payload>) -> (u64, String) {
    let response = ask(pool, req).response().await;
    (conn(&response), text(response).await)
}

pub async fn fails(pool: &Pool, req: Request<Payload>) -> Error {
    ask(pool, req).error().await
}
