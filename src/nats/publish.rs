use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Message, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tower_service::Service;

use super::error::{Error, ErrorKind};
use super::gather::Gather;
use super::line::{Line, Seat, Tickets};
use super::message::Publish;
use crate::base::clock::{self, Instant};
use crate::middleware::batch::Batch;

/// Stores batches of messages in JetStream; see the [module docs](super).
pub struct JetStreamPublish {
    line: Arc<Line>,
    seat: Seat,
    options: Options,
    /// A permit for each message that may wait for its acknowledgement.
    room: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy)]
struct Options {
    ack_timeout: Duration,
    max_in_flight: usize,
}

/// The answers to a batch, one for each message.
///
/// Dropped it sends nothing more and waits for nothing; what was sent is stored, or not.
#[must_use = "nothing is sent before it is polled"]
pub struct PublishFuture(Pin<Box<dyn Future<Output = Answer> + Send + 'static>>);

type Answer = Result<Vec<Result<PublishAck, Error>>, Error>;

// ===== impl JetStreamPublish =====

impl JetStreamPublish {
    /// Publishes over the connection of `context`, which others may use too.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime: a task hands out what comes.
    pub fn new(context: JetStream) -> Self {
        let line = Line::new(context.client());
        Self {
            seat: line.seat(),
            line,
            options: Options {
                ack_timeout: Duration::from_secs(5),
                max_in_flight: 4_096,
            },
            room: Arc::new(Semaphore::new(4_096)),
        }
    }

    /// 5 seconds (default) without an acknowledgement is too late: counted from the last message of a batch that was
    /// sent, and for what could not be sent yet from the one before.
    #[must_use]
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.options.ack_timeout = timeout;
        self
    }

    /// 4,096 messages (default) may wait for their acknowledgements at a time, those of all clones made from here on
    /// together. Others are sent as these come.
    ///
    /// # Panics
    ///
    /// When `max` is 0: nothing could be sent.
    #[must_use]
    pub fn max_in_flight(mut self, max: usize) -> Self {
        assert!(max > 0, "max_in_flight of 0 would let nothing through");
        let max = max.min(Semaphore::MAX_PERMITS);
        self.options.max_in_flight = max;
        self.room = Arc::new(Semaphore::new(max));
        self
    }
}

impl Service<Batch<Publish>> for JetStreamPublish {
    type Response = Vec<Result<PublishAck, Error>>;
    type Error = Error;
    type Future = PublishFuture;

    /// Ready while there is a connection. It reserves nothing.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.seat.poll_up(cx)
    }

    fn call(&mut self, batch: Batch<Publish>) -> PublishFuture {
        let sending = Sending {
            line: self.line.clone(),
            room: self.room.clone(),
            options: self.options,
        };
        PublishFuture(Box::pin(sending.run(batch.into_vec())))
    }
}

impl Clone for JetStreamPublish {
    /// Over the same connection; it waits for nothing yet.
    fn clone(&self) -> Self {
        Self {
            line: self.line.clone(),
            seat: self.seat.clone(),
            options: self.options,
            room: self.room.clone(),
        }
    }
}

impl fmt::Debug for JetStreamPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamPublish")
            .field("line", &self.line)
            .field("ack_timeout", &self.options.ack_timeout)
            .field("room", &self.room.available_permits())
            .finish_non_exhaustive()
    }
}

impl Future for PublishFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for PublishFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishFuture").finish_non_exhaustive()
    }
}

// ===== how it is done =====

struct Sending {
    line: Arc<Line>,
    room: Arc<Semaphore>,
    options: Options,
}

impl Sending {
    async fn run(self, items: Vec<Publish>) -> Answer {
        let subjects: Vec<_> = items.iter().map(|item| item.subject().clone()).collect();
        let gather = Arc::new(Gather::new(items.len()));
        let tickets = self.line.reserve(items.len());
        self.send(items, &gather, &tickets).await?;
        let full = poll_fn(|cx| gather.poll_full(cx));
        match self.late() {
            Some(late) => drop(timeout_at(late, full).await),
            None => full.await,
        }
        drop(tickets);
        let answers = gather.take().into_iter().zip(&subjects);
        let answers = answers.map(|(answer, subject)| match answer {
            Some(Ok(message)) => read(&message, subject),
            Some(Err(error)) => Err(error),
            None => Err(Error::unacknowledged(subject, self.options.ack_timeout)),
        });
        Ok(answers.collect())
    }

    /// Sends what it may, in order. It fails when that is nothing for want of a connection.
    async fn send(
        &self,
        items: Vec<Publish>,
        gather: &Arc<Gather>,
        tickets: &Tickets,
    ) -> Result<(), Error> {
        self.opened().await?;
        let (all, mut sent) = (items.len(), 0);
        for (place, item) in items.into_iter().enumerate() {
            let fits = item.parts.check(self.line.max_payload());
            let done = match fits {
                Ok(()) => self.send_one(item, place, gather, tickets).await,
                Err(error) => Err(error),
            };
            let Err(error) = done else {
                sent += 1;
                continue;
            };
            tickets.withdraw(place);
            match error.kind() {
                // It fails alone.
                ErrorKind::TooLarge { .. } | ErrorKind::Malformed => gather.put(place, Err(error)),
                _ if sent == 0 => return Err(error),
                _ => {
                    for place in place..all {
                        gather.put(place, Err(error.again()));
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits until answers have somewhere to go to.
    async fn opened(&self) -> Result<(), Error> {
        let mut seat = self.line.seat();
        let Some(late) = self.late() else {
            return seat.opened().await;
        };
        match timeout_at(late, seat.opened()).await {
            Ok(opened) => opened,
            Err(_) => Err(self.unsent()),
        }
    }

    async fn send_one(
        &self,
        item: Publish,
        place: usize,
        gather: &Arc<Gather>,
        tickets: &Tickets,
    ) -> Result<(), Error> {
        let mut roomy = false;
        let work = async {
            let permit = self.room.clone().acquire_owned().await;
            let permit = permit.map_err(|_| Error::closed())?;
            roomy = true;
            if !self.line.is_up() {
                return Err(Error::disconnected(false));
            }
            // The entry comes first: an answer may be back before `send` is.
            tickets.expect(gather, place, permit)?;
            self.line.send(item.parts, tickets.id(place)).await
        };
        let Some(late) = self.late() else {
            return work.await;
        };
        match timeout_at(late, work).await {
            Ok(sent) => sent,
            Err(_) if !roomy && self.line.is_up() => {
                let (after, max) = (self.options.ack_timeout, self.options.max_in_flight);
                Err(Error::no_room(after, max))
            }
            Err(_) => Err(self.unsent()),
        }
    }

    /// When it is too late for what is begun now.
    fn late(&self) -> Option<Instant> {
        clock::now().checked_add(self.options.ack_timeout)
    }

    /// Why nothing could be sent for so long.
    fn unsent(&self) -> Error {
        match self.line.is_up() {
            true => Error::slow(self.options.ack_timeout),
            false => Error::disconnected(false),
        }
    }
}

/// What JetStream says to a message to `subject`.
fn read(message: &Message, subject: &str) -> Result<PublishAck, Error> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Error::no_stream(subject));
    }
    match serde_json::from_slice(&message.payload) {
        Ok(Response::Ok(ack)) => Ok(ack),
        Ok(Response::Err { error }) => Err(Error::refused(error)),
        Err(error) => Err(Error::garbled(error)),
    }
}
