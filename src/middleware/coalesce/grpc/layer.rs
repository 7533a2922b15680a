use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use tower_layer::Layer;

use super::gather::Gather;
use super::key::GrpcKey;
use super::options::Options;
use super::service::GrpcCoalesce;
use super::share::GrpcShare;
use crate::base::deadline::GRPC_TIMEOUT;
use crate::base::descriptor::{self, DescriptorError};
use crate::base::flow::Flow;
use crate::middleware::coalesce::handle::CoalesceHandle;
use crate::middleware::coalesce::layer::CoalesceLayer;
use crate::middleware::coalesce::listed::Credentials;

/// Makes one call of equal unary gRPC calls in flight; see [`GrpcKey`] for what is equal, and [`GrpcShare`] for what is
/// shared.
///
/// Only calls of listed methods are touched. Their requests are read before anything is sent, and their responses to the
/// trailers before anybody gets them: list methods that answer with one message. A call's own timeout ends its caller's
/// wait; the call that is sent has the time its flight has.
///
/// What it cannot answer is an error with a [`Rejection`](crate::Rejection), as in all forms, or a
/// [response](Self::respond). The inner service gets requests with a [`GrpcBody`](super::GrpcBody); tonic's `Channel`
/// wants `grpc::TonicBodyLayer` in between, which `preset::grpc_client_coalesced` puts there.
///
/// A call of a listed method costs three allocations: its key, and the boxes in which request and response are read.
///
/// ```
/// use tower_flow::{Flow, coalesce::{CoalesceLayer, Credentials}};
///
/// let flow = Flow::new("shop");
/// let layer = CoalesceLayer::grpc(["/shop.Stock/Get", "/shop.Stock/List"])
///     .authorization(Credentials::InKey)
///     .with(|layer| layer.name("stock").max_waiters(10_000))
///     .attach(&flow);
/// # let _ = layer;
/// ```
#[derive(Debug, Clone)]
pub struct GrpcCoalesceLayer {
    layer: CoalesceLayer<GrpcKey, GrpcShare>,
}

// ===== impl CoalesceLayer =====

impl CoalesceLayer<GrpcKey, GrpcShare> {
    /// A layer for gRPC, for the unary methods of these paths, such as `/shop.Stock/Get`; none if they are to come from
    /// [a descriptor set](GrpcCoalesceLayer::register_fds).
    ///
    /// # Panics
    ///
    /// When a path is not a slash, a service, a slash and a method.
    pub fn grpc<M: Into<String>>(methods: impl IntoIterator<Item = M>) -> GrpcCoalesceLayer {
        let mut options = Options::new();
        for path in methods {
            let path = path.into();
            let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
            let whole = parts.is_some_and(|(service, method)| {
                !service.is_empty() && !method.is_empty() && !method.contains('/')
            });
            assert!(
                whole,
                "{path:?} is no path of a method; write it as \"/package.Service/Method\""
            );
            options.methods.insert(path.into());
        }
        GrpcCoalesceLayer {
            layer: Self::with(GrpcKey::new(Arc::new(options)), GrpcShare::default()),
        }
    }
}

// ===== impl GrpcCoalesceLayer =====

impl CoalesceLayer<GrpcKey, GrpcShare> {
    /// As [`grpc`](Self::grpc), for the methods a descriptor set calls free of side effects:
    /// see [`register_fds`](GrpcCoalesceLayer::register_fds).
    ///
    /// # Errors
    ///
    /// When the bytes are no descriptor set.
    pub fn grpc_fds(set: &[u8]) -> Result<GrpcCoalesceLayer, DescriptorError> {
        Self::grpc::<String>([]).register_fds(set)
    }
}

impl GrpcCoalesceLayer {
    /// Lists every unary method of a `FileDescriptorSet`, as `protoc --include_imports --descriptor_set_out` writes it,
    /// that says `option idempotency_level = NO_SIDE_EFFECTS`.
    ///
    /// # Errors
    ///
    /// When the bytes are no descriptor set.
    pub fn register_fds(self, set: &[u8]) -> Result<Self, DescriptorError> {
        let found = descriptor::methods(set)?;
        Ok(self.set(|options| {
            let reads = found
                .into_iter()
                .filter(|method| method.safe && !method.client_streams && !method.server_streams);
            let paths = reads.map(|method| format!("/{}/{}", method.service, method.method).into());
            options.methods.extend(paths);
        }))
    }

