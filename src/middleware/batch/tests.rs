use std::sync::Mutex;
use std::time::Duration;

use tokio::time::sleep;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::{Batch, BatchLayer};
use crate::BoxError;

#[tokio::test(start_paused = true)]
async fn what_comes_while_one_is_in_flight_goes_together() -> Result<(), BoxError> {
    static SIZES: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let layer = BatchLayer::new();
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .service(service_fn(async |batch: Batch<u32>| {
            SIZES.lock().unwrap().push(batch.len());
            sleep(Duration::from_millis(10)).await;
            Ok::<_, BoxError>(batch.into_iter().map(Ok::<_, BoxError>).collect::<Vec<_>>())
        }));
    let first = tokio::spawn(service.clone().oneshot(0));
    sleep(Duration::from_millis(1)).await;
    let rest: Vec<_> = (1..=100)
        .map(|n| tokio::spawn(service.clone().oneshot(n)))
        .collect();
    assert_eq!(first.await??, 0);
    for (n, answer) in rest.into_iter().enumerate() {
        assert_eq!(answer.await??, n as u32 + 1);
    }
    assert_eq!(*SIZES.lock().unwrap(), [1, 64, 36]);
    layer.handle().drain().await;
    assert!(service.clone().ready().await?.call(7).await.is_err());
    Ok(())
}

#[test]
fn callers_drive_where_nothing_spawns() {
    let layer = BatchLayer::new().caller_driven();
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .service(service_fn(async |batch: Batch<u32>| {
            Ok::<_, BoxError>(batch.into_iter().map(Ok::<_, BoxError>).collect::<Vec<_>>())
        }));
    let mut one = service.clone();
    let calls = [one.call(1), one.call(2), one.call(3)];
    let [mut first, mut second, mut third] = calls.map(tokio_test::task::spawn);
    assert_eq!(tokio_test::assert_ready_ok!(first.poll()), 1);
    assert_eq!(tokio_test::assert_ready_ok!(third.poll()), 3);
    assert_eq!(tokio_test::assert_ready_ok!(second.poll()), 2);
    assert_eq!(layer.handle().snapshot().batches, 1);
}
