//! What the acceptance tests find in the peers: each control is a test a peer fails, and fails itself once the peer is
//! mended. They are of tower-batch-control 1.1.1, tower-batch 0.4.0 and dataloader 0.18.0.

use std::collections::HashMap;
use std::future::pending;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use dataloader::BatchFn;
use dataloader::non_cached::Loader;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{Service, ServiceExt as _};
use tower_batch_control::RequestWeight;

use super::{Count, Counted, Does, Fault, Item, comer, item, message, ms, rest, secs};

type Control = tower_batch_control::Batch<Store, Item>;
type Batch = tower_batch::Batch<Store, Item>;

// ===== a backend of the kind they want =====

/// Gathers items until it is told to flush.
#[derive(Clone, Default)]
struct Store(Arc<Stored>);

#[derive(Default)]
struct Stored {
    gathered: Mutex<Vec<(Item, oneshot::Sender<u64>)>>,
    flushed: Mutex<Vec<Vec<Item>>>,
    does: Mutex<Option<Does>>,
    /// Only ready while it flushes nothing.
    alone: bool,
    busy: Mutex<(bool, Option<Waker>)>,
}

type Doing = Pin<Box<dyn Future<Output = Result<u64, Fault>> + Send>>;

impl Store {
    fn new(does: Does) -> Self {
        let store = Self::default();
        *store.0.does.lock().unwrap() = Some(does);
        store
    }

    fn does(&self, does: Does) {
        *self.0.does.lock().unwrap() = Some(does);
    }

    fn batches(&self) -> Vec<Vec<u64>> {
        let flushed = self.0.flushed.lock().unwrap();
        let ids = |items: &Vec<Item>| items.iter().map(|item| item.id).collect();
        flushed.iter().map(ids).collect()
    }

    fn weights(&self) -> Vec<usize> {
        let flushed = self.0.flushed.lock().unwrap();
        let weights = |items: &Vec<Item>| items.iter().map(|item| item.weight).sum();
        flushed.iter().map(weights).collect()
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let mut busy = self.0.busy.lock().unwrap();
        if self.0.alone && busy.0 {
            busy.1 = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn gather(&self, item: Item) -> Doing {
        let (answer, answered) = oneshot::channel();
        self.0.gathered.lock().unwrap().push((item, answer));
        Box::pin(async { answered.await.map_err(|_| Fault("never flushed")) })
    }

    fn flush(&self) -> Doing {
        let store = self.clone();
        let does = self.0.does.lock().unwrap().unwrap_or(Does::Answers);
        let gathered = std::mem::take(&mut *self.0.gathered.lock().unwrap());
        let items = gathered.iter().map(|(item, _)| item.clone()).collect();
        self.0.flushed.lock().unwrap().push(items);
        self.0.busy.lock().unwrap().0 = true;
        Box::pin(async move {
            match does {
                Does::Takes(time) => sleep(time).await,
                Does::Never => pending().await,
                Does::Fails => return Err(Fault("told to")),
                _ => {}
            }
            for (item, answer) in gathered {
                let _ = answer.send(item.id);
            }
            let waker = {
                let mut busy = store.0.busy.lock().unwrap();
                busy.0 = false;
                busy.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            Ok(0)
        })
    }
}

impl RequestWeight for Item {
    fn request_weight(&self) -> usize {
        self.weight
    }
}

impl Service<tower_batch_control::BatchControl<Item>> for Store {
    type Response = u64;
    type Error = Fault;
    type Future = Doing;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Store::poll_ready(self, cx)
    }

    fn call(&mut self, control: tower_batch_control::BatchControl<Item>) -> Doing {
        match control {
            tower_batch_control::BatchControl::Item(item) => self.gather(item),
            tower_batch_control::BatchControl::Flush => self.flush(),
        }
    }
}

impl Service<tower_batch::BatchControl<Item>> for Store {
    type Response = u64;
    type Error = Fault;
    type Future = Doing;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Store::poll_ready(self, cx)
    }

    fn call(&mut self, control: tower_batch::BatchControl<Item>) -> Doing {
        match control {
            tower_batch::BatchControl::Item(item) => self.gather(item),
            tower_batch::BatchControl::Flush => self.flush(),
        }
    }
}

// ===== tower-batch-control =====

/// 16.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_makes_batches_heavier_than_they_may_be() {
    let store = Store::default();
    let mut service = Control::new(store.clone(), 10, 5, ms(100));
    let mut calls = Vec::new();
    for (id, weight) in [(0, 9), (1, 5)] {
        let ready = service.ready().await.unwrap();
        calls.push(ready.call(item(id).weight(weight)));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(store.weights(), [14], "mended");
}

/// 16.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_keeps_a_flood_of_items_without_weight_for_ever() {
    let store = Store::default();
    let mut service = Control::new(store.clone(), 1_000, 5, ms(10));
    let mut calls = Vec::new();
    for id in 0..200 {
        sleep(ms(6)).await;
        let ready = service.ready().await.unwrap();
        calls.push(ready.call(item(id).weight(0)));
    }
    assert_eq!(
        store.batches().len(),
        0,
        "mended: 1.2 s, and a delay of 10 ms"
    );
}

