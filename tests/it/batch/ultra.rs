//! What the acceptance tests find in ultra-batch 0.3.0; see [`controls`](super::controls).

use std::sync::{Arc, Mutex};

use tokio::time::{Instant, sleep};
use ultra_batch::{BatchExecutor, ExecuteError, Executor};

use super::{Fault, ms};

/// Doubles what it is given, and answers so many more, or fewer.
struct Doubles {
    sent: Arc<Mutex<Vec<(Instant, usize)>>>,
    more: isize,
    panics: bool,
}

impl Executor for Doubles {
    type Value = u64;
    type Result = u64;
    type Error = Fault;

    async fn execute(&self, values: Vec<u64>) -> Result<Vec<u64>, Fault> {
        assert!(!self.panics, "told to");
        self.sent
            .lock()
            .unwrap()
            .push((Instant::now(), values.len()));
        let answers = values.len().saturating_add_signed(self.more);
        let doubled = values.into_iter().map(|value| 2 * value);
        Ok(doubled.chain([4_711; 3]).take(answers).collect())
    }
}

fn doubles(more: isize, panics: bool) -> (Doubles, Arc<Mutex<Vec<(Instant, usize)>>>) {
    let sent = Arc::default();
    let doubles = Doubles {
        sent: Arc::clone(&sent),
        more,
        panics,
    };
    (doubles, sent)
}

/// 15.
#[tokio::test(start_paused = true)]
async fn ultra_batch_begins_its_delay_anew_with_each_item() {
    let (doubles, sent) = doubles(0, false);
    let begun = Instant::now();
    let service = BatchExecutor::build(doubles)
        .delay_duration(ms(100))
        .finish();
    let mut asked = Vec::new();
    for id in 0..17 {
        let service = service.clone();
        asked.push(tokio::spawn(async move { service.execute(id).await }));
        sleep(ms(60)).await;
    }
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    let sent = sent.lock().unwrap();
    assert_eq!(sent.len(), 1, "mended");
    assert_eq!(sent[0].1, 17);
    assert!(sent[0].0 - begun > ms(1_000), "the first waited ten delays");
}

/// 17.
#[tokio::test(start_paused = true)]
async fn ultra_batch_gives_the_last_caller_an_answer_that_is_not_his() {
    let (doubles, _) = doubles(1, false);
    let service = BatchExecutor::build(doubles).finish();
    let answer = service.execute(1).await.unwrap();
    assert_eq!(answer, Some(4_711), "mended");
}

/// 20.
#[tokio::test(start_paused = true)]
async fn ultra_batch_panics_with_its_backend_and_fails_for_good() {
    let (doubles, _) = doubles(0, true);
    let service = BatchExecutor::build(doubles).finish();
    let first = service.clone();
    let panicked = tokio::spawn(async move { first.execute(1).await });
    assert!(panicked.await.unwrap_err().is_panic(), "mended");
    let error = service.execute(2).await.expect_err("mended");
    assert!(matches!(error, ExecuteError::SendError));
}
