//! Waiting for connections to be there.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use http::Uri;

use super::connection::name_of;
use super::core::{Acquired, Answer, Core, HostId, Refusal, WaiterId};
use super::error::Error;
use super::request;
use super::shared::Shared;
use crate::base::clock;

struct Warming<'a, B: Send + 'static> {
    shared: &'a Arc<Shared<B>>,
    waiter: WaiterId,
}

pub(super) async fn warm<B: Send + 'static>(
    shared: &Arc<Shared<B>>,
    uri: &Uri,
    connections: usize,
) -> Result<usize, Error> {
    let name = name_of(uri)?;
    let (Some(key), Some(origin)) = (request::key(uri), request::origin(uri)) else {
        return Err(Error::uri(uri));
    };
    let hash = shared.hash(&key);
    let start = clock::now();
    let ask = |core: &mut Core| {
        let host: HostId = core.host(hash, &key, || origin);
        core.warm(start, host, connections, Waker::noop().clone())
    };
    let waiter = match shared.event(ask) {
        Acquired::Queued(waiter) => waiter,
        Acquired::Refused(Refusal::BackingOff { until, cause }) => {
            let pause = until.saturating_duration_since(start);
            return Err(Error::backing_off(name, pause, cause));
        }
        Acquired::Refused(_) | Acquired::Granted(_) => {
            return Err(Error::closed(name, Duration::ZERO));
        }
    };
    let warming = Warming { shared, waiter };
    let answer = poll_fn(|cx| {
        let mut waker = cx.waker().clone();
        warming.shared.lock().core.poll(waiter, &mut waker)
    })
    .await;
    let waited = clock::now().saturating_duration_since(start);
    match answer {
        Answer::Open(open) => Ok(open),
        Answer::Failed(cause) => Err(Error::connect(name, waited, cause)),
        Answer::Granted(_) | Answer::TimedOut { .. } | Answer::Closed => {
            Err(Error::closed(name, waited))
        }
    }
}

impl<B: Send + 'static> Drop for Warming<'_, B> {
    fn drop(&mut self) {
        let now = clock::now();
        drop(self.shared.event(|core| core.cancel(now, self.waiter)));
    }
}
