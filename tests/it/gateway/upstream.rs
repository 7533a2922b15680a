//! Upstreams that do as a test tells them, and keep what they were told.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::raw::{Body, Conn, Head, PATIENCE};

/// A server whose connections each have a thread and a script. It is gone on drop: its port refuses, its connections end.
pub struct Upstream {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    streams: Mutex<HashMap<usize, TcpStream>>,
    gone: AtomicBool,
    connections: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: Head,
    pub body: Body,
}

/// What a script has: its connection, and the upstream's book.
pub struct Peer {
    pub conn: Conn,
    /// Which connection of the upstream this is, counted from 0.
    pub number: usize,
    /// Whether the connection ends with a reset.
    pub reset: bool,
    shared: Arc<Shared>,
}

// ===== impl Upstream =====

impl Upstream {
    /// Runs `script` for each connection, which is closed at its end.
    pub fn scripted(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let book = shared.clone();
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if book.gone.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                let number = book.connections.fetch_add(1, Ordering::SeqCst);
                book.streams
                    .lock()
                    .unwrap()
                    .insert(number, stream.try_clone().unwrap());
                let open = book.open.fetch_add(1, Ordering::SeqCst) + 1;
                book.peak.fetch_max(open, Ordering::SeqCst);
                let mut peer = Peer {
                    conn: Conn::of(stream),
                    number,
                    reset: false,
                    shared: book.clone(),
                };
                let script = script.clone();
                std::thread::spawn(move || {
                    script(&mut peer);
                    // The other handle first, or the socket would outlive this one.
                    peer.shared.streams.lock().unwrap().remove(&peer.number);
                    let Peer {
                        conn,
                        reset,
                        shared,
                        ..
                    } = peer;
                    if reset {
                        conn.reset();
                    }
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { addr, shared }
    }

    /// Answers each request, read to its end, with these bytes. Those that say so close the connection.
    pub fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::scripted(move |peer| {
            while let Some(request) = peer.request() {
                let bytes = answer(&request);
                if peer.conn.try_send(&bytes).is_err() {
                    return;
                }
                if bytes
                    .windows(17)
                    .any(|w| w.eq_ignore_ascii_case(b"connection: close"))
                {
                    return;
                }
            }
        })
    }

    /// Answers each request with 200 and its own body.
    pub fn echo() -> Self {
        Self::answering(|request| ok(&request.body.data))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests that came to their end, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The one request there was.
    pub fn request(&self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The most connections that were open at a time.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(self.addr);
        for (_, stream) in self.shared.streams.lock().unwrap().drain() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

// ===== impl Peer =====

impl Peer {
    /// The next request with its body, or None when there is none, or none that is whole.
    pub fn request(&mut self) -> Option<Request> {
        // An idle connection may stay for longer than a test waits for anything.
        self.conn.stream.set_read_timeout(None).unwrap();
        let head = self.conn.try_head().ok()?;
        self.conn.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = self.conn.body(&head).ok()?;
        let request = Request { head, body };
        self.keep(&request);
        Some(request)
    }

    /// Only the head of the next request, which is not kept.
    pub fn head(&mut self) -> Option<Head> {
        self.conn.stream.set_read_timeout(None).unwrap();
        let head = self.conn.try_head().ok();
        self.conn.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        head
    }

    pub fn keep(&self, request: &Request) {
        self.shared.requests.lock().unwrap().push(request.clone());
    }
}

/// A 200 with this body.
pub fn ok(body: &[u8]) -> Vec<u8> {
    response("200 OK", "", body)
}

/// A response with these fields, each with its line's end.
pub fn response(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Waits until `met`, for a while.
pub fn eventually(what: &str, met: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < until, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
