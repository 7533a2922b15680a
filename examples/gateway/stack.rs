//! The layers, in their order, by what was asked for.

use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tower::{Layer as _, ServiceExt as _};
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
use crate::erased::Stack;
use crate::flags::{Flags, Shed};
use crate::origin::Origin;
use crate::tls;
use crate::upload::Upload;
use crate::upstream::{Balance, Target};

/// What requests go through, by their kind.
#[derive(Clone)]
pub(crate) struct Stacks {
    pub(crate) http: Stack,
    /// With accounting, outermost.
    pub(crate) grpc: Stack,
    pub(crate) tls: bool,
    /// Whether an upstream can answer `Expect` for us to see.
    pub(crate) holds: bool,
    pub(crate) max_body: Option<u64>,
    /// How long nothing may come.
    pub(crate) timeout: Duration,
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
            Stack::of(Balance::new(throttle, &flags.upstreams))
        }
        false => Stack::of(Balance::new(origin, &flags.upstreams)),
    };
    if let Some(shed) = &flags.shed {
        stack = stack.within(shedding(shed, flow));
    }
    if flags.coalesce {
        stack = stack.within(CoalesceLayer::http().name("gateway").attach(flow));
    }
    if flags.profile {
        stack = stack.within(ProfileLayer::new("gateway").attach(flow).http());
    }
    if flags.admin.is_some() {
        stack = stack.within(TimingLayer::new("gateway").attach(flow).http());
    }
    let mut grpc = stack.clone();
    if let Some(descriptors) = &flags.grpc_metrics {
        let mut accounting = GrpcServerLayer::new();
        if let Some(path) = descriptors {
            let named = |error: BoxError| format!("{}: {error}", path.display());
            let read = std::fs::read(path).map_err(|error| named(error.into()))?;
            let registered = accounting.register_fds(&read);
            accounting = registered.map_err(|error| named(error.into()))?;
        }
        // It counts what is answered, and what passes in a body round the upload; within it that is an upload again.
        let inner = grpc
            .map_request(|req: Request<_>| req.map(|body| Upload::new(body, None, false)))
            .map_result(|answered: Result<_, BoxError>| match answered {
                Err(error) => Ok(answer::of(error.as_ref(), true)),
                answered => answered,
            });
        grpc = Stack::new(accounting.attach(flow).layer(inner));
    }
    Ok(Stacks {
        http: stack,
        grpc,
        tls: flags.tls.is_some(),
        holds: flags.upstreams.iter().any(|target| !target.h2c),
        max_body: flags.max_body,
        timeout: flags.timeout,
    })
}

fn pool(flags: &Flags, flow: &Flow) -> Result<ConnPool<Upload>, BoxError> {
    let mut tls = connect::https();
    if let Some(path) = &flags.upstream_ca {
        tls = tls.roots(tls::roots(path)?);
    }
    // A connection whose other end is gone without a word is left for another.
    let every = flags
        .timeout
        .clamp(Duration::from_secs(1), Duration::from_secs(10));
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
        .http2(move |http2| {
            http2.keep_alive_interval(every).keep_alive_timeout(every);
        })
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
