use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tower_service::Service;

use super::error::DestinationError;
use super::future::DestinationFuture;
use super::table::{Shared, Table, Terms};
use crate::base::clock;
use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;

/// Sends each batch through the service of its destination, which is made when it is first needed and kept.
///
/// The layer above has the same function as its `shard_by`, so that all items of a batch have one destination; a batch
/// whose items differ fails, unsent.
///
/// ```
/// use tower::{BoxError, Service, ServiceExt, service_fn};
/// use tower_flow::batch::{All, Batch, Destinations};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// // Made for each shop: `GrpcStreamBatch::ordered(Grpc::new(channel), ..)`, say.
/// let mut shops = Destinations::new(
///     |order: &(u32, &str)| order.0,
///     |shop: &u32| {
///         let shop = *shop;
///         Ok(service_fn(move |batch: Batch<(u32, &'static str)>| async move {
///             Ok::<_, BoxError>(All(format!("shop {shop} got {} orders", batch.len())))
///         }))
///     },
/// );
/// let answer = shops.ready().await?.call(Batch::new([(7, "tea"), (7, "milk")])).await?;
/// assert_eq!(answer, All("shop 7 got 2 orders".to_owned()));
/// // The items of a batch must not differ.
/// let error = shops.ready().await?.call(Batch::new([(7, "tea"), (8, "milk")])).await.unwrap_err();
/// assert!(error.to_string().starts_with("item 1 of 2 has another destination than item 0"));
/// assert_eq!(shops.len(), 1);
/// # Ok(()) }
/// ```
///
/// # Readiness
///
/// Always ready, and reserves nothing: the destination is not known before the batch is. Its service is awaited in the
/// future.
///
/// # Errors
///
/// [`DestinationError`], what making a service fails with, and the errors of the services, as they are.
///
/// # Cancellation
///
/// Dropping the future drops that of the destination. A service that goes, because there are too many or it is not used,
/// serves the batches it has; with them go the last of its connections.
///
/// # Cost
///
/// The key of each item, and a look-up under one lock; no allocation. A destination beyond [`max`](Self::max) costs a look at
/// all of them.
pub struct Destinations<Req, K, S> {
    key: Arc<KeyOf<Req, K>>,
    make: Arc<Make<K, S>>,
    table: Arc<Mutex<Table<K, S>>>,
    terms: Terms,
}

type KeyOf<Req, K> = dyn Fn(&Req) -> K + Send + Sync;
type Make<K, S> = dyn Fn(&K) -> Result<S, BoxError> + Send + Sync;

// ===== impl Destinations =====

impl<Req, K: Hash + Eq, S> Destinations<Req, K, S> {
    /// Batches whose items have this `key` go through what `make` makes of it.
    ///
    /// # Errors
    ///
    /// When `make` fails, the batch fails with its error; the next batch tries again.
    pub fn new(
        key: impl Fn(&Req) -> K + Send + Sync + 'static,
        make: impl Fn(&K) -> Result<S, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            key: Arc::new(key),
            make: Arc::new(make),
            table: Arc::new(Mutex::new(Table::new(clock::now()))),
            terms: Terms {
                max: 1_024,
                idle_timeout: Duration::from_secs(90),
            },
        }
    }

    /// 1,024: how many services are kept. Of more, the one that was not used for longest goes.
    ///
    /// # Panics
    ///
    /// When `services` is 0.
    #[must_use]
    pub fn max(mut self, services: usize) -> Self {
        assert!(services > 0, "max is 0 services; a batch needs one");
        self.terms.max = services;
        self
    }

    /// 90 s: for how long a service is kept that no batch uses. It goes when a batch comes after that, for whichever
    /// destination, at most a quarter later.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.terms.idle_timeout = timeout;
        self
    }

    /// How many services are kept.
    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn key_of(&self, batch: &Batch<Req>) -> Result<K, DestinationError> {
        let mut keys = batch.iter().map(|req| (self.key)(req));
        let first = keys.next().ok_or(DestinationError::Empty)?;
        match keys.position(|key| key != first) {
            Some(rest) => Err(DestinationError::Mixed {
                items: batch.len(),
                position: rest + 1,
            }),
            None => Ok(first),
        }
    }

    fn service(&self, batch: &Batch<Req>) -> Result<Shared<S>, BoxError> {
        let (key, now) = (self.key_of(batch)?, clock::now());
        let (found, _gone) = {
            let mut table = lock(&self.table);
            (table.get(&key, now), table.sweep(now, &self.terms))
        };
        if let Some(service) = found {
            return Ok(service);
        }
        let made = Arc::new(Mutex::new((self.make)(&key)?));
        let (service, _back, _gone) = {
            let mut table = lock(&self.table);
            // Another may have made one meanwhile.
            let (service, back) = table.insert(key, made, now);
            (service, back, table.sweep(now, &self.terms))
        };
        Ok(service)
    }
}

impl<Req, K, S> Service<Batch<Req>> for Destinations<Req, K, S>
where
    K: Hash + Eq,
    S: Service<Batch<Req>> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = DestinationFuture<S, Req>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, batch: Batch<Req>) -> Self::Future {
        match self.service(&batch) {
            Ok(service) => {
                let service = lock(&service).clone();
                DestinationFuture::new(service, batch)
            }
            Err(error) => DestinationFuture::failed(error),
        }
    }
}

/// A clone has the same destinations.
impl<Req, K, S> Clone for Destinations<Req, K, S> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            make: self.make.clone(),
            table: self.table.clone(),
            terms: self.terms,
        }
    }
}

impl<Req, K: Hash + Eq, S> fmt::Debug for Destinations<Req, K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destinations")
            .field("services", &self.len())
            .field("max", &self.terms.max)
            .field("idle_timeout", &self.terms.idle_timeout)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
