//! `NatsPool` against a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Auth, Client, ConnectOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_test::{assert_pending, task};
use tower::{Service, ServiceExt};
use tower_flow::error::{Reason, find};
use tower_flow::nats::{ErrorKind, NatsPool, NatsPoolBuilder, NatsPoolHandle, NatsRequest};
use tower_flow::{Flow, Rejection};

use super::server::{SOON, Server, eager, listen, soon, until};

pub fn pool(server: &Server) -> NatsPoolBuilder {
    NatsPool::builder(server.url())
        .options(eager())
        .backoff(Duration::from_millis(20), Duration::from_millis(20))
}

/// Answers on `work` when it is told to; until then says what came.
pub async fn worker(client: Client) -> (mpsc::UnboundedReceiver<()>, mpsc::UnboundedSender<()>) {
    let mut asked = listen(&client, "work").await;
    let (came, comes) = mpsc::unbounded_channel();
    let (go, mut goes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let _ = came.send(());
            if goes.recv().await.is_none() {
                return;
            }
            let reply = message.reply.unwrap();
            client.publish(reply, message.payload).await.unwrap();
        }
    });
    (comes, go)
}

/// Answers on `echo`, for as long as the server is there.
pub async fn echo(client: Client) {
    let mut asked = listen(&client, "echo").await;
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let _ = client
                .publish(message.reply.unwrap(), message.payload)
                .await;
        }
    });
}

fn is_idle(handle: &NatsPoolHandle) -> bool {
    let now = handle.stats();
    assert_eq!(now.acquired - now.released, now.in_flight as u64);
    (now.in_flight, now.waiting) == (0, 0)
}

#[tokio::test]
async fn it_connects_when_asked_and_again_when_each_carries_enough() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (mut comes, go) = worker(server.client().await).await;
    let pool = pool(&server).max_connections(3).scale_at(1).build();
    let handle = pool.handle();
    assert_eq!(handle.stats().size, 0, "nobody asked");
    let ask = |count| {
        let pool = pool.clone();
        (0..count).map(move |_| tokio::spawn(pool.clone().oneshot(NatsRequest::new("work"))))
    };
    let mut requests: Vec<_> = ask(3).collect();
    soon(comes.recv()).await.unwrap();
    until(|| handle.stats().up == 2).await;
    assert_eq!(handle.stats().size, 2, "the second carries nothing yet");
    requests.extend(ask(6));
    until(|| handle.stats().up == 3).await;
    let now = handle.stats();
    assert_eq!((now.size, now.created, now.in_flight), (3, 3, 9));
    for _ in 0..9 {
        go.send(()).unwrap();
    }
    for request in requests {
        soon(request).await.unwrap().unwrap();
    }
    assert!(is_idle(&handle));
    assert_eq!(handle.stats().results, [("ok", 9)]);
    // The load is spread by what is in flight; equals take turns.
    for _ in 0..3 {
        go.send(()).unwrap();
        soon(pool.clone().oneshot(NatsRequest::new("work")))
            .await
            .unwrap();
    }
    let client = soon(pool.client()).await.unwrap();
    soon(client.flush()).await.unwrap();
    assert_eq!(handle.stats().size, 3, "never beyond the limit");
}

#[tokio::test]
async fn what_waits_is_bounded_in_number_and_time() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (mut comes, go) = worker(server.client().await).await;
    let pool = pool(&server)
        .max_connections(1)
        .max_in_flight(1)
        .max_waiting(1)
        .acquire_timeout(Duration::from_millis(50))
        .build();
    soon(pool.warm(1)).await.unwrap();
    let handle = pool.handle();
    let first = tokio::spawn(pool.clone().oneshot(NatsRequest::new("work")));
    soon(comes.recv()).await.unwrap();
    let mut second = task::spawn(pool.clone().oneshot(NatsRequest::new("work")));
    assert_pending!(second.poll());
    let third = soon(pool.clone().oneshot(NatsRequest::new("work")))
        .await
        .unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Overloaded);
    assert_eq!(
        find::<Rejection>(&third).map(Rejection::reason),
        Some(Reason::QueueFull)
    );
    let second = soon(second).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AcquireTimeout);
    assert!(
        second.to_string().contains("1 requests are in flight on 1"),
        "{second}"
    );
    // One that waits goes on as soon as there is room.
    let fourth = tokio::spawn(pool.clone().oneshot(NatsRequest::new("work").timeout(SOON)));
    until(|| handle.stats().waiting == 1).await;
    go.send(()).unwrap();
    go.send(()).unwrap();
    soon(first).await.unwrap().unwrap();
    soon(fourth).await.unwrap().unwrap();
    assert!(is_idle(&handle));
}

