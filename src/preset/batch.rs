use tower_layer::Stack;

use crate::Flow;
use crate::batch::{BatchLayer, Distinct};
use crate::inspect::Inspect as _;
use crate::timing::TimingLayer;

/// The layer of [`batched`].
pub type Batched<Req, K = (), D = Distinct> =
    Stack<TimingLayer, Stack<BatchLayer<Req, K, D>, TimingLayer>>;

/// For a client of many small requests: timing of each as its caller sees it outermost, inside it batching, and innermost
/// timing of the batches as the backend sees them.
///
/// The outer timing is called `name`, as the batching is, and the inner one `name` with `_batches` after it. A request that
/// waits for its batch is in the outer one only: where both go up together, the backend is slow; where only the outer one
/// does, more comes than goes through.
///
/// What belongs to a caller goes outside of it: a deadline, the retry of one request, coalescing. What belongs to the
/// backend goes inside: throttling, the retry of a batch, the pool.
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt as _};
/// use tower_flow::batch::Batch;
/// use tower_flow::{Flow, preset};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_flow::BoxError> {
/// let flow = Flow::new("shop");
/// let prices = ServiceBuilder::new()
///     .layer(preset::batched("prices", &flow))
///     .service_fn(async |items: Batch<u64>| {
///         let prices = items.into_iter().map(|item| Ok(item * 2));
///         Ok::<_, std::io::Error>(prices.collect::<Vec<Result<u64, std::io::Error>>>())
///     });
/// // Two callers, and one call of the backend.
/// let (one, other) = tokio::join!(prices.clone().oneshot(1), prices.oneshot(2));
/// assert_eq!((one?, other?), (2, 4));
/// # Ok(()) }
/// ```
pub fn batched<Req: Send + 'static>(name: &str, flow: &Flow) -> Batched<Req> {
    batched_with(BatchLayer::new().name(name), flow)
}

/// As [`batched`], with a batching layer of your own, whose name is that of all.
///
/// ```
/// use std::time::Duration;
/// use tower_flow::{Flow, batch::BatchLayer, preset};
///
/// let flow = Flow::new("shop");
/// let layer = BatchLayer::new()
///     .name("prices")
///     .max_items(500)
///     .max_delay(Duration::from_millis(2))
///     .dedup_by(|item: &u64| *item);
/// let layer = preset::batched_with(layer, &flow);
/// # let _ = layer;
/// ```
pub fn batched_with<Req, K, D>(layer: BatchLayer<Req, K, D>, flow: &Flow) -> Batched<Req, K, D>
where
    Req: Send + 'static,
    K: Send + 'static,
    D: Send + Sync + 'static,
{
    let layer = layer.attach(flow);
    let name = layer.handle().name().into_owned();
    let items = TimingLayer::new(&*name).attach(flow);
    let batches = TimingLayer::new(format!("{name}_batches")).attach(flow);
    Stack::new(batches, Stack::new(layer, items))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::convert::Infallible;
    use std::time::Duration;

    use tower::{Layer as _, ServiceExt as _, service_fn};

    use crate::batch::{All, Batch};
    use crate::inspect::Value;

    #[tokio::test(start_paused = true)]
    async fn items_and_batches_are_timed_apart() {
        let flow = Flow::new("test");
        let layer = batched_with(BatchLayer::new().name("x"), &flow);
        let service = layer.layer(service_fn(async |_: Batch<u8>| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, Infallible>(All(()))
        }));
        let calls = (0..3).map(|item| service.clone().oneshot(item));
        futures_util::future::try_join_all(calls).await.unwrap();
        let layers = flow.attached();
        let names: Vec<_> = layers
            .iter()
            .map(|layer| (layer.kind(), layer.name()))
            .collect();
        let names: Vec<_> = names.iter().map(|(kind, name)| (*kind, &**name)).collect();
        assert_eq!(
            names,
            [("batch", "x"), ("timing", "x"), ("timing", "x_batches")]
        );
        let started = |layer: usize| {
            let shown = layers[layer].snapshot();
            let Some(Value::List(routes)) = shown.get("routes") else {
                panic!("no routes in {shown}")
            };
            routes[0].get("started").cloned()
        };
        assert_eq!(started(1), Some(3_u64.into()), "three items");
        assert_eq!(started(2), Some(1_u64.into()), "one batch");
    }
}
