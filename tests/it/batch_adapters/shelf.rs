//! A tonic server that does what its script says, counts what reaches it, and can be killed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{eventually, ms};

#[allow(unreachable_pub, missing_docs, dead_code)]
mod proto {
    include!("../../proto/gen/tower_flow.test.v1.rs");
}

pub use proto::shelf_server::ShelfServer;
pub use proto::{Get, Gets, Got, Gots};

pub const GET_MANY: &str = "/tower_flow.test.v1.Shelf/GetMany";
pub const PASS: &str = "/tower_flow.test.v1.Shelf/Pass";

/// What is done about a message.
#[derive(Debug, Clone)]
pub enum Does {
    Answers,
    /// Answers this one, then those it kept, the last of them first.
    AnswersAll,
    Keeps,
    AnswersAs(u64),
    AnswersTwice,
    AnswersAndEnds,
    Ends,
    Fails(Code),
    /// Refuses this one message.
    Refuses(Code),
    Waits(u64),
    /// Waits until the door is opened.
    WaitsAtDoor,
}

type Script = Arc<dyn Fn(usize, usize, &Get) -> Does + Send + Sync>;

/// What has reached a server.
#[derive(Default)]
pub struct Books {
    calls: AtomicUsize,
    streams: AtomicUsize,
    open: AtomicUsize,
    ids: Mutex<Vec<u64>>,
}

pub struct Shelf {
    pub books: Arc<Books>,
    pub addr: SocketAddr,
    script: Script,
    door: tokio::sync::watch::Sender<bool>,
    runtime: Option<Runtime>,
    /// How many streams a connection may have.
    pub max_streams: Option<u32>,
}

#[derive(Clone)]
struct Handler {
    books: Arc<Books>,
    script: Script,
    door: tokio::sync::watch::Sender<bool>,
}

pub fn get(id: u64) -> Get {
    Get {
        id,
        body: id.to_string().into_bytes(),
    }
}

pub fn gets(ids: impl IntoIterator<Item = u64>) -> Vec<Get> {
    ids.into_iter().map(get).collect()
}

pub fn ids(gots: &[Got]) -> Vec<u64> {
    gots.iter().map(|got| got.id).collect()
}

/// A channel that connects when it must.
pub fn channel(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy()
}

// ===== impl Shelf =====

impl Shelf {
    /// The script is asked with the number of the stream or call, that of the message in it, and the message.
    pub async fn start(
        script: impl Fn(usize, usize, &Get) -> Does + Send + Sync + 'static,
    ) -> Self {
        let mut shelf = Self {
            books: Arc::default(),
            addr: "127.0.0.1:0".parse().unwrap(),
            script: Arc::new(script),
            door: tokio::sync::watch::Sender::new(false),
            runtime: None,
            max_streams: None,
        };
        shelf.restart().await;
        shelf
    }

    pub async fn restart(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handler = Handler {
            books: self.books.clone(),
            script: self.script.clone(),
            door: self.door.clone(),
        };
        let incoming = {
            let _inside = runtime.enter();
            let mut tries = 0;
            loop {
                match TcpIncoming::bind(self.addr) {
                    Ok(incoming) => break incoming.with_nodelay(Some(true)),
                    Err(error) => assert!(tries < 200, "{error}"),
                }
                // Whoever had the port may not be gone yet.
                tries += 1;
                std::thread::sleep(ms(10));
            }
        };
        self.addr = incoming.local_addr().unwrap();
        let limit = 16 << 20;
        let service = ShelfServer::new(handler)
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        let serving = Server::builder()
            .max_concurrent_streams(self.max_streams)
            .add_service(service)
            .serve_with_incoming(incoming);
        runtime.spawn(serving);
        self.runtime = Some(runtime);
    }

    /// Cuts all connections, in the middle of whatever they do.
    pub async fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        eventually("all streams are gone", || self.open() == 0).await;
        // What the other end hears of it takes a moment.
        tokio::time::sleep(ms(50)).await;
    }

    pub fn channel(&self) -> Channel {
        channel(self.addr)
    }

    pub fn open_door(&self) {
        self.door.send_replace(true);
    }

    pub fn calls(&self) -> usize {
        self.books.calls.load(Ordering::SeqCst)
    }

    /// How many streams were opened so far.
    pub fn streams(&self) -> usize {
        self.books.streams.load(Ordering::SeqCst)
    }

    /// How many streams, or calls, are open now.
    pub fn open(&self) -> usize {
        self.books.open.load(Ordering::SeqCst)
    }

    /// The ids of all that arrived.
    pub fn ids(&self) -> Vec<u64> {
        self.books.ids.lock().unwrap().clone()
    }

    /// Nothing arrived twice.
    pub fn assert_once(&self) {
        let mut ids = self.ids();
        ids.sort_unstable();
        let twice = ids.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "arrived twice: {twice:?}");
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