#[tokio::test]
async fn a_future_dropped_at_any_point_gives_everything_back() {
    let Some(server) = Server::start("") else {
        return;
    };
    let _silent = listen(&server.client().await, "silent").await;
    let pool = pool(&server).max_connections(1).max_in_flight(2).build();
    let handle = pool.handle();
    // While there is no connection yet, while there is room, and while there is none.
    for round in 0..2 {
        let futures: Vec<_> = (0..6)
            .map(|n| {
                let mut service = pool.clone();
                let mut future = task::spawn(service.call(NatsRequest::new("silent")));
                if n > 0 {
                    assert_pending!(future.poll());
                }
                future
            })
            .collect();
        if round > 0 {
            assert_eq!((handle.stats().in_flight, handle.stats().waiting), (2, 3));
        }
        for future in futures {
            drop(future);
        }
        assert!(is_idle(&handle), "{:?}", handle.stats());
        soon(pool.warm(1)).await.unwrap();
    }
    // A place that was granted and not taken goes to the next.
    let mut held: Vec<_> = (0..4)
        .map(|_| {
            let mut future = task::spawn(pool.clone().oneshot(NatsRequest::new("silent")));
            assert_pending!(future.poll());
            future
        })
        .collect();
    drop(held.remove(0));
    assert!(held[1].is_woken());
    drop(held.remove(1));
    assert!(held[1].is_woken());
    assert_eq!((handle.stats().in_flight, handle.stats().waiting), (2, 0));
    drop(held);
    assert!(is_idle(&handle));
}

