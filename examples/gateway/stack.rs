//! The layers, in their order, by what was asked for.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt as _};
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::grpc::GrpcServerLayer;
use tower_flow::pool::ConnPool;
use tower_flow::pool::connect;
use tower_flow::profile::ProfileLayer;
use tower_flow::shed::{
    ByGrpcStatus, ByStatus, ClassifyResponse, Queue, Reject, ShedLayer, Verdict,
};
use tower_flow::throttle::ThrottleLayer;
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow};

use crate::answer::{self, is_grpc};
use crate::connector::Connector;
use crate::flags::{Flags, Shed};
use crate::origin::Origin;
use crate::tls;
use crate::upload::Upload;
use crate::upstream::{Balance, Target};

/// The bodies of all answers.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Any number of layers round the upstreams.
pub(crate) type Stack = BoxCloneSyncService<Request<Upload>, Response<Body>, BoxError>;

/// What requests go through, by their kind.
#[derive(Clone)]
pub(crate) struct Stacks {
    pub(crate) http: Stack,
    /// With accounting, outermost.
    pub(crate) grpc: Stack,
    pub(crate) tls: bool,
    pub(crate) max_body: Option<u64>,
    /// How long nothing may come.
    pub(crate) timeout: Duration,
}

/// What layers make of a [`Stack`].
trait Layered<B>:
    Service<Request<Upload>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S, B> Layered<B> for S where
    S: Service<Request<Upload>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Judges gRPC calls by their status, and all else by HTTP's.
#[derive(Debug, Clone, Copy)]
struct ByProtocol;

pub(crate) fn build(flags: &Flags, flow: &Flow) -> Result<Stacks, BoxError> {
    let origin = Origin::new(pool(flags, flow)?, flags.timeout);
    let mut stack = match flags.throttle {
        true => {
            let throttle = ThrottleLayer::new("gateway").attach(flow).http();
            let throttle = throttle.layer(origin).map_err(BoxError::from);
            boxed(Balance::new(throttle, &flags.upstreams))
        }
        false => boxed(Balance::new(origin, &flags.upstreams)),
    };
    if let Some(shed) = &flags.shed {
        stack = layered(stack, shedding(shed, flow));
    }
    if flags.coalesce {
        stack = layered(stack, CoalesceLayer::http().name("gateway").attach(flow));
    }
    if flags.profile {
        stack = layered(stack, ProfileLayer::new("gateway").attach(flow).http());
    }
    if flags.admin.is_some() {
        stack = layered(stack, TimingLayer::new("gateway").attach(flow).http());
    }
    let http = answering(stack.clone(), false);
    let mut grpc = answering(stack, true);
    if let Some(descriptors) = &flags.grpc_metrics {
        let mut accounting = GrpcServerLayer::new();
        if let Some(path) = descriptors {
            let named = |error: BoxError| format!("{}: {error}", path.display());
            let read = std::fs::read(path).map_err(|error| named(error.into()))?;
            let registered = accounting.register_fds(&read);
            accounting = registered.map_err(|error| named(error.into()))?;
        }
        // It counts what passes in a body round the upload; within it that is an upload again.
        let inner =
            grpc.map_request(|req: Request<_>| req.map(|body| Upload::new(body, None, false)));
        grpc = whole(accounting.attach(flow).layer(inner));
    }
    Ok(Stacks {
        http,
        grpc,
        tls: flags.tls.is_some(),
        max_body: flags.max_body,
        timeout: flags.timeout,
    })
}

fn pool(flags: &Flags, flow: &Flow) -> Result<ConnPool<Upload>, BoxError> {
    let mut tls = connect::https();
    if let Some(path) = &flags.upstream_ca {
        tls = tls.roots(tls::roots(path)?);
    }
    let pool = ConnPool::builder(Connector::new(tls, Target::h2c(&flags.upstreams)))
        .name("gateway")
        .max_connections(flags.max_connections)
        .max_connections_per_host(flags.max_connections_per_host)
        .max_idle(flags.max_connections)
        .max_idle_per_host(flags.max_connections_per_host)
        .max_connecting_per_host(64)
        .max_pending_per_host(16_384)
        .acquire_timeout(flags.acquire_timeout)
        .connect_timeout(flags.connect_timeout)
        .timings(flags.admin.is_some())
        .host_metrics(flags.upstreams.len())
        .attach(flow);
    Ok(pool.build())
}

type Shedding = ShedLayer<
    tower_flow::shed::HttpTriage,
    tower_flow::shed::Http<ByProtocol, tower_flow::shed::AsError>,
>;

/// Refuses with an error, so that the answer is made where all are.
fn shedding(shed: &Shed, flow: &Flow) -> Shedding {
    let mut layer = match shed.limit {
        Some(limit) => ShedLayer::fixed(limit),
        None => ShedLayer::adaptive(),
    };
    if let Some(queue) = shed.queue {
        layer = layer.queue(Queue::codel().max(queue));
    }
    let mut layer = layer.name("gateway").http();
    if let Some(name) = &shed.priority {
        layer = layer.priority_header(name.clone());
    }
    layer
        .classify_response(ByProtocol)
        .reject(Reject::error())
        .attach(flow)
}

/// `stack` in `layer`.
fn layered<L, B>(stack: Stack, layer: L) -> Stack
where
    L: Layer<Stack, Service: Layered<B>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    whole(layer.layer(stack))
}

/// A service with whatever a layer makes of bodies and errors.
fn whole<S, B>(service: S) -> Stack
where
    S: Layered<B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service = service.map_err(Into::into);
    boxed(service.map_response(|response: Response<B>| {
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }))
}

/// Makes errors answers, inside the accounting that counts them.
fn answering(stack: Stack, grpc: bool) -> Stack {
    boxed(stack.map_result(move |answered: Result<_, BoxError>| {
        Ok(answered.unwrap_or_else(|error| answer::of(error.as_ref(), grpc)))
    }))
}

fn boxed<S>(service: S) -> Stack
where
    S: Service<Request<Upload>, Response = Response<Body>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    BoxCloneSyncService::new(service)
}

impl ClassifyResponse for ByProtocol {
    fn head<B>(&self, response: &Response<B>) -> Option<Verdict> {
        match is_grpc(response.headers()) {
            true => ByGrpcStatus::default().head(response),
            false => ByStatus::default().head(response),
        }
    }

    fn end(&self, trailers: Option<&HeaderMap>) -> Verdict {
        ByGrpcStatus::default().end(trailers)
    }
}
