//! What the acceptance tests find in the peers: each control is a test a peer fails, and fails itself once the peer is
//! mended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio_test::{assert_pending, assert_ready, task};
use tower::limit::ConcurrencyLimit;
use tower::util::MapErr;
use tower::{Layer, Service, ServiceExt as _};
use tower_resilience_coalesce::{CoalesceError, CoalesceLayer, CoalesceService};

use super::{Ask, Backend, Does, Fault, ask};

type Inner = MapErr<Backend, fn(Fault) -> &'static str>;
type Peer<S = Inner> = CoalesceService<S, u64, Ask, fn(&Ask) -> u64>;

/// Its errors must be clones.
fn inner(backend: &Backend) -> Inner {
    backend.clone().map_err(|fault: Fault| fault.0)
}

fn layer() -> CoalesceLayer<u64, Ask, fn(&Ask) -> u64> {
    CoalesceLayer::new(|ask: &Ask| ask.key.unwrap())
}

fn peer(backend: &Backend) -> Peer {
    layer().layer(inner(backend))
}

/// A call of a clone that is ready.
fn held<S>(service: &Peer<S>, req: Ask) -> task::Spawn<<Peer<S> as Service<Ask>>::Future>
where
    S: Service<Ask, Response: Clone + Send + 'static, Error = &'static str, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let mut service = service.clone();
    let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ready, Poll::Ready(Ok(()))));
    task::spawn(service.call(req))
}

/// 1.
#[test]
fn the_peer_fails_all_followers_of_a_leader_that_is_dropped() {
    let backend = Backend::new(Does::Waits);
    let service = peer(&backend);
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let mut followers: Vec<_> = (0..10).map(|_| held(&service, ask(1))).collect();
    for follower in &mut followers {
        assert_pending!(follower.poll());
    }
    drop(leader);
    for follower in &mut followers {
        let error = assert_ready!(follower.poll()).unwrap_err();
        assert!(matches!(error, CoalesceError::LeaderCancelled), "mended");
    }
}

/// 2.
#[test]
fn the_peer_leaves_followers_behind_a_leader_that_is_parked() {
    let backend = Backend::new(Does::Waits);
    let service = peer(&backend);
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let mut follower = held(&service, ask(1));
    backend.finish(1, Does::Answers);
    for _ in 0..1_000 {
        assert!(follower.poll().is_pending(), "mended");
    }
}

/// 3.
#[test]
fn the_peer_loses_a_key_to_a_panic_in_the_inner_call() {
    let backend = Backend::new(Does::PanicsInCall);
    let service = peer(&backend);
    assert!(catch_unwind(AssertUnwindSafe(|| held(&service, ask(1)))).is_err());
    backend.usual(Does::Answers);
    let mut next = held(&service, ask(1));
    for _ in 0..1_000 {
        assert!(next.poll().is_pending(), "mended");
    }
    assert_eq!(backend.calls(), 1, "nobody asks for it any more");
}

/// 4, without a clock: it would never move.
#[test]
fn the_peers_followers_wake_themselves_for_ever() {
    let backend = Backend::new(Does::Never);
    let service = peer(&backend);
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let mut follower = held(&service, ask(1));
    for _ in 0..1_000 {
        assert_pending!(follower.poll());
        assert!(follower.is_woken(), "mended");
    }
}

/// 5.
#[test]
fn the_peer_coalesces_nothing_behind_a_limit_of_one() {
    let backend = Backend::new(Does::Waits);
    let permits = Arc::new(Semaphore::new(1));
    let limited = ConcurrencyLimit::with_semaphore(inner(&backend), permits.clone());
    let service: Peer<_> = layer().layer(limited);
    let mut leader = held(&service, ask(1));
    assert_pending!(leader.poll());
    let mut second = service.clone();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(second.poll_ready(&mut cx).is_pending(), "mended");
    drop(leader);
    assert!(second.poll_ready(&mut cx).is_ready());
    assert_eq!(permits.available_permits(), 0, "an idle clone holds it");
}

/// 14.
#[test]
fn two_products_of_the_peers_layer_share_nothing() {
    let backend = Backend::new(Does::Waits);
    let layer = layer();
    let mut calls = [0, 1].map(|_| held(&layer.layer(inner(&backend)), ask(1)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    assert_eq!(backend.calls(), 2, "mended");
}

/// 3, of the future many share: who joins, polls and panics leaves the others asleep, and whoever wakes panics too.
#[test]
fn a_shared_future_that_panics_leaves_the_others_asleep() {
    let mut polls = 0;
    let future = std::future::poll_fn(move |_: &mut Context<'_>| {
        polls += 1;
        assert!(polls < 2, "told to");
        Poll::<u64>::Pending
    });
    let shared = future.shared();
    let mut first = task::spawn(shared.clone());
    assert_pending!(first.poll());
    let mut second = task::spawn(shared);
    assert!(catch_unwind(AssertUnwindSafe(|| second.poll())).is_err());
    assert!(!first.is_woken(), "mended");
    assert!(
        catch_unwind(AssertUnwindSafe(|| first.poll())).is_err(),
        "mended"
    );
}
