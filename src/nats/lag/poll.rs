//! The task that asks the server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info};
use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context as JetStream, ErrorCode, stream};
use serde_json::json;
use tokio::time::{sleep, sleep_until};

use super::State;
use super::core::{Consumer, Stream, Trouble};
use crate::base::clock;

/// How often the connection is looked at while it is gone.
const LOOK: Duration = Duration::from_millis(100);

/// Asks when it is time to, for as long as somebody wants to know.
pub(super) async fn run(context: JetStream, state: Arc<State>, every: Duration) {
    let client = context.client();
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
            sleep(LOOK.mul_f64(jitter() - 0.5)).await;
            state.lock().0.back();
        }
        if !state.lock().0.ask(clock::now(), jitter()) {
            continue;
        }
        let _asking = Asking(&state);
        match ask(&context, &state).await {
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

async fn ask(context: &JetStream, state: &State) -> Asked {
    let subject = format!("CONSUMER.INFO.{}.{}", state.stream, state.consumer);
    let info: Result<Response<Info>, _> = context.request(subject, &json!({})).await;
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
        Err(error) => return Err((Trouble::Away, told(&error))),
    };
    if !state.lock().0.doubts(&facts) {
        return Ok((facts, None));
    }
    // May be forbidden, and is only a second opinion.
    let subject = format!("STREAM.INFO.{}", state.stream);
    let info: Result<Response<stream::Info>, _> = context.request(subject, &json!({})).await;
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

fn told(error: &RequestError) -> String {
    match error.kind() {
        RequestErrorKind::NoResponders => {
            "JetStream does not answer: it is off, or not up yet".into()
        }
        _ => error.to_string(),
    }
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
