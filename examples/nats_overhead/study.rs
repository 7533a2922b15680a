//! Both ways of calling the store, in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::{Client, Message as NatsMessage};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use prost::Message;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::BoxError;
use tower_flow::inspect::HotPath;
use tower_flow::nats::{NatsRequest, NatsService};
use tower_flow::profile::{ProfileHandle, ProfileLayer, Profiled, Profiler};

use super::Settings;
use super::measure::{Round, Stopwatch, Ticks, cpu};
use super::report::{Breakdown, Study};
use super::server::Server;
use super::split::split;
use super::work::{ChatEvent, Store};

const SUBJECT: &str = "chat.write";

/// The profiled layers, outermost first, and which way they are on.
pub const LAYERS: [(&str, &str); 5] = [
    ("caller, directly", "direct"),
    ("store, directly", "direct"),
    ("caller, by NATS", "NATS"),
    ("responder, by NATS", "NATS"),
    ("store, by NATS", "NATS"),
];

/// Encodes an event and hands it to the store.
#[derive(Clone)]
struct Direct<S>(S);

/// Encodes an event and sends it to whoever has the store.
#[derive(Clone)]
struct ByNats(NatsService);

type Writing = BoxFuture<'static, Result<u64, BoxError>>;

impl<S> Service<ChatEvent> for Direct<S>
where
    S: Service<Bytes, Response = u64, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = u64;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, event: ChatEvent) -> S::Future {
        self.0.call(event.encode_to_vec().into())
    }
}

impl Service<ChatEvent> for ByNats {
    type Response = u64;
    type Error = BoxError;
    type Future = Writing;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, event: ChatEvent) -> Writing {
        let req = NatsRequest::new(SUBJECT).payload(event.encode_to_vec());
        let answer = self.0.call(req);
        Box::pin(async move {
            let answer = answer.await?;
            let number = answer.payload().as_ref().try_into();
            Ok(u64::from_le_bytes(number?))
        })
    }
}

/// Answers requests with what the store answers.
async fn respond<S>(client: Client, store: S, profile: ProfileLayer) -> Result<(), BoxError>
where
    S: Service<Bytes, Response = u64, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut asked = client.subscribe(SUBJECT).await?;
    // The server has read the subscription once it answers what came after it.
    let inbox = client.new_inbox();
    let mut own = client.subscribe(inbox.clone()).await?;
    client.publish(inbox, Default::default()).await?;
    own.next().await;
    let answer = service_fn(move |message: NatsMessage| {
        let (store, client) = (store.clone(), client.clone());
        async move {
            let number = store.oneshot(message.payload).await?;
            let reply = message.reply.ok_or("a request to answer to nobody")?;
            let payload = number.to_le_bytes().to_vec();
            client.publish(reply, payload.into()).await?;
            Ok::<_, BoxError>(())
        }
    });
    let mut answer = ServiceBuilder::new().layer(profile).service(answer);
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let answered = async { answer.ready().await?.call(message).await };
            if let Err(error) = answered.await {
                eprintln!("nats_overhead: a request is not answered: {error}");
            }
        }
    });
    Ok(())
}