// ===== impl Handler =====

struct Open(Arc<Books>);

impl Open {
    fn new(books: &Arc<Books>) -> Self {
        books.open.fetch_add(1, Ordering::SeqCst);
        Self(books.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler {
    fn arrived(&self, get: &Get) {
        self.books.ids.lock().unwrap().push(get.id);
    }

    async fn serve(
        self,
        stream: usize,
        mut gets: Streaming<Get>,
        answers: mpsc::Sender<Result<Got, Status>>,
    ) -> Option<()> {
        let _open = Open::new(&self.books);
        let mut kept = Vec::new();
        let mut at = 0;
        loop {
            let get = tokio::select! {
                get = gets.message() => get.ok()??,
                () = answers.closed() => return None,
            };
            self.arrived(&get);
            let does = (self.script)(stream, at, &get);
            at += 1;
            let got = answer(get);
            match does {
                Does::Answers => answers.send(Ok(got)).await.ok()?,
                Does::AnswersAll => {
                    answers.send(Ok(got)).await.ok()?;
                    while let Some(got) = kept.pop() {
                        answers.send(Ok(got)).await.ok()?;
                    }
                }
                Does::Keeps => kept.push(got),
                Does::AnswersAs(id) => answers.send(Ok(Got { id, ..got })).await.ok()?,
                Does::AnswersTwice => {
                    answers.send(Ok(got.clone())).await.ok()?;
                    answers.send(Ok(got)).await.ok()?;
                }
                Does::AnswersAndEnds => {
                    answers.send(Ok(got)).await.ok()?;
                    return None;
                }
                Does::Ends => return None,
                Does::Fails(code) => {
                    let status = Status::new(code, "as the script says");
                    answers.send(Err(status)).await.ok()?;
                    return None;
                }
                Does::Refuses(code) => {
                    let code = code as u32;
                    answers.send(Ok(Got { code, ..got })).await.ok()?;
                }
                Does::Waits(time) => {
                    tokio::select! {
                        () = tokio::time::sleep(ms(time)) => answers.send(Ok(got)).await.ok()?,
                        () = answers.closed() => return None,
                    }
                }
                Does::WaitsAtDoor => {
                    let mut door = self.door.subscribe();
                    door.wait_for(|open| *open).await.ok()?;
                    answers.send(Ok(got)).await.ok()?;
                }
            }
        }
    }
}

fn answer(get: Get) -> Got {
    Got {
        id: get.id,
        body: get.body,
        code: 0,
    }
}

#[tonic::async_trait]
impl proto::shelf_server::Shelf for Handler {
    /// The script is asked for each; `Ends` leaves it out, and whatever comes after it.
    async fn get_many(&self, req: Request<Gets>) -> Result<Response<Gots>, Status> {
        let call = self.books.calls.fetch_add(1, Ordering::SeqCst);
        let _open = Open::new(&self.books);
        let (mut gots, mut kept) = (Vec::new(), Vec::new());
        for (at, get) in req.into_inner().gets.into_iter().enumerate() {
            self.arrived(&get);
            let does = (self.script)(call, at, &get);
            let got = answer(get);
            match does {
                Does::Answers => gots.push(got),
                Does::AnswersAll => {
                    gots.push(got);
                    gots.extend(kept.drain(..).rev());
                }
                Does::Keeps => kept.push(got),
                Does::AnswersAs(id) => gots.push(Got { id, ..got }),
                Does::AnswersTwice => gots.extend([got.clone(), got]),
                Does::AnswersAndEnds => {
                    gots.push(got);
                    break;
                }
                Does::Ends => break,
                Does::Fails(code) => return Err(Status::new(code, "as the script says")),
                Does::Refuses(code) => {
                    let code = code as u32;
                    gots.push(Got { code, ..got });
                }
                Does::Waits(time) => {
                    tokio::time::sleep(ms(time)).await;
                    gots.push(got);
                }
                Does::WaitsAtDoor => {
                    let mut door = self.door.subscribe();
                    let _ = door.wait_for(|open| *open).await;
                    gots.push(got);
                }
            }
        }
        Ok(Response::new(Gots { gots }))
    }

    type PassStream = ReceiverStream<Result<Got, Status>>;

    async fn pass(
        &self,
        req: Request<Streaming<Get>>,
    ) -> Result<Response<Self::PassStream>, Status> {
        let stream = self.books.streams.fetch_add(1, Ordering::SeqCst);
        let (answers, out) = mpsc::channel(16);
        tokio::spawn(self.clone().serve(stream, req.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}
