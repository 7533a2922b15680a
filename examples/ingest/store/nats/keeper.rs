//! What keeps deliveries coming: it makes the stream and the consumer, and makes them again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tower_flow::BoxError;

use super::{CONSUMER, Nats};

/// How long the server knows ids.
const DUPLICATES: Duration = Duration::from_secs(120);

/// The server says so often that it is there; without a word for twice as long, deliveries are asked for anew.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a request for deliveries stands.
const EXPIRES: Duration = Duration::from_secs(30);

const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How many deliveries of all processes may be without an acknowledgement.
const UNACKNOWLEDGED: i64 = 65_536;

impl Nats {
    /// Hands deliveries to `out` until it is closed.
    pub(super) async fn keep(self: Arc<Self>, out: mpsc::Sender<Message>) {
        let mut pause = SHORTEST_PAUSE;
        let mut said = String::new();
        loop {
            let mut some = false;
            let Err(error) = self.pull(&out, &mut some).await else {
                return;
            };
            let why = error.to_string();
            if why != said && self.is_up() {
                eprintln!("no deliveries, asking again: {why}");
                said = why;
            }
            pause = if some {
                SHORTEST_PAUSE
            } else {
                (2 * pause).min(LONGEST_PAUSE)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.closing() => return,
            }
        }
    }

    /// Hands deliveries on until it is closed, or something is wrong; tells in `some` whether there were any.
    async fn pull(&self, out: &mpsc::Sender<Message>, some: &mut bool) -> Result<(), BoxError> {
        let consumer = tokio::select! {
            consumer = self.prepare() => consumer?,
            () = self.closing() => return Ok(()),
        };
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(self.prefetch)
            .heartbeat(HEARTBEAT)
            .expires(EXPIRES)
            .messages()
            .await?;
        let mut closing = pin!(self.closing());
        loop {
            let message = tokio::select! {
                message = messages.next() => message.ok_or("the deliveries ended")??,
                () = self.missing.notified() => return Err("the stream seems to be gone".into()),
                () = &mut closing => break,
            };
            *some = true;
            self.lag.observe(&message);
            tokio::select! {
                room = out.reserve() => room?.send(message),
                () = &mut closing => {
                    give_back(&message).await;
                    break;
                }
            }
        }
        // What has come and nobody has taken is for another process.
        while let Some(Some(Ok(message))) = messages.next().now_or_never() {
            give_back(&message).await;
        }
        Ok(())
    }

    async fn closing(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Makes the stream and the consumer if they are missing.
    pub(super) async fn prepare(&self) -> Result<PullConsumer, BoxError> {
        let name = &self.options.name;
        let config = Config {
            name: name.clone(),
            subjects: vec![self.subject()],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            max_messages: i64::try_from(self.most)?,
            max_bytes: i64::try_from(self.most_bytes)?,
            duplicate_window: DUPLICATES,
            ..Config::default()
        };
        let stream = self.context.get_or_create_stream(config).await;
        let stream =
            stream.map_err(|error| format!("the stream {name:?} cannot be made: {error}"))?;
        let config = &stream.cached_info().config;
        if config.retention != RetentionPolicy::WorkQueue
            || !config.subjects.contains(&self.subject())
        {
            let subject = self.subject();
            return Err(format!(
                "the stream {name:?} is there and is no work queue of {subject:?}; name another with --stream"
            )
            .into());
        }
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.ack_wait,
            max_ack_pending: UNACKNOWLEDGED,
            ..pull::Config::default()
        };
        let consumer = stream.get_or_create_consumer(CONSUMER, config).await;
        consumer
            .map_err(|error| format!("the consumer {CONSUMER:?} cannot be made: {error}").into())
    }
}

/// If that fails it is delivered again all the same, later.
async fn give_back(message: &Message) {
    let _ = message.ack_with(AckKind::Nak(None)).await;
}
