//! Batches over the wire: real tonic and hyper servers on loopback, and servers that do what no library lets them.

mod http;
mod layer;
mod raw;
mod shelf;
mod stream;
mod unary;

use std::time::Duration;

use tower::{Service, ServiceExt};
use tower_flow::BoxError;
use tower_flow::batch::{Batch, IntoResults};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Waits until `done`, or fails.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(ms(5)).await;
    }
    panic!("never: {what}");
}

/// What each item of a batch got: `None` if nothing. Fails when it takes long.
async fn send<S, Req>(
    service: &S,
    items: impl IntoIterator<Item = Req>,
) -> Result<Sent<<S::Response as IntoResults>::Response>, S::Error>
where
    S: Service<Batch<Req>, Response: IntoResults> + Clone,
{
    let batch = Batch::new(items);
    let items = batch.len();
    let answer = tokio::time::timeout(Duration::from_secs(20), service.clone().oneshot(batch));
    let answer = answer.await.expect("it hangs")?;
    let mut sent = Sent {
        items: (0..items).map(|_| None).collect(),
        unknown: 0,
    };
    for (position, result) in answer.into_results(items) {
        match sent.items.get_mut(position) {
            Some(place @ None) => *place = Some(result.map_err(Into::into)),
            _ => sent.unknown += 1,
        }
    }
    Ok(sent)
}

struct Sent<T> {
    items: Vec<Option<Result<T, BoxError>>>,
    /// Answers for nobody.
    unknown: usize,
}

impl<T> Sent<T> {
    /// The answers, when all have one.
    fn all(self) -> Vec<T> {
        assert_eq!(self.unknown, 0);
        let answers = self.items.into_iter();
        answers
            .map(|answer| answer.expect("an answer").unwrap())
            .collect()
    }

    /// In a letter each: answered, failed, missing.
    fn outline(&self) -> String {
        let letter = |item: &Option<Result<T, BoxError>>| match item {
            Some(Ok(_)) => 'a',
            Some(Err(_)) => 'f',
            None => '-',
        };
        self.items.iter().map(letter).collect()
    }

    fn error(&self, position: usize) -> &BoxError {
        let item = self.items[position].as_ref();
        item.and_then(|result| result.as_ref().err())
            .expect("an error")
    }
}
