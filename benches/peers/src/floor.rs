use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;

use tower_service::Service;

/// What no accounting can avoid: two clock readings and eight relaxed additions, in cells no other thread writes.
#[derive(Clone)]
pub struct Floor<S>(pub S);

thread_local!(static CELLS: [AtomicU64; 8] = const { [const { AtomicU64::new(0) }; 8] });

impl<S: Service<Req>, Req> Service<Req> for Floor<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, req: Req) -> S::Future {
        for _ in 0..2 {
            black_box(Instant::now());
        }
        CELLS.with(|cells| {
            for cell in cells {
                cell.fetch_add(1, Relaxed);
            }
        });
        self.0.call(req)
    }
}
