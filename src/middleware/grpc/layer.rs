use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Extensions, HeaderMap};
use tower_layer::Layer;

use super::handle::GrpcHandle;
use super::method::{Detail, GrpcType};
use super::service::Grpc;
use super::state::{Options, Side, State};
use crate::base::descriptor::{self, DescriptorError};
use crate::base::flow::Flow;
use crate::base::metrics::Labels;
use crate::base::stats::{Bounds, Lease};
use crate::base::watch::MakeWatch;

/// Counts the calls a gRPC server answers; see [the module](crate::grpc).
pub type GrpcServerLayer = GrpcLayer<Server>;
/// Counts the calls a gRPC client makes; see [the module](crate::grpc).
pub type GrpcClientLayer = GrpcLayer<Client>;

/// Counts gRPC calls on one [side](Server); see [the module](crate::grpc).
///
/// All services it makes, and all its clones, share their numbers.
#[derive(Debug)]
pub struct GrpcLayer<S, L = ()> {
    options: Options,
    state: Arc<OnceLock<Arc<State>>>,
    along: L,
    side: PhantomData<fn() -> S>,
}

/// The side that answers.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Server;

/// The side that asks.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Client;

impl GrpcLayer<Server> {
    /// A layer with the defaults each option names.
    pub fn new() -> Self {
        Self::on(Side::Server)
    }

    /// No time limit (default), or the one the server puts on every call: a call dropped after it is
    /// DEADLINE_EXCEEDED. Say here what tonic's `Server::timeout` was told; tonic itself sits outside every layer and
    /// answers CANCELLED.
    #[must_use]
    pub fn server_timeout(self, timeout: Duration) -> Self {
        self.set(|options| options.timeout = Some(timeout))
    }
}

impl GrpcLayer<Client> {
    /// A layer with the defaults each option names.
    pub fn new() -> Self {
        Self::on(Side::Client)
    }

    /// The label `grpc_target` of the OpenTelemetry names (default empty): what this client is connected to, such as
    /// `dns:///orders:50051`.
    #[must_use]
    pub fn target(self, target: impl Into<String>) -> Self {
        let target = target.into();
        self.set(|options| options.target = target)
    }
}

impl Default for GrpcLayer<Server> {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for GrpcLayer<Client> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> GrpcLayer<S> {
    fn on(side: Side) -> Self {
        Self {
            options: Options {
                side,
                go: true,
                otel: false,
                methods: Vec::new(),
                max_learned: 512,
                detail: Detail {
                    handling: Bounds::client_golang(),
                    phases: false,
                    otel: false,
                    exemplars: false,
                },
                sizes: false,
                trace_id: None,
                timeout: None,
                labels: Labels::new(),
                target: String::new(),
            },
            state: Arc::default(),
            along: (),
            side: PhantomData,
        }
    }
}

impl<S, L> GrpcLayer<S, L> {
    /// The names of the Go Prometheus middleware (default): `grpc_server_handled_total` and its kin.
    #[must_use]
    pub fn go_compatible(self) -> Self {
        self.names(true, false)
    }

    /// The names of OpenTelemetry, gRPC proposal A66: `grpc_server_call_duration_seconds` and its kin. Two allocations
    /// a call, for the sizes; see [`per_call_sizes`](Self::per_call_sizes).
    #[must_use]
    pub fn otel(self) -> Self {
        self.names(false, true)
    }

    /// Both sets of names.
    #[must_use]
    pub fn both(self) -> Self {
        self.names(true, true)
    }

    /// With the OpenTelemetry names (default there), or without, histograms of the bytes of each call's messages.
    #[must_use]
    pub fn per_call_sizes(self, on: bool) -> Self {
        self.set(|options| options.sizes = on)
    }

    /// Registers every method of a `FileDescriptorSet`, as `protoc --include_imports --descriptor_set_out` writes it,
    /// with its type. All their series are shown from the start, at zero.
    ///
    /// # Errors
    ///
    /// When the bytes are no descriptor set.
    pub fn register_fds(self, set: &[u8]) -> Result<Self, DescriptorError> {
        let found = descriptor::methods(set)?;
        Ok(self.set(|options| {
            let methods = found.into_iter().map(|found| {
                let kind = GrpcType::of(found.client_streams, found.server_streams);
                (found.service, found.method, kind)
            });
            options.methods.extend(methods);
        }))
    }

    /// Registers one method, as [`register_fds`](Self::register_fds) does.
    #[must_use]
    pub fn register(
        self,
        service: impl Into<String>,
        method: impl Into<String>,
        kind: GrpcType,
    ) -> Self {
        let method = (service.into(), method.into(), kind);
        self.set(|options| options.methods.push(method))
    }