    /// Of the metadata only encodings, `content-type` and what proxies say of the target (default) are in the key, or
    /// `name` too: all its values, in their order. Choose whatever answers depend on; [some metadata](GrpcKey) that
    /// says who asks makes a call go alone until it is chosen.
    ///
    /// # Panics
    ///
    /// When it is `grpc-timeout`, which is each caller's own.
    #[must_use]
    pub fn metadata(self, name: HeaderName) -> Self {
        assert!(
            name != GRPC_TIMEOUT,
            "grpc-timeout is no part of a key: it ends its own caller's wait"
        );
        self.set(|options| options.listed.add(name))
    }

    /// Calls with `authorization` go alone (default), or are equal to those with the same. A `cookie` makes a call go
    /// alone unless it is [chosen](Self::metadata).
    #[must_use]
    pub fn authorization(self, credentials: Credentials) -> Self {
        self.set(|options| options.listed.credentials(AUTHORIZATION, credentials))
    }

    /// A request of up to 64 KiB (default), with its frame, is compared; a longer one goes alone.
    #[must_use]
    pub fn max_key_bytes(self, max: usize) -> Self {
        self.set(|options| options.max_key_bytes = max)
    }

    /// A response of up to 4 MiB (default, what gRPC takes by default) is shared; a longer one is its leader's, and those
    /// who asked for the same ask for themselves.
    #[must_use]
    pub fn max_message(self, max: usize) -> Self {
        self.set(|options| options.max_message = max)
    }

    /// Failures of the layer, not of what is inside, are errors (default), or responses with a status in their headers, as
    /// a server wants them: DEADLINE_EXCEEDED when a call or its caller ran out of time, INTERNAL after a panic,
    /// UNAVAILABLE when another gave it up. With feature `tonic` a tonic server reads the same from the errors.
    #[must_use]
    pub fn respond(self, respond: bool) -> Self {
        self.with(|layer| layer.share(GrpcShare::new(respond)))
    }

    /// As [`respond`](Self::respond) with `true`, of a layer that may be in use, and of all its clones then.
    #[cfg(all(feature = "grpc", feature = "shed", feature = "timing"))]
    pub(crate) fn answer(self) -> Self {
        self.layer.policy().answer();
        self
    }

    /// What all forms have is as [`CoalesceLayer`] has it (default), or as `with` sets it.
    #[must_use]
    pub fn with(
        self,
        with: impl FnOnce(CoalesceLayer<GrpcKey, GrpcShare>) -> CoalesceLayer<GrpcKey, GrpcShare>,
    ) -> Self {
        Self {
            layer: with(self.layer),
        }
    }

    /// `coalesce` (default) is its name in metrics and snapshots.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|layer| layer.name(name))
    }

    /// Shows the layer in `flow`. Set options first.
    #[must_use]
    pub fn attach(self, flow: &Flow) -> Self {
        self.with(|layer| layer.attach(flow))
    }

    /// The paths of the listed methods, to see what a descriptor set came to.
    pub fn methods(&self) -> Vec<String> {
        let listed = self.layer.key().options().methods.iter();
        let mut paths: Vec<_> = listed.map(|path| path.to_string()).collect();
        paths.sort_unstable();
        paths
    }

    /// The handle that reads it. Set options first.
    pub fn handle(&self) -> CoalesceHandle {
        self.layer.handle()
    }

    fn set(self, set: impl FnOnce(&mut Options)) -> Self {
        self.with(|layer| {
            layer.map_rules(|key, share| {
                let mut options = Options::clone(key.options());
                set(&mut options);
                let share = GrpcShare::new(share.responds());
                (GrpcKey::new(Arc::new(options)), share)
            })
        })
    }
}

impl<S> Layer<S> for GrpcCoalesceLayer {
    type Service = GrpcCoalesce<S>;

    fn layer(&self, inner: S) -> GrpcCoalesce<S> {
        let options = self.layer.key().options();
        let inner = Gather::new(inner, options.max_message);
        GrpcCoalesce::new(self.layer.layer(inner), options.clone())
    }
}
