//! One method for each layer, on tower's `ServiceBuilder`.

use tower::ServiceBuilder;
use tower_layer::Stack;

#[cfg(any(
    feature = "batch",
    feature = "coalesce",
    feature = "grpc",
    feature = "profile",
    feature = "shed",
    feature = "throttle",
    feature = "timing"
))]
use crate::Flow;
#[cfg(feature = "batch")]
use crate::batch::BatchLayer;
#[cfg(feature = "coalesce")]
use crate::coalesce::{CoalesceLayer, GrpcCoalesceLayer, HttpKey, HttpShare};
#[cfg(feature = "grpc")]
use crate::grpc::{GrpcClientLayer, GrpcServerLayer};
#[cfg(feature = "profile")]
use crate::profile::{HttpProfileLayer, ProfileLayer};
#[cfg(feature = "shed")]
use crate::shed::{GrpcShedLayer, HttpShedLayer, ShedLayer};
#[cfg(feature = "throttle")]
use crate::throttle::{HttpThrottleLayer, ThrottleLayer};
#[cfg(feature = "timing")]
use crate::timing::{HttpTimingLayer, TimingLayer};

/// The layers of this crate as methods of tower's [`ServiceBuilder`], attached to a [`Flow`] and with their defaults.
///
/// For a layer with options, make it and use [`ServiceBuilder::layer`].
///
/// ```
/// # #[cfg(feature = "timing")] {
/// use tower::{ServiceBuilder, service_fn};
/// use tower_flow::{Flow, ServiceBuilderExt as _};
///
/// let flow = Flow::new("orders");
/// let service = ServiceBuilder::new()
///     .timing("stock", &flow)
///     .service(service_fn(async |n: u32| Ok::<_, std::io::Error>(n)));
/// # let _ = service; }
/// ```
pub trait ServiceBuilderExt<L>: sealed::Sealed<L> + Sized {
    /// Times any service as one route called `name`.
    #[cfg(feature = "timing")]
    fn timing(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<TimingLayer, L>> {
        self.add(TimingLayer::new(name).attach(flow))
    }

    /// Times an HTTP service, to the end of its responses' bodies, as one route called `name`.
    #[cfg(feature = "timing")]
    fn http_timing(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<HttpTimingLayer, L>> {
        self.add(TimingLayer::new(name).attach(flow).http())
    }

    /// Measures how long polls of any service take, as one route called `name`.
    #[cfg(feature = "profile")]
    fn profile(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<ProfileLayer, L>> {
        self.add(ProfileLayer::new(name).attach(flow))
    }

    /// Measures how long polls of an HTTP service and of its response bodies take, as one route called `name`.
    #[cfg(feature = "profile")]
    fn http_profile(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<HttpProfileLayer, L>> {
        self.add(ProfileLayer::new(name).attach(flow).http())
    }

    /// Sends requests in batches, at most 64 at once, as soon as none is in flight.
    #[cfg(feature = "batch")]
    fn batch<Req: 'static>(
        self,
        name: &str,
        flow: &Flow,
    ) -> ServiceBuilder<Stack<BatchLayer<Req>, L>> {
        self.add(BatchLayer::new().name(name).attach(flow))
    }

    /// Makes one call of equal requests in flight: those to which `key`, a closure `Fn(&Req) -> Option<K>`, gives the same.
    #[cfg(feature = "coalesce")]
    fn coalesce<Y>(
        self,
        name: &str,
        flow: &Flow,
        key: Y,
    ) -> ServiceBuilder<Stack<CoalesceLayer<Y>, L>>
    where
        Y: Send + Sync + 'static,
    {
        self.add(CoalesceLayer::new(key).name(name).attach(flow))
    }

    /// Makes one call of equal reads of an HTTP service.
    #[cfg(feature = "coalesce")]
    fn http_coalesce(
        self,
        name: &str,
        flow: &Flow,
    ) -> ServiceBuilder<Stack<CoalesceLayer<HttpKey, HttpShare>, L>> {
        self.add(CoalesceLayer::http().name(name).attach(flow))
    }

    /// Makes one call of equal calls of those unary gRPC methods, given by their paths.
    #[cfg(feature = "coalesce")]
    fn grpc_coalesce<M: Into<String>>(
        self,
        name: &str,
        flow: &Flow,
        methods: impl IntoIterator<Item = M>,
    ) -> ServiceBuilder<Stack<GrpcCoalesceLayer, L>> {
        self.add(CoalesceLayer::grpc(methods).name(name).attach(flow))
    }

    /// Spares a backend called `name` what it would refuse.
    #[cfg(feature = "throttle")]
    fn throttle(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<ThrottleLayer, L>> {
        self.add(ThrottleLayer::new(name).attach(flow))
    }

    /// Spares the backends of an HTTP client, told apart by authority, what they would refuse.
    #[cfg(feature = "throttle")]
    fn http_throttle(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<HttpThrottleLayer, L>> {
        self.add(ThrottleLayer::new(name).attach(flow).http())
    }

    /// Spares the backends of a gRPC client, told apart by authority, what they would refuse.
    #[cfg(feature = "throttle")]
    fn grpc_throttle(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<HttpThrottleLayer, L>> {
        self.add(ThrottleLayer::new(name).attach(flow).grpc())
    }

    /// Sheds load before any service, by a limit that finds itself; what is refused is an error.
    #[cfg(feature = "shed")]
    fn shed(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<ShedLayer, L>> {
        self.add(ShedLayer::adaptive().name(name).attach(flow))
    }

    /// Sheds load before an HTTP server; what is refused is answered with 503.
    #[cfg(feature = "shed")]
    fn http_shed(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<HttpShedLayer, L>> {
        self.add(ShedLayer::adaptive().name(name).http().attach(flow))
    }

    /// Sheds load before a gRPC server; what is refused is answered with UNAVAILABLE.
    #[cfg(feature = "shed")]
    fn grpc_shed(self, name: &str, flow: &Flow) -> ServiceBuilder<Stack<GrpcShedLayer, L>> {
        self.add(ShedLayer::adaptive().name(name).grpc().attach(flow))
    }

    /// Counts the calls of a gRPC server.
    #[cfg(feature = "grpc")]
    fn grpc_server(self, flow: &Flow) -> ServiceBuilder<Stack<GrpcServerLayer, L>> {
        self.add(GrpcServerLayer::new().attach(flow))
    }

    /// Counts the calls of a gRPC client.
    #[cfg(feature = "grpc")]
    fn grpc_client(self, flow: &Flow) -> ServiceBuilder<Stack<GrpcClientLayer, L>> {
        self.add(GrpcClientLayer::new().attach(flow))
    }
}

impl<L> ServiceBuilderExt<L> for ServiceBuilder<L> {}

mod sealed {
    use super::{ServiceBuilder, Stack};

    /// The one method all others stand on.
    pub trait Sealed<L> {
        fn add<T>(self, layer: T) -> ServiceBuilder<Stack<T, L>>;
    }

    impl<L> Sealed<L> for ServiceBuilder<L> {
        fn add<T>(self, layer: T) -> ServiceBuilder<Stack<T, L>> {
            self.layer(layer)
        }
    }
}
