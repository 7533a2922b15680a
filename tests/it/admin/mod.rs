//! The live endpoint, and those who mean it ill.

mod events;
mod knobs;
mod limits;
mod pages;
mod security;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tower_flow::Flow;
use tower_flow::admin::Admin;
use tower_flow::inspect::{Column, Inspect, Reading, Role, Table, Unit, Value, Vital};
use tower_flow::metrics::Families;

pub const TOKEN: &str = "0123456789abcdef0123";

/// A running endpoint.
pub struct Served {
    pub addr: SocketAddr,
    pub running: JoinHandle<()>,
}

pub async fn serve(admin: Admin) -> Served {
    let server = admin.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    Served {
        addr: server.local_addr(),
        running: tokio::spawn(server.run()),
    }
}

// ===== requests =====

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("there is an answer");
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        Self {
            status: status.parse().unwrap(),
            headers: lines
                .map(|line| {
                    let (name, value) = line.split_once(':').unwrap();
                    (name.to_lowercase(), value.trim().to_owned())
                })
                .collect(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Served {
    /// Sends a request as it stands; a host of its own only where `headers` names none.
    pub async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{line} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            text.push_str(&format!("host: {}\r\n", self.addr));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        Answer::of(&crate::http::raw(self.addr, text.as_bytes()).await)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[], "").await
    }

    pub async fn put(&self, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [
            ("content-type", "application/json"),
            ("authorization", &bearer),
        ];
        self.ask(&format!("PUT {path}"), &headers, body).await
    }

    /// Listens.
    pub async fn events(&self) -> Events {
        let req = Request::get(format!("http://{}/events", self.addr))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(req).await.unwrap();
        assert_eq!(response.status(), 200);
        Events::of(response.into_body())
    }

    /// Asks for `path` and never reads the answer, for which its end has hardly any room.
    pub async fn ignore(&self, path: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.addr).await.unwrap();
        let asked = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.addr);
        stream.write_all(asked.as_bytes()).await.unwrap();
        stream
    }
}

/// What is left of a stream until it closes, however it does.
pub async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    rest
}

// ===== events =====

/// A stream of events.
pub struct Events<B = Incoming> {
    body: B,
    text: String,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Events<B> {
    pub fn of(body: B) -> Self {
        Self {
            body,
            text: String::new(),
        }
    }

    /// The next event's name and data; nothing when the stream has ended or broken.
    pub async fn next(&mut self) -> Option<(String, Json)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let prefix = format!("{name}: ");
                    event.lines().find_map(|line| line.strip_prefix(&prefix))
                };
                let name = field("event").unwrap().to_owned();
                let data = field("data").unwrap();
                assert!(name != "tick" || event.len() <= 20_000, "{}", event.len());
                assert!(!data.contains('<'), "no name becomes markup: {data}");
                let data = serde_json::from_str(data).unwrap();
                self.text = rest.to_owned();
                return Some((name, data));
            }
            let frame = self.body.frame().await?.ok()?;
            let data = frame.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next event, which is called `name`.
    pub async fn expect(&mut self, name: &str) -> Json {
        let (found, data) = self.next().await.expect("the stream goes on");
        assert_eq!(found, name);
        data
    }
}

// ===== a layer =====

/// A layer that counts how often it is looked at, and has a table of so many rows that change all the time.
#[derive(Debug, Clone, Default)]
pub struct Loud {
    pub looks: Arc<AtomicU64>,
    pub rows: usize,
    pub width: usize,
}

impl Inspect for Loud {
    fn kind(&self) -> &'static str {
        "loud"
    }

    fn name(&self) -> Cow<'_, str> {
        "loud".into()
    }

    fn snapshot(&self) -> Value {
        let looks = self.looks.load(Ordering::Relaxed);
        let rows = (0..self.rows).map(|row| {
            let name = format!("{row:x<width$}", width = self.width);
            Value::map([("name", name.into()), ("count", looks.into())])
        });
        Value::map([("rows", Value::list(rows))])
    }

    fn collect(&self, _: &mut Families) {}

    fn vitals(&self) -> Vec<Vital> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        let vital = Vital::count(Role::Requests, 10 * looks);
        assert!(matches!(vital.reading, Reading::Count(_)));
        vec![vital]
    }

    fn tables(&self) -> &'static [Table] {
        const TABLE: Table = Table {
            title: "rows",
            rows: "rows",
            columns: &[
                Column::new("name", "name", Unit::Text),
                Column::new("count", "count", Unit::Count),
            ],
        };
        &[TABLE]
    }
}

/// A flow with such a layer.
pub fn loud(rows: usize, width: usize) -> (Flow, Loud) {
    let flow = Flow::new("orders");
    let loud = Loud {
        rows,
        width,
        ..Loud::default()
    };
    flow.attach(loud.clone());
    (flow, loud)
}
