//! The presets with coalescing in them.

#[cfg(feature = "throttle")]
pub(super) mod client;
#[cfg(all(feature = "profile", feature = "shed"))]
pub(super) mod server;

#[cfg(all(test, feature = "profile", feature = "shed", feature = "throttle"))]
mod tests {
    use super::client::*;
    use super::server::*;

    use std::convert::Infallible;
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::{Empty, Full};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use crate::Flow;
    use crate::coalesce::CoalesceLayer;

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
