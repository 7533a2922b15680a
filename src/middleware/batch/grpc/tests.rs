//! Over a service in this process, on paused time; messages are protobuf's wrapped integers. Real servers and connections
//! are in `tests/it`.

mod stream;
mod unary;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::HeaderValue;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::base::clock;
use crate::base::deadline::{Deadline, GRPC_TIMEOUT};
use crate::middleware::batch::request::{Batch, Facts, Flush};

type Answers = Pin<Box<dyn Stream<Item = Result<u64, Status>> + Send>>;
type Handler = Arc<dyn Fn(Streaming<u64>) -> Answers + Send + Sync>;

/// A channel to a handler in this process: every call is a stream of messages in both directions.
#[derive(Clone)]
struct Local {
    handler: Handler,
    calls: Arc<AtomicUsize>,
    timeouts: Arc<Mutex<Vec<Option<HeaderValue>>>>,
    deadlines: Arc<Mutex<Vec<Option<Deadline>>>>,
}

// ===== impl Local =====

impl Local {
    fn new<A>(handler: impl Fn(Streaming<u64>) -> A + Send + Sync + 'static) -> Self
    where
        A: Stream<Item = Result<u64, Status>> + Send + 'static,
    {
        Self {
            handler: Arc::new(move |asked| Box::pin(handler(asked))),
            calls: Arc::default(),
            timeouts: Arc::default(),
            deadlines: Arc::default(),
        }
    }

    fn grpc(&self) -> Grpc<Self> {
        Grpc::new(self.clone())
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<http::Request<Body>> for Local {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: http::Request<Body>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let timeout = req.headers().get(GRPC_TIMEOUT).cloned();
        self.timeouts.lock().unwrap().push(timeout);
        let deadline = req.extensions().get().copied();
        self.deadlines.lock().unwrap().push(deadline);
        let handler = self.handler.clone();
        Box::pin(async move {
            let answer = service_fn(move |req: tonic::Request<Streaming<u64>>| {
                let answers = handler(req.into_inner());
                async move { Ok::<_, Status>(Response::new(answers)) }
            });
            let mut server = tonic::server::Grpc::new(ProstCodec::<u64, u64>::default());
            Ok(server.streaming(answer, req).await)
        })
    }
}

/// A batch whose items are waited for until then.
fn until(items: &[u64], moment: clock::Instant) -> Batch<u64> {
    let facts = Facts {
        weight: items.len(),
        flush: Flush::Full,
        deadline: Some(Deadline::at(moment)),
    };
    Batch::of(items.to_vec(), facts)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
