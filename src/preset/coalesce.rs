use tower_layer::Stack;

use crate::Flow;
use crate::coalesce::{CoalesceLayer, GrpcCoalesceLayer, HttpKey, HttpShare};
use crate::timing::{HttpTimingLayer, TimingLayer};

use super::{GrpcClient, grpc_client};
#[cfg(feature = "shed")]
use super::{GrpcServerObserved, grpc_server_observed};

/// The layer of [`http_client_coalesced`].
pub type HttpClientCoalesced = Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>;

/// The layer of [`http_server_coalesced`].
#[cfg(feature = "shed")]
pub type HttpServerCoalesced =
    Stack<crate::shed::HttpShedLayer, Stack<CoalesceLayer<HttpKey, HttpShare>, HttpTimingLayer>>;

/// The layer of [`grpc_client_coalesced`].
#[cfg(not(feature = "tonic"))]
pub type GrpcClientCoalesced = Stack<GrpcCoalesceLayer, GrpcClient>;
/// The layer of [`grpc_client_coalesced`].
#[cfg(feature = "tonic")]
pub type GrpcClientCoalesced =
    Stack<crate::grpc::TonicBodyLayer, Stack<GrpcCoalesceLayer, GrpcClient>>;

/// The layer of [`grpc_server_coalesced`].
#[cfg(feature = "shed")]
pub type GrpcServerCoalesced =
    Stack<crate::shed::GrpcShedLayer, Stack<GrpcCoalesceLayer, GrpcServerObserved>>;

/// For an HTTP client: timing of all requests as one route, and inside it coalescing of equal reads.
///
/// What one flight answers, many callers get: put nothing between them that knows who asks.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Empty;
/// use tower::{Layer as _, service_fn};
/// use tower_flow::{Flow, coalesce::CoalesceLayer, preset};
///
/// let flow = Flow::new("shop");
/// let layer = CoalesceLayer::http().name("stock");
/// let client = preset::http_client_coalesced(layer, &flow);
/// # let _ = client.layer(service_fn(async |_: http::Request<Empty<Bytes>>| {
/// #     Ok::<_, std::io::Error>(http::Response::new(Empty::<Bytes>::new()))
/// # }));
/// ```
pub fn http_client_coalesced(
    layer: CoalesceLayer<HttpKey, HttpShare>,
    flow: &Flow,
) -> HttpClientCoalesced {
    let timing = TimingLayer::new("http_client").attach(flow).http();
    Stack::new(layer.name_or("http_client").attach(flow), timing)
}

/// For an HTTP server: timing of all requests as one route, inside it coalescing of equal reads, and innermost adaptive
/// shedding, so that those who follow take no slot. Failures of the coalescing are responses.
///
/// Authentication belongs outside, or its header into the key; see [`CoalesceLayer::authorization`].
#[cfg(feature = "shed")]
pub fn http_server_coalesced(
    layer: CoalesceLayer<HttpKey, HttpShare>,
    flow: &Flow,
) -> HttpServerCoalesced {
    let shed = crate::shed::ShedLayer::adaptive()
        .name("http_server")
        .http();
    let timing = TimingLayer::new("http_server").attach(flow).http();
    let layer = layer.name_or("http_server").answer();
    let coalesced = Stack::new(layer.attach(flow), timing);
    Stack::new(shed.attach(flow), coalesced)
}

/// For a gRPC client: accounting and timing per method outermost, as [`grpc_client`] has them, and inside them coalescing
/// of the methods `layer` lists. With feature `tonic` the inner service gets tonic's own request bodies, as its
/// `Channel` wants.
///
/// ```
/// use tower_flow::{Flow, coalesce::CoalesceLayer, preset};
///
/// let flow = Flow::new("shop");
/// let layer = CoalesceLayer::grpc(["/shop.Stock/Get"]).name("stock");
/// let layer = preset::grpc_client_coalesced(layer, &flow);
/// # let _ = layer;
/// ```
pub fn grpc_client_coalesced(layer: GrpcCoalesceLayer, flow: &Flow) -> GrpcClientCoalesced {
    let layer = layer.with(|layer| layer.name_or("grpc_client"));
    let layer = Stack::new(layer.attach(flow), grpc_client(flow));
    #[cfg(feature = "tonic")]
    let layer = Stack::new(crate::grpc::TonicBodyLayer::new(), layer);
    layer
}