/// 18.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_sends_what_nobody_waits_for() {
    let store = Store::default();
    let mut service = Control::new(store.clone(), 10, 5, ms(10));
    drop(service.ready().await.unwrap().call(item(0)));
    sleep(ms(50)).await;
    assert_eq!(store.batches(), [[0]], "mended");
}

/// 19.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_loses_the_last_batch_when_its_handles_are_dropped() {
    let store = Store::default();
    let mut service = Control::new(store.clone(), 10, 5, ms(10));
    let ready = service.ready().await.unwrap();
    let calls = [
        ready.call(item(0)),
        ready.ready().await.unwrap().call(item(1)),
    ];
    drop(service);
    sleep(ms(50)).await;
    assert!(store.batches().is_empty(), "mended");
    // What it was given is still there, and nobody flushes it.
    let gathered = std::mem::take(&mut *store.0.gathered.lock().unwrap());
    assert_eq!(gathered.len(), 2);
    drop(gathered);
    for call in calls {
        assert_eq!(call.await.unwrap_err().to_string(), "never flushed");
    }
}

/// 19.
#[test]
fn tower_batch_control_ends_with_the_runtime_it_began_in() {
    let store = Store::default();
    let first = runtime();
    let mut service = first.block_on(async { Control::new(store.clone(), 10, 5, ms(10)) });
    drop(first);
    runtime().block_on(async {
        assert!(service.ready().await.is_err(), "mended");
        let again = tokio::spawn(async move { service.ready().await.is_ok() });
        assert!(again.await.unwrap_err().is_panic(), "mended");
    });
}

/// 20.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_waits_for_ever_for_a_readiness_that_waits_for_a_batch() {
    let mut store = Store::new(Does::Takes(ms(10)));
    Arc::get_mut(&mut store.0).unwrap().alone = true;
    let mut service = Control::new(store.clone(), 2, 5, ms(10));
    let mut calls = Vec::new();
    for id in 0..4 {
        calls.push(service.ready().await.unwrap().call(item(id)));
    }
    let mut calls = calls.into_iter();
    let first = timeout(secs(60), calls.next().unwrap()).await;
    assert!(
        first.is_err(),
        "mended: its flush is not polled while the third item waits"
    );
    assert_eq!(store.batches(), [[0, 1]]);
}

/// 20.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_takes_a_limit_of_none_and_panics_later() {
    let mut service = Control::new(Store::default(), 10, 0, ms(10));
    rest().await;
    let asked = tokio::spawn(async move { service.ready().await.is_ok() });
    let panic = asked.await.expect_err("mended").into_panic();
    assert!(message(panic).contains("all branches are disabled"));
}