#[tokio::test]
async fn wrong_credentials_are_told_and_right_ones_heal_it() {
    let login = |password| format!("authorization {{ user: u, password: {password} }}");
    let Some(mut server) = Server::start(&login("right")) else {
        return;
    };
    let options = eager().user_and_password("u".into(), "other".into());
    let flow = Flow::new("test");
    let pool = pool(&server).options(options).attach(&flow).build();
    let error = soon(pool.clone().oneshot(NatsRequest::new("echo")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(
        error.to_string().contains("authorization violation"),
        "{error}"
    );
    let cause = find::<async_nats::ConnectError>(&error).map(async_nats::ConnectError::kind);
    assert_eq!(
        cause,
        Some(async_nats::ConnectErrorKind::AuthorizationViolation)
    );
    let shown = pool.handle().stats().last_error.unwrap();
    assert!(shown.contains("authorization violation"), "{shown}");
    assert!(
        !flow.snapshot().to_string().contains("other"),
        "no password is shown"
    );

    server.kill();
    server.config = login("other");
    server.up();
    soon(async {
        loop {
            let asked = pool.clone().oneshot(NatsRequest::new("echo"));
            match asked.await.unwrap_err().kind() {
                // Connected: there is nobody to answer, which the server says.
                ErrorKind::NoResponders => break,
                kind => assert_eq!(kind, ErrorKind::Connect),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn down_at_the_start_is_an_error_and_then_no_more() {
    let Some(mut server) = Server::prepare("") else {
        return;
    };
    let pool = pool(&server).build();
    let error = soon(pool.clone().oneshot(NatsRequest::new("echo")))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Connect, true)
    );
    assert!(soon(pool.warm(1)).await.is_err());
    server.up();
    echo(server.client().await).await;
    soon(async { while pool.warm(2).await.is_err() {} }).await;
    soon(pool.clone().oneshot(NatsRequest::new("echo")))
        .await
        .unwrap();
    assert_eq!(pool.handle().stats().up, 2);
    let nonsense = NatsPool::builder("nats://:x:").build();
    let error = soon(nonsense.oneshot(NatsRequest::new("echo")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn a_restart_under_traffic_loses_no_place_and_heals() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    echo(server.client().await).await;
    let pool = pool(&server).max_connections(2).scale_at(1).build();
    soon(pool.warm(2)).await.unwrap();
    let handle = pool.handle();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (mut pool, stopped) = (pool.clone(), stopped.clone());
            tokio::spawn(async move {
                let (mut good, mut bad) = (0u64, Vec::new());
                while !*stopped.borrow() {
                    let ready = pool.ready().await.unwrap();
                    let req = NatsRequest::new("echo").timeout(Duration::from_millis(500));
                    match ready.call(req).await {
                        Ok(_) => good += 1,
                        Err(error) => bad.push(error.kind()),
                    }
                }
                (good, bad)
            })
        })
        .collect();
    let good = || {
        let results = handle.stats().results;
        results
            .iter()
            .find(|(result, _)| *result == "ok")
            .map_or(0, |(_, n)| *n)
    };
    until(|| good() > 100).await;
    server.kill();
    until(|| handle.stats().down == 2).await;
    let mut down = task::spawn(pool.clone());
    assert!(down.enter(|cx, mut pool| pool.poll_ready(cx)).is_pending());
    server.up();
    let before = good();
    until(|| good() > before + 100).await;
    stop.send(true).unwrap();
    for caller in callers {
        let (good, bad) = soon(caller).await.unwrap();
        assert!(good > 0);
        let known = |kind: &ErrorKind| {
            matches!(
                kind,
                ErrorKind::Disconnected { .. }
                    | ErrorKind::TimedOut
                    // The responder may be back later than we are.
                    | ErrorKind::NoResponders
            )
        };
        assert!(bad.iter().all(known), "{bad:?}");
    }
    assert!(is_idle(&handle));
    let now = handle.stats();
    assert_eq!(
        (now.up, now.created, now.lost >= 2),
        (2, 2, true),
        "{now:?}"
    );
}

#[tokio::test]
async fn warming_waits_for_connections_that_are_down() {
    let Some(mut server) = Server::start("") else {
        return;
    };
    let pool = pool(&server).build();
    soon(pool.warm(2)).await.unwrap();
    server.kill();
    until(|| pool.handle().stats().down == 2).await;
    let warm = pool.clone();
    let mut warm = task::spawn(async move { warm.warm(2).await });
    assert_pending!(warm.poll());
    server.up();
    soon(warm).await.unwrap();
    assert_eq!(
        pool.handle().stats().created,
        2,
        "they came back by themselves"
    );
}

#[tokio::test]
async fn a_dial_whose_callback_panics_has_failed_and_another_follows() {
    let Some(server) = Server::start("") else {
        return;
    };
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    let options = ConnectOptions::with_auth_callback(move |_| {
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            assert!(!first, "told to");
            Ok(Auth::new())
        }
    });
    let pool = pool(&server).options(options).build();
    let error = soon(pool.clone().oneshot(NatsRequest::new("nobody")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("panicked"), "{error}");
    let now = pool.handle().stats();
    assert_eq!((now.size, now.failed, now.waiting), (0, 1, 0));
    soon(async { while pool.warm(1).await.is_err() {} }).await;
    let error = soon(pool.clone().oneshot(NatsRequest::new("nobody"))).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NoResponders);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn shutting_down_waits_for_what_is_in_flight() {
    let Some(server) = Server::start("") else {
        return;
    };
    let (mut comes, go) = worker(server.client().await).await;
    let mut pool = pool(&server).build();
    let request = tokio::spawn(pool.clone().oneshot(NatsRequest::new("work")));
    soon(comes.recv()).await.unwrap();
    let closing = pool.clone();
    let mut closed = task::spawn(async move { closing.shutdown().await });
    assert_pending!(closed.poll());
    let refused = soon(pool.ready()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    go.send(()).unwrap();
    soon(request).await.unwrap().unwrap();
    soon(closed).await;
    assert_eq!(pool.handle().stats().size, 0);
    // Whoever was never told is told by the first request.
    let refused = soon(pool.call(NatsRequest::new("work"))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
}
