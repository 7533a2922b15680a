use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_test::{assert_pending, assert_ready, task};
use tower::Service;

use super::*;
use crate::base::error::{BoxError, find};
use crate::middleware::batch::request::Batch;
use crate::middleware::batch::results::All;

/// A destination that counts what is made, and is ready when the test says so.
#[derive(Clone)]
struct Shop {
    shop: u32,
    made: u32,
    open: Arc<Mutex<bool>>,
    ready: bool,
}

impl Service<Batch<u32>> for Shop {
    type Response = All<(u32, u32)>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<All<(u32, u32)>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = *self.open.lock().unwrap();
        if self.ready {
            Poll::Ready(Ok(()))
        } else {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    fn call(&mut self, batch: Batch<u32>) -> Self::Future {
        assert!(self.ready, "called without being ready");
        assert!(batch.iter().all(|item| item / 100 == self.shop));
        std::future::ready(Ok(All((self.shop, self.made))))
    }
}

/// Items 700 to 799 are for shop 7; each shop that is made gets the next number. Shop 9 cannot be made.
fn shops(open: &Arc<Mutex<bool>>) -> Destinations<u32, u32, Shop> {
    let made = AtomicU32::new(0);
    let open = open.clone();
    let make = move |shop: &u32| match *shop {
        9 => Err("no such shop".into()),
        shop => Ok(Shop {
            shop,
            made: made.fetch_add(1, Ordering::Relaxed),
            open: open.clone(),
            ready: false,
        }),
    };
    Destinations::new(|item: &u32| item / 100, make)
}

fn opened() -> Arc<Mutex<bool>> {
    Arc::new(Mutex::new(true))
}

#[tokio::test]
async fn a_destination_is_made_once_and_kept() {
    let mut shops = shops(&opened());
    assert!(shops.is_empty());
    for (item, made) in [(700, 0), (799, 0), (800, 1), (701, 0)] {
        let mut clone = shops.clone();
        let All(answer) = clone.call(Batch::new([item, item])).await.unwrap();
        assert_eq!(answer, (item / 100, made));
    }
    assert_eq!(shops.len(), 2);
    let error = shops.call(Batch::new([900])).await.unwrap_err();
    assert_eq!(error.to_string(), "no such shop");
    assert_eq!(shops.len(), 2);
}

#[tokio::test]
async fn a_batch_has_one_destination() {
    let mut shops = shops(&opened());
    let error = shops.call(Batch::new([700, 701, 800])).await.unwrap_err();
    let mixed = DestinationError::Mixed {
        items: 3,
        position: 2,
    };
    assert_eq!(find(error.as_ref()), Some(&mixed));
    let error = shops.call(Batch::new([])).await.unwrap_err();
    assert_eq!(find(error.as_ref()), Some(&DestinationError::Empty));
    assert!(shops.is_empty());
}

#[test]
fn its_readiness_is_awaited_in_the_future() {
    let open = Arc::new(Mutex::new(false));
    let mut shops = shops(&open);
    let mut calling = task::spawn(shops.call(Batch::new([700])));
    assert_pending!(calling.poll());
    *open.lock().unwrap() = true;
    assert_eq!(assert_ready!(calling.poll()).unwrap(), All((7, 0)));
}

#[tokio::test(start_paused = true)]
async fn those_that_are_not_used_go() {
    let mut shops = shops(&opened()).max(2).idle_timeout(Duration::from_secs(8));
    let mut made = HashMap::new();
    for item in [100, 200, 300] {
        tokio::time::advance(Duration::from_millis(1)).await;
        let All((shop, number)) = shops.call(Batch::new([item])).await.unwrap();
        made.insert(shop, number);
    }
    assert_eq!(shops.len(), 2);
    let All(answer) = shops.call(Batch::new([200])).await.unwrap();
    assert_eq!(answer, (2, made[&2]), "the first went");
    tokio::time::advance(Duration::from_secs(7)).await;
    shops.call(Batch::new([300])).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    shops.call(Batch::new([300])).await.unwrap();
    assert_eq!(shops.len(), 1, "the second was not used");
}

#[test]
#[should_panic(expected = "max is 0 services")]
fn no_services_at_all_is_a_mistake() {
    let _ = shops(&opened()).max(0);
}