/// 20.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_fails_for_good_with_one_batch() {
    let store = Store::new(Does::Fails);
    let mut service = Control::new(store.clone(), 1, 5, ms(10));
    let failed = service.ready().await.unwrap().call(item(0)).await;
    assert!(failed.is_err());
    store.does(Does::Answers);
    rest().await;
    assert!(service.ready().await.is_err(), "mended");
    let again = tokio::spawn(async move { service.ready().await.is_ok() });
    assert!(again.await.unwrap_err().is_panic(), "mended");
}

/// The contract of Tower: what is ready stays ready until it is called.
#[tokio::test(start_paused = true)]
async fn tower_batch_control_takes_back_that_it_is_ready() {
    let mut early = Control::new(Store::default(), 1, 1, ms(10));
    let mut waits = comer(&early);
    let mut cx = Context::from_waker(Waker::noop());
    assert_ready_ok!(early.poll_ready(&mut cx));
    assert_pending!(waits.task.enter(|cx, _| waits.service.poll_ready(cx)));
    // Asked again, it gives its place away.
    assert_pending!(early.poll_ready(&mut cx), "mended");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

// ===== tower-batch =====

/// 19.
#[tokio::test(start_paused = true)]
async fn tower_batch_loses_a_call_of_the_only_handle() {
    let store = Store::default();
    let service = Batch::new(store.clone(), 10, ms(10));
    let error = service.oneshot(item(0)).await.expect_err("mended");
    assert!(error.is::<tower_batch::error::Closed>(), "{error:?}");
    assert!(store.batches().is_empty());
}

/// 19.
#[test]
fn tower_batch_ends_with_the_runtime_it_began_in() {
    let store = Store::default();
    let first = runtime();
    let mut service = first.block_on(async { Batch::new(store.clone(), 10, ms(10)) });
    drop(first);
    runtime().block_on(async {
        assert!(service.ready().await.is_err(), "mended");
        assert!(service.ready().await.is_err(), "mended");
    });
}

/// 20.
#[tokio::test(start_paused = true)]
async fn tower_batch_fails_for_good_with_one_batch() {
    let store = Store::new(Does::Fails);
    let mut service = Batch::new(store.clone(), 1, ms(10));
    let failed = service.ready().await.unwrap().call(item(0)).await;
    assert!(failed.is_err());
    store.does(Does::Answers);
    assert!(service.ready().await.is_err(), "mended");
}

// ===== dataloader =====

/// A key that is counted as long as it is anywhere.
#[derive(Debug, Clone)]
struct Key(u64, #[allow(dead_code)] Counted);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

struct Reads(Does);

impl<K: Hash + Eq + Clone> BatchFn<K, u64> for Reads {
    async fn load(&mut self, keys: &[K]) -> HashMap<K, u64> {
        if let Does::Takes(time) = self.0 {
            sleep(time).await;
        }
        keys.iter().map(|key| (key.clone(), 7)).collect()
    }
}

/// 18.
#[tokio::test(start_paused = true)]
async fn dataloader_keeps_a_key_for_each_request_it_has_answered() {
    let keys = Arc::new(Count::default());
    let loader = Loader::new(Reads(Does::Answers));
    for key in 0..100 {
        let loaded = loader.try_load(Key(key, Counted::new(&keys))).await;
        assert_eq!(loaded.unwrap(), 7);
    }
    assert_eq!(keys.now(), 100, "mended");
}

/// 18.
#[tokio::test(start_paused = true)]
async fn dataloader_panics_in_those_who_wait_with_one_who_leaves() {
    let loader = Loader::new(Reads(Does::Takes(ms(10))));
    let load = |key: u64| {
        let loader = loader.clone();
        tokio::spawn(async move { loader.try_load(key).await })
    };
    let (leads, waits) = (load(1), load(2));
    sleep(ms(5)).await;
    leads.abort();
    assert!(leads.await.unwrap_err().is_cancelled());
    let panic = waits.await.expect_err("mended").into_panic();
    assert_eq!(message(panic), "failed");
}