    /// The paths of the registered methods that stream in either direction, for layers that treat streams apart.
    pub fn streaming(&self) -> Vec<String> {
        let methods = self.options.methods.iter();
        methods
            .filter(|(.., kind)| !matches!(kind, GrpcType::Unary | GrpcType::Unknown))
            .map(|(service, method, _)| format!("/{service}/{method}"))
            .collect()
    }

    /// Up to 512 methods (default) that were not registered are learned from calls that were answered with OK; all
    /// others are `other`.
    ///
    /// # Panics
    ///
    /// When `max` is beyond 65,536.
    #[must_use]
    pub fn max_methods(self, max: usize) -> Self {
        assert!(
            max <= 65_536,
            "max_methods of {max} is beyond 65,536: each is series to scrape"
        );
        self.set(|options| options.max_learned = max)
    }

    /// Learns (default), or counts only registered methods by name and all others as `other`.
    #[must_use]
    pub fn strict(self) -> Self {
        self.max_methods(0)
    }

    /// 5 ms to 10 s (default, [`Bounds::client_golang`]) bound the buckets of `grpc_…_handling_seconds`.
    #[must_use]
    pub fn handling_buckets(self, bounds: Bounds) -> Self {
        self.set(|options| options.detail.handling = bounds)
    }

    /// Without (default), or with the time to the first message and the time response bodies waited for their producer
    /// or their consumer. Reads the clock once more, and again wherever a body makes somebody wait.
    #[must_use]
    pub fn phases(self, on: bool) -> Self {
        self.set(|options| options.detail.phases = on)
    }

    /// Without (default), or with an exemplar for each bucket of the handling time: the last call `trace_id` gave an
    /// id for. Costs what `trace_id` costs on every call.
    #[must_use]
    pub fn exemplars<F>(self, trace_id: F) -> Self
    where
        F: Fn(&HeaderMap, &Extensions) -> Option<String> + Send + Sync + 'static,
    {
        self.set(|options| {
            options.trace_id = Some(Arc::new(trace_id));
            options.detail.exemplars = true;
        })
    }

    /// Adds a label to every series (default none).
    ///
    /// # Panics
    ///
    /// When `name` is no label name, or one this layer uses itself.
    #[must_use]
    pub fn const_label(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        assert!(
            !name.starts_with("grpc_") && !matches!(&*name, "direction" | "side" | "stall"),
            "the label {name:?} belongs to the gRPC layer; choose another name"
        );
        self.set(|options| options.labels = std::mem::take(&mut options.labels).with(name, value))
    }

    /// Lets what another layer watches ride along: the same as that layer directly inside this one, for less. Both
    /// share one wrapper round future and body, and every reading of the clock.
    ///
    /// ```
    /// use tower_flow::{Flow, grpc::GrpcServerLayer, preset::ByPath, timing::TimingLayer};
    ///
    /// let flow = Flow::new("orders");
    /// let timing = TimingLayer::new("grpc").route_with(ByPath).attach(&flow).http().grpc();
    /// let layer = GrpcServerLayer::new().attach(&flow).along(timing);
    /// # let _ = layer;
    /// ```
    pub fn along<T: MakeWatch>(self, layer: T) -> GrpcLayer<S, T> {
        GrpcLayer {
            options: self.options,
            state: self.state,
            along: layer,
            side: PhantomData,
        }
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        flow.attach(self.handle());
        self
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> GrpcHandle {
        GrpcHandle::new(self.state().clone())
    }

    fn names(self, go: bool, otel: bool) -> Self {
        self.set(|options| {
            options.go = go;
            options.otel = otel;
            options.detail.otel = otel;
            options.sizes = otel;
        })
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        assert!(
            self.state.get().is_none(),
            "grpc {}: set options before its handle, attach or layer is used",
            self.options.side.as_str()
        );
        set(&mut self.options);
        self.state = Arc::default();
        self
    }

    fn state(&self) -> &Arc<State> {
        self.state
            .get_or_init(|| Arc::new(State::new(self.options.clone())))
    }
}

impl<S, L: Clone> Clone for GrpcLayer<S, L> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            state: self.state.clone(),
            along: self.along.clone(),
            side: PhantomData,
        }
    }
}

impl<S, L: MakeWatch, I> Layer<I> for GrpcLayer<S, L> {
    type Service = Grpc<I, L::Watch>;

    fn layer(&self, inner: I) -> Self::Service {
        Grpc::new(inner, Lease::new(self.state().clone()), self.along.watch())
    }
}
