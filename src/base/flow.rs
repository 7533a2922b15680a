use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::clock::{self, Instant};
use super::inspect::{Inspect, Overhead, Value};
use super::metrics::{Families, FlowCollector, Format, Kind, Labels, import};

/// The switchboard a program makes once: a registry, and the layers attached to it.
///
/// Clones are the same flow. Layers work without one; attached to one they appear in `/metrics`, in the snapshot, and
/// on everything else that reads [`Inspect`].
///
/// ```
/// use prometheus_client::metrics::counter::Counter;
/// use prometheus_client::registry::Registry;
/// use tower_flow::{Flow, metrics::Format};
///
/// let flow = Flow::new("orders");
///
/// // Metrics of your own are served beside those of the layers.
/// let refunds = Counter::<u64>::default();
/// flow.register(|registry| registry.register("refunds", "Refunds granted", refunds.clone()));
/// refunds.inc();
/// let text = String::from_utf8(flow.encode(Format::Classic))?;
/// assert!(text.contains("refunds_total 1\n"));
///
/// // Or the other way round: the layers in a registry of your own.
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(flow.collector()));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
#[derive(Clone)]
pub struct Flow(Arc<Inner>);

struct Inner {
    name: String,
    started: Instant,
    registry: RwLock<Registry>,
    layers: RwLock<Vec<Arc<dyn Inspect>>>,
    /// Whether the layers' costs are measured, those that are still to come included.
    measured: AtomicBool,
}

impl Flow {
    /// A flow for the service called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            started: clock::now(),
            registry: RwLock::default(),
            layers: RwLock::default(),
            measured: AtomicBool::new(false),
        }))
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How long ago it was made.
    pub fn uptime(&self) -> Duration {
        clock::now().saturating_duration_since(self.0.started)
    }

    /// Attaches a layer: most do it themselves in their own `attach`. It stays attached as long as the flow lives, so
    /// that no counter of it vanishes.
    pub fn attach(&self, layer: impl Inspect) {
        let mut layers = self
            .0
            .layers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Within the lock: whoever begins to measure sees this layer, or is seen here.
        if self.0.measured.load(Ordering::Relaxed)
            && let Some(cost) = layer.cost()
        {
            cost.want();
        }
        layers.push(Arc::new(layer));
    }

    /// The attached layers, in the order they came.
    pub fn attached(&self) -> Vec<Arc<dyn Inspect>> {
        self.0
            .layers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Registers metrics of your own.
    pub fn register<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(
            &mut self
                .0
                .registry
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// The layers' metrics as a collector, for a registry of your own. What was [`register`](Self::register)ed is not
    /// among them: it has a registry already.
    pub fn collector(&self) -> FlowCollector {
        FlowCollector(self.clone())
    }

    /// All metrics now: the layers' and those [`register`](Self::register)ed. A layer that panics is left out.
    pub fn families(&self) -> Families {
        let mut families = self.layers();
        let registry = self
            .0
            .registry
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        import::registry(&registry, &mut families);
        families.merged()
    }

    /// All metrics now, as a scraper reads them.
    pub fn encode(&self, format: Format) -> Vec<u8> {
        format.encode(&self.families())
    }

    /// The numbers of every attached layer; one that panics is left out.
    pub fn snapshot(&self) -> Value {
        let costs = self.overhead();
        let shown = |(id, layer): (usize, Arc<dyn Inspect>)| {
            let knobs = layer.knobs().into_iter().map(|knob| {
                Value::map([
                    ("name", knob.name.into()),
                    ("help", knob.help.into()),
                    ("value", knob.value),
                ])
            });
            let cost = costs.iter().find(|cost| cost.layer == id);
            let cost = cost.map(|cost| {
                Value::map([
                    ("per_call", cost.per_call.into()),
                    ("sampled", cost.sampled.into()),
                    ("inside", cost.inside.into()),
                ])
            });
            Value::map([
                ("id", id.into()),
                ("kind", layer.kind().into()),
                ("name", (&*layer.name()).into()),
                ("knobs", Value::list(knobs)),
                ("overhead", cost.into()),
                ("state", layer.snapshot()),
            ])
        };
        let layers = self.attached().into_iter().enumerate();
        let layers = layers.filter_map(|layer| asked(|| shown(layer)));
        Value::map([
            ("service", self.name().into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("uptime", self.uptime().into()),
            ("layers", Value::list(layers)),
        ])
    }

    /// What each attached layer itself costs per call: the time its own code takes, without what is inside it, in the
    /// median call.
    ///
    /// The first time begins to measure, one call in 64 of each layer from then on and those inside it, and so finds
    /// nothing. A call that is measured allocates once. The live page measures from when somebody looks first.
    /// Layers that were not called since are left out. What a layer does in tasks of its own is not in it.
    ///
    /// ```
    /// # #[cfg(feature = "timing")] {
    /// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
    /// # use tower_flow::{Flow, ServiceBuilderExt as _};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let flow = Flow::new("orders");
    /// let mut service = ServiceBuilder::new()
    ///     .timing("outer", &flow)
    ///     .timing("inner", &flow)
    ///     .service(service_fn(async |n: u32| Ok::<_, std::io::Error>(n)));
    /// assert!(flow.overhead().is_empty());
    /// for n in 0..10_000 {
    ///     service.ready().await?.call(n).await?;
    /// }
    /// let [outer, inner] = &flow.overhead()[..] else { panic!("both were called") };
    /// assert_eq!((outer.inside, inner.inside), (None, Some(outer.layer)));
    /// assert!(outer.per_call.as_micros() < 1000);
    /// # Ok(()) } main().unwrap(); }
    /// ```
    pub fn overhead(&self) -> Vec<Overhead> {
        let begun = self.0.measured.swap(true, Ordering::Relaxed);
        let layers = self.attached();
        let means: Vec<_> = layers
            .iter()
            .map(|layer| {
                let cost = asked(|| layer.cost())??;
                if !begun {
                    cost.want();
                }
                Some(cost.typical())
            })
            .collect();
        let place = |id| {
            means
                .iter()
                .position(|mean| mean.is_some_and(|mean| mean.id == id))
        };
        let seen = means.iter().enumerate().filter_map(|(layer, mean)| {
            let mean = (*mean).filter(|mean| mean.sampled > 0)?;
            Some(Overhead {
                layer,
                sampled: mean.sampled,
                nested: mean.nested,
                per_call: mean.per_call,
                inside: mean.inside.and_then(place),
            })
        });
        seen.collect()
    }

    /// The layers' own families.
    pub(crate) fn layers(&self) -> Families {
        let mut families = Families::new();
        let version = Labels::new()
            .with("service", self.name().to_owned())
            .with("version", env!("CARGO_PKG_VERSION"));
        families
            .family(
                Kind::Info,
                "tower_flow",
                "The service and the version of tower-flow it runs",
            )
            .push(version, 1u64);
        for layer in self.attached() {
            let own = asked(|| {
                let mut own = Families::new();
                layer.collect(&mut own);
                own
            });
            families.append(own.unwrap_or_default());
        }
        families.merged()
    }
}

/// What a layer's own code answers, unless it panics: that is no reason for the others to be silent.
pub(crate) fn asked<T>(ask: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(ask)).ok()
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("name", &self.name())
            .field("layers", &self.attached())
            .finish_non_exhaustive()
    }
}