/// Calls from so many tasks for so long.
async fn round<S>(service: &S, callers: usize, length: Duration) -> Result<Round, BoxError>
where
    S: Service<ChatEvent, Response = u64, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    let calls = Arc::new(AtomicU64::new(0));
    let watch = Stopwatch::start();
    let end = Instant::now() + length;
    let tasks = (0..callers).map(|_| {
        let (mut service, calls) = (service.clone(), calls.clone());
        tokio::spawn(async move {
            while Instant::now() < end {
                // A caller that never waits lets the others run now and then, as one that does.
                for _ in 0..16 {
                    let event = ChatEvent::number(calls.fetch_add(1, Ordering::Relaxed));
                    service.ready().await?.call(event).await?;
                }
                tokio::task::yield_now().await;
            }
            Ok::<_, BoxError>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(watch.stop(calls.load(Ordering::Relaxed)))
}

/// What encoding and decoding one event takes, alone.
fn serialising() -> Duration {
    const EVENTS: u32 = 20_000;
    let start = cpu();
    for n in 0..EVENTS {
        let encoded = ChatEvent::number(n.into()).encode_to_vec();
        std::hint::black_box(ChatEvent::decode(&encoded[..]).is_ok());
    }
    cpu().saturating_sub(start) / EVENTS
}

pub async fn run(settings: Settings) -> Result<Study, BoxError> {
    let server = match &settings.server {
        Some(_) => None,
        None => Some(Server::start()?),
    };
    let own = server.as_ref().map(|server| server.url.clone());
    let url = settings.server.clone().or(own).unwrap_or_default();
    let connect = || async_nats::connect(&url);
    let said = |error| format!("{error}; is there a NATS server at {url}?");
    let (asking, answering) = (
        connect().await.map_err(said)?,
        connect().await.map_err(said)?,
    );
    let version = asking.server_info().version;

    // One store, and a profile of it for each way, so that neither is shown with the other's calls.
    let layers = LAYERS.map(|(name, _)| ProfileLayer::new(name));
    let [direct, direct_store, nats, responder, nats_store] = layers.clone();
    let store = Store::default();
    let profiled = |layer: ProfileLayer| -> Profiled<_, _> {
        ServiceBuilder::new().layer(layer).service(store.clone())
    };
    respond(answering, profiled(nats_store), responder).await?;
    let service = Direct(profiled(direct_store));
    let direct = ServiceBuilder::new().layer(direct).service(service);
    let service = ByNats(NatsService::new(asking));
    let nats = ServiceBuilder::new().layer(nats).service(service);

    // Nine tenths for the figures, the rest for the profile; a first round of each warms up.
    let rounds = if settings.seconds < 5.0 { 3 } else { 9 };
    let length = Duration::from_secs_f64(settings.seconds * 0.8 / (2 * rounds + 2) as f64);
    round(&direct, settings.callers, length).await?;
    round(&nats, settings.callers, length).await?;
    let before = hot(&layers);
    let id = server.as_ref().map(|server| server.id().to_string());
    let ticks = || id.as_deref().map(Ticks::of).transpose();
    let (mut found, mut servers) = ([Vec::new(), Vec::new()], Duration::ZERO);
    for turn in 0..rounds {
        // Who comes first takes turns too.
        for which in [turn % 2, 1 - turn % 2] {
            let start = ticks()?;
            found[which].push(match which {
                0 => round(&direct, settings.callers, length).await?,
                _ => round(&nats, settings.callers, length).await?,
            });
            if let (1, Some(start), Some(end)) = (which, start, ticks()?) {
                servers += end.since(start).total();
            }
        }
    }
    let hot = since(hot(&layers), &before);
    let profiled = Duration::from_secs_f64(settings.seconds * 0.2);
    let profiler = Profiler::start(999);
    let start = Ticks::of("self")?;
    let split_round = round(&nats, settings.callers, profiled).await?;
    let ticks = Ticks::of("self")?.since(start);
    let breakdown = match profiler.and_then(Profiler::stop) {
        Ok(profile) => Breakdown::Sampled {
            samples: split(&profile.folded()),
            ticks,
            calls: split_round.calls,
            cost: profile.counts().cost,
        },
        Err(error) => Breakdown::Sections {
            why: error.to_string(),
            serialising: serialising(),
            ticks,
            calls: split_round.calls,
        },
    };
    let [direct, nats] = found;
    Ok(Study {
        settings,
        version,
        own: server.is_some(),
        rounds,
        length,
        direct,
        nats,
        server: server.is_some().then_some(servers),
        hot,
        breakdown,
        event: ChatEvent::number(1).encoded_len(),
    })
}

fn hot(layers: &[ProfileLayer]) -> Vec<HotPath> {
    let handles = layers.iter().map(|layer| layer.handle());
    handles
        .flat_map(|handle: ProfileHandle| handle.hot())
        .collect()
}

/// What the figures grew by, the greatest first.
fn since(now: Vec<HotPath>, before: &[HotPath]) -> Vec<HotPath> {
    let mut grown: Vec<_> = now
        .into_iter()
        .map(|mut path| {
            let was = before.iter().find(|was| {
                (&was.layer, &was.route, was.stage) == (&path.layer, &path.route, path.stage)
            });
            if let Some(was) = was {
                path.polls -= was.polls;
                path.busy = path.busy.saturating_sub(was.busy);
                path.total = path.total.saturating_sub(was.total);
            }
            path
        })
        .collect();
    grown.sort_by_key(|path| std::cmp::Reverse(path.busy));
    grown
}
