//! The task that asks the server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context as JetStream, ErrorCode, stream};
use async_nats::{Request, StatusCode};
use bytes::Bytes;
use tokio::time::{sleep, sleep_until, timeout};

use super::super::line::Line;
use super::State;
use super::core::{Consumer, Stream, Trouble};
use crate::base::clock;

/// How often the connection is looked at while it is gone.
const LOOK: Duration = Duration::from_millis(100);
/// The server has so long to answer, or as long as the pause between two questions if that is longer.
const ANSWER: Duration = Duration::from_secs(1);

/// Whom to ask: by an inbox of our own, so that a question fails with its connection and leaves nothing behind.
struct Server {
    context: JetStream,
    line: Arc<Line>,
    patience: Duration,
}

/// Asks when it is time to, for as long as somebody wants to know.
pub(super) async fn run(context: JetStream, state: Arc<State>, every: Duration) {
    let client = context.client();
    let server = Server {
        line: Line::new(client.clone()),
        context,
        patience: every.max(ANSWER),
    };
    loop {
        let due = state.lock().0.due();
        if let Some(due) = due.filter(|due| *due > clock::now()) {
            // A message that comes meanwhile puts it off.
            sleep_until(due.min(clock::now() + every)).await;
        }
        if client.connection_state() != Connection::Connected {
            let why = "there is no connection to the server";
            state.failed(Trouble::Away, why.to_owned());
            while client.connection_state() != Connection::Connected {
                sleep(LOOK).await;
            }
            // Many come back at once.
            sleep(every.mul_f64((jitter() - 0.75) / 2.0)).await;
            state.lock().0.back();
        }
        if !state.lock().0.ask(clock::now(), jitter()) {
            continue;
        }
        let _asking = Asking(&state);
        match ask(&server, &state).await {
            Ok((facts, stream)) => {
                let mut locked = state.lock();
                locked.0.polled(clock::now(), facts, stream);
                locked.1 = None;
            }
            Err((trouble, why)) => state.failed(trouble, why),
        }
    }
}

/// However a poll ends, it is under way no more.
struct Asking<'a>(&'a State);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().0.forget();
    }
}

impl State {
    fn failed(&self, trouble: Trouble, why: String) {
        let mut locked = self.lock();
        locked.0.failed(clock::now(), trouble);
        locked.1 = Some(why);
    }
}

type Asked = Result<(Consumer, Option<Stream>), (Trouble, String)>;

async fn ask(server: &Server, state: &State) -> Asked {
    let subject = format!("CONSUMER.INFO.{}.{}", state.stream, state.consumer);
    let info = server.ask(&subject).await;
    let info: Result<Response<Info>, _> =
        info.and_then(|said| serde_json::from_slice(&said).map_err(|why| unread(&subject, &why)));
    let facts = match info {
        Ok(Response::Ok(info)) => read(&info),
        Ok(Response::Err { error }) => {
            let trouble = match error.error_code() {
                ErrorCode::CONSUMER_NOT_FOUND => Trouble::ConsumerMissing,
                ErrorCode::STREAM_NOT_FOUND => Trouble::StreamMissing,
                _ => Trouble::Away,
            };
            return Err((trouble, error.to_string()));
        }
        Err(why) => return Err((Trouble::Away, why)),
    };
    if !state.lock().0.doubts(&facts) {
        return Ok((facts, None));
    }
    // May be forbidden, and is only a second opinion.
    let subject = format!("STREAM.INFO.{}", state.stream);
    let said = server.ask(&subject).await.unwrap_or_default();
    let info: Result<Response<stream::Info>, _> = serde_json::from_slice(&said);
    let stream = match info {
        Ok(Response::Ok(info)) => Some(Stream {
            messages: info.state.messages,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        }),
        _ => None,
    };
    Ok((facts, stream))
}

impl Server {
    /// What the API says to `subject`, or why it says nothing.
    async fn ask(&self, subject: &str) -> Result<Bytes, String> {
        let asked = async {
            let mut seat = self.line.seat();
            seat.opened().await.map_err(|error| error.to_string())?;
            let expected = self.line.expect_one();
            let (tickets, answer) = expected.map_err(|error| error.to_string())?;
            let inbox = self.line.reply(tickets.id(0));
            let request = Request::new().inbox(inbox);
            let sent = self.context.send_request(subject.to_owned(), request).await;
            sent.map_err(|error| error.to_string())?;
            let gone = |_| "the connection went away while the server was asked".to_owned();
            answer.await.map_err(gone)
        };
        let message = match timeout(self.patience, asked).await {
            Ok(answer) => answer?,
            Err(_) => return Err(format!("no answer on {subject} within {:?}", self.patience)),
        };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err("JetStream does not answer: it is off, or not up yet".into());
        }
        Ok(message.payload)
    }
}

fn unread(subject: &str, why: &serde_json::Error) -> String {
    format!("what {subject} answers cannot be read: {why}")
}

fn read(info: &Info) -> Consumer {
    let config = &info.config;
    let filtered = !config.filter_subject.is_empty() || !config.filter_subjects.is_empty();
    let max = u64::try_from(config.max_ack_pending).ok();
    Consumer {
        pending: info.num_pending,
        ack_pending: info.num_ack_pending as u64,
        waiting: info.num_waiting as u64,
        redelivered: info.num_redelivered as u64,
        max_ack_pending: max.filter(|max| *max > 0 && config.ack_policy != AckPolicy::None),
        ack_wait: config.ack_wait,
        deliveries: info.delivered.consumer_sequence,
        delivered: info.delivered.stream_sequence,
        ack_floor: info.ack_floor.stream_sequence,
        takes_all: !filtered && config.deliver_policy == DeliverPolicy::All,
    }
}

/// A factor between 0.75 and 1.25, so that those who began together do not ask together.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // A new state is a new random number; nothing here depends on its quality.
    let bits = RandomState::new().hash_one(0u8) >> 11;
    0.75 + 0.5 * bits as f64 / (1u64 << 53) as f64
}