/// For a tonic server, or one of its services: accounting and timing per method outermost, inside them coalescing of the
/// methods `layer` lists, and innermost adaptive shedding, so that those who follow take no slot. Failures of the
/// coalescing are responses.
///
/// Authentication belongs outside, or its metadata into the key; see [`GrpcCoalesceLayer::authorization`].
#[cfg(feature = "shed")]
pub fn grpc_server_coalesced(layer: GrpcCoalesceLayer, flow: &Flow) -> GrpcServerCoalesced {
    let shed = crate::shed::ShedLayer::adaptive()
        .name("grpc_server")
        .grpc();
    let layer = layer.with(|layer| layer.name_or("grpc_server"));
    let coalesced = Stack::new(layer.answer().attach(flow), grpc_server_observed(flow));
    Stack::new(shed.attach(flow), coalesced)
}

#[cfg(all(test, feature = "shed"))]
mod tests {
    use super::*;

    use std::convert::Infallible;
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::{Empty, Full};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    fn names(flow: &Flow) -> Vec<String> {
        let attached = flow.attached().into_iter();
        let coalesce = attached.filter(|layer| layer.kind() == "coalesce");
        coalesce.map(|layer| layer.name().to_string()).collect()
    }

    async fn never<B>(_: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
        std::future::pending().await
    }

    fn get() -> Request<Empty<Bytes>> {
        let mut req = Request::new(Empty::new());
        *req.uri_mut() = http::Uri::from_static("http://a/b");
        req
    }

    #[test]
    fn a_layer_is_called_after_its_preset_unless_it_has_a_name_or_is_in_use() {
        let flow = Flow::new("test");
        let used = CoalesceLayer::http();
        let _ = used.handle();
        for layer in [CoalesceLayer::http(), CoalesceLayer::http().name("x"), used] {
            let _ = http_client_coalesced(layer, &flow);
        }
        let used = CoalesceLayer::grpc(["/a.B/C"]);
        let _ = used.handle();
        let _ = grpc_client_coalesced(CoalesceLayer::grpc(["/a.B/C"]), &flow);
        let _ = grpc_client_coalesced(used, &flow);
        let expected = ["http_client", "x", "coalesce", "grpc_client", "coalesce"];
        assert_eq!(names(&flow), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_taken_before_the_http_preset_reads_its_traffic() {
        let layer = CoalesceLayer::http().flight_timeout(Duration::from_secs(1));
        let handle = layer.handle();
        let service = http_server_coalesced(layer, &Flow::new("test")).layer(service_fn(never));
        let calls = (0..3).map(|_| service.clone().oneshot(get()));
        for answer in futures_util::future::join_all(calls).await {
            let answer = answer.unwrap();
            assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(answer.headers()["x-coalesce-reason"], "timeout");
        }
        let snapshot = handle.snapshot();
        assert_eq!((snapshot.leaders, snapshot.followers), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_taken_before_the_grpc_preset_reads_its_traffic() {
        let layer = CoalesceLayer::grpc(["/a.B/C"])
            .with(|layer| layer.flight_timeout(Duration::from_secs(1)));
        let handle = layer.handle();
        let service = grpc_server_coalesced(layer, &Flow::new("test")).layer(service_fn(never));
        let call = || {
            let mut req = get();
            *req.method_mut() = http::Method::POST;
            *req.uri_mut() = "http://a/a.B/C".parse().unwrap();
            let kind = http::HeaderValue::from_static("application/grpc");
            req.headers_mut().insert("content-type", kind);
            req
        };
        let calls = (0..3).map(|_| service.clone().oneshot(call()));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.unwrap().headers()["grpc-status"], "4");
        }
        let snapshot = handle.snapshot();
        assert_eq!((snapshot.leaders, snapshot.followers), (1, 2));
    }
}
