//! A JetStream stream that several processes share: each item is for one worker of one of them, and leaves the stream when
//! that says so.
//!
//! # What goes wrong, and what comes of it
//!
//! - The server is away, at the start or later: items are refused as UNAVAILABLE with the cause. The client connects again by
//!   itself.
//! - The stream, or the consumer, is deleted: it is made again, within seconds. What was in the stream is gone with it.
//! - The credentials are wrong: the program ends at the start. Later that is as if the server was away.
//! - An item is larger than the server takes: it alone is refused, as INVALID_ARGUMENT.
//! - What an item waits for a worker counts as its processing: of what was delivered, a process has at most some two items for
//!   each worker that wait. So `--ack-wait` has to be above four times what an item takes; while it is processed the server
//!   is told so.
//! - The stream is full: the item is refused, as by the queue in memory.

mod keeper;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, Context, Message};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tower::{Service as _, ServiceExt as _, service_fn};
use tower_flow::batch::Batch;
use tower_flow::nats::{Error, ErrorKind, JetStreamLag, JetStreamPublish, Publish};
use tower_flow::{BoxError, Flow};

use super::seen::Seen;
use super::{Delivery, Item, StoreError, Stored, Storing};
use crate::options::{Serve, Stream};

/// What the consumer of all processes is called.
const CONSUMER: &str = "workers";

/// How many items a process knows that it has processed.
const KNOWN: usize = 65_536;

/// How often an acknowledgement is sent again, if nobody says that it came.
const TRIES: usize = 3;

/// How long that takes at the end at most.
const FLUSH: Duration = Duration::from_secs(2);

/// JetStream's numbers for a stream that takes nothing more: too many messages, too many bytes, no room on the disk.
const FULL: [u64; 4] = [10_077, 10_054, 10_023, 10_047];

pub(crate) struct Nats {
    url: String,
    options: Stream,
    most: usize,
    most_bytes: usize,
    /// How many deliveries are asked for at once.
    prefetch: usize,
    client: Client,
    context: Context,
    publish: JetStreamPublish,
    lag: JetStreamLag,
    deliveries: AsyncMutex<mpsc::Receiver<Message>>,
    /// What was processed here; by the number in the stream, and the time it came, since a stream that is made again counts
    /// anew.
    processed: Mutex<Seen<(u64, i128)>>,
    /// The stream seems to be gone.
    missing: Notify,
    closed: watch::Sender<bool>,
    trouble: Arc<Trouble>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What the connection said last.
#[derive(Debug, Default)]
struct Trouble(Mutex<Option<String>>);

/// What an item is acknowledged by.
#[derive(Debug)]
pub(super) struct Receipt {
    message: Message,
    key: (u64, i128),
}

// ===== impl Nats =====

impl Nats {
    /// Connects, and makes the stream and the consumer if they are missing. A server that is not there is waited for
    /// meanwhile; one that does not let us in is an error.
    pub(super) async fn open(
        options: &Serve,
        stream: &Stream,
        flow: &Flow,
    ) -> Result<Arc<Self>, BoxError> {
        let trouble = Arc::new(Trouble::default());
        let (url, secret) = split(&stream.url);
        let client = connect(&url, secret, &trouble).await?;
        let context = jetstream::new(client.clone());
        let lag = JetStreamLag::builder(context.clone(), &*stream.name, CONSUMER)
            .name("lag")
            .every(Duration::from_secs(1))
            .attach(flow)
            .build();
        let (out, deliveries) = mpsc::channel(1);
        let nats = Arc::new(Self {
            url,
            options: stream.clone(),
            most: options.queue,
            most_bytes: options.queue_bytes,
            prefetch: options.workers,
            publish: JetStreamPublish::new(context.clone()),
            client,
            context,
            lag,
            deliveries: AsyncMutex::new(deliveries),
            processed: Mutex::new(Seen::new(KNOWN)),
            missing: Notify::new(),
            closed: watch::Sender::new(false),
            trouble,
            keeper: Mutex::default(),
        });
        if nats.is_up()
            && let Err(error) = nats.prepare().await
        {
            eprintln!("{error}");
        }
        let keeper = tokio::spawn(nats.clone().keep(out));
        *nats.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(nats)
    }

    pub(super) fn lag(&self) -> JetStreamLag {
        self.lag.clone()
    }

    pub(super) fn storing(self: Arc<Self>) -> Storing {
        Storing::new(service_fn(move |batch: Batch<Item>| {
            let nats = self.clone();
            async move { Ok(nats.store(batch.into_vec()).await) }
        }))
    }

    async fn store(&self, items: Vec<Item>) -> Vec<Result<Stored, StoreError>> {
        let count = items.len();
        if !self.is_up() {
            return vec![Err(self.away()); count];
        }
        let subject = self.subject();
        let messages = items.into_iter().map(|Item { id, payload, .. }| {
            let message = Publish::new(subject.clone(), payload);
            match id.is_empty() {
                true => message,
                false => message.message_id(&*id),
            }
        });
        let batch = Batch::new(messages);
        let mut publish = self.publish.clone();
        let told = match publish.ready().await {
            Ok(publish) => publish.call(batch).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(told) => {
                let told = told.into_iter();
                told.map(|told| match told {
                    Ok(ack) if ack.duplicate => Ok(Stored::Duplicate),
                    Ok(_) => Ok(Stored::New),
                    Err(error) => Err(self.refusal(&error)),
                })
                .collect()
            }
            Err(error) => vec![Err(self.refusal(&error)); count],
        }
    }

    fn refusal(&self, error: &Error) -> StoreError {
        match error.kind() {
            ErrorKind::TooLarge { .. } => StoreError::TooLarge(error.to_string()),
            ErrorKind::Refused { code } if FULL.contains(&code) => {
                let most = self.most;
                StoreError::Full(format!(
                    "the stream takes no more than {most} items: {error}; retry later or raise --queue or --workers"
                ))
            }
            ErrorKind::Disconnected { .. } | ErrorKind::Closed if !self.is_up() => self.away(),
            kind => {
                if matches!(kind, ErrorKind::NoStream | ErrorKind::NoResponders) {
                    self.missing.notify_one();
                }
                StoreError::Unavailable(error.to_string())
            }
        }
    }

    pub(super) async fn next(&self) -> Option<Delivery> {
        loop {
            let message = self.deliveries.lock().await.recv().await?;
            let Ok(info) = message.info() else {
                continue;
            };
            let key = (info.stream_sequence, info.published.unix_timestamp_nanos());
            let receipt = Box::new(Receipt { key, message });
            if self.processed().contains(&key) {
                self.acknowledge(&receipt).await;
                continue;
            }
            let headers = receipt.message.headers.as_ref();
            let id = headers.and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID));
            return Some(Delivery {
                id: id.map_or("", |id| id.as_str()).into(),
                payload: receipt.message.payload.clone(),
                receipt: super::Receipt::Nats(receipt),
            });
        }
    }

    pub(super) async fn done(&self, receipt: Box<Receipt>) {
        self.processed().insert(receipt.key);
        self.acknowledge(&receipt).await;
    }

    /// Tells the server now and then that the item is being processed, so that nobody else gets it.
    pub(super) async fn hold(&self, receipt: &Receipt) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(self.options.ack_wait / 3).await;
            let _ = receipt.message.ack_with(jetstream::AckKind::Progress).await;
        }
    }

    /// Until the server says that it knows. If it never does it delivers the item again, and whoever gets it here finds that
    /// it was processed.
    async fn acknowledge(&self, receipt: &Receipt) {
        for _ in 0..TRIES {
            if receipt.message.double_ack().await.is_ok() {
                return;
            }
            if !self.connected(self.options.ack_wait).await {
                return;
            }
        }
    }

    /// Whether there is a connection, now or within `wait`.
    async fn connected(&self, wait: Duration) -> bool {
        let mut publish = self.publish.clone();
        let ready = tokio::time::timeout(wait, publish.ready()).await;
        matches!(ready, Ok(Ok(_)))
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// After the workers: what they said last is on its way.
    pub(super) async fn finish(&self) {
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
        let _ = tokio::time::timeout(FLUSH, self.client.flush()).await;
    }

    fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn away(&self) -> StoreError {
        let url = &self.url;
        let why = self.trouble.lock().clone();
        let why = why.unwrap_or_else(|| "the connection is lost".to_owned());
        StoreError::Unavailable(format!("NATS at {url} cannot be reached: {why}"))
    }

    fn subject(&self) -> String {
        format!("ingest.{}", self.options.name)
    }

    fn processed(&self) -> MutexGuard<'_, Seen<(u64, i128)>> {
        self.processed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("url", &self.url)
            .field("stream", &self.options.name)
            .finish_non_exhaustive()
    }
}

/// The address without the user, password or token in it, which are not for everybody's eyes; and those.
fn split(url: &str) -> (String, Option<(&str, Option<&str>)>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let Some((secret, host)) = rest.rsplit_once('@') else {
        return (url.to_owned(), None);
    };
    let secret = match secret.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (secret, None),
    };
    (format!("{scheme}://{host}"), Some(secret))
}

/// Connects now, or, if nobody is there, as soon as somebody is.
async fn connect(
    url: &str,
    secret: Option<(&str, Option<&str>)>,
    trouble: &Arc<Trouble>,
) -> Result<Client, BoxError> {
    let options = || {
        let trouble = trouble.clone();
        let options = match secret {
            Some((user, Some(password))) => {
                ConnectOptions::new().user_and_password(user.to_owned(), password.to_owned())
            }
            Some((token, None)) => ConnectOptions::new().token(token.to_owned()),
            None => ConnectOptions::new(),
        };
        options
            .name("ingest")
            .connection_timeout(Duration::from_secs(2))
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(50 << attempt.min(5)).min(Duration::from_secs(1))
            })
            .event_callback(move |event| {
                trouble.note(&event);
                std::future::ready(())
            })
    };
    match options().connect(url).await {
        Ok(client) => Ok(client),
        Err(error) => match error.kind() {
            ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns => {
                eprintln!("NATS at {url} cannot be reached yet: {error}");
                *trouble.lock() = Some(error.to_string());
                Ok(options().retry_on_initial_connect().connect(url).await?)
            }
            _ => {
                let what = "see the user, password or token in --store";
                Err(format!("NATS at {url} does not let us in: {error}; {what}").into())
            }
        },
    }
}

// ===== impl Trouble =====

impl Trouble {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => *self.lock() = None,
            Event::ServerError(_) | Event::ClientError(_) => *self.lock() = Some(event.to_string()),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
