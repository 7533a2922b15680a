//! Faults driven through the layers: what a scrape shows before, after a minute of the fault, and after a minute without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tower::{Layer, Service, ServiceExt, service_fn};
use tower_flow::batch::{Batch, BatchLayer};
use tower_flow::coalesce::CoalesceLayer;
use tower_flow::grpc::{GrpcClientLayer, GrpcServerLayer, RequestBody};
use tower_flow::pool::{ConnPool, connect};
use tower_flow::priority::Priority;
use tower_flow::shed::{Ask, Queue, ShedLayer};
use tower_flow::signal::{LagSignal, Pressure};
use tower_flow::throttle::ThrottleLayer;
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow};

use super::series::{Series, scraped};
use crate::support::{Steps, classic, data, framed, grpc_request, grpc_response, trailers};
use crate::validators::read;

/// A flow, and the scrapes of it.
pub struct Camera {
    flow: Flow,
    taken: Vec<Vec<Series>>,
}

/// Before, ill, well.
pub type Scrapes = [Vec<Series>; 3];

impl Camera {
    fn take(&mut self) {
        self.taken.push(scraped(&classic(&self.flow)));
    }
}

/// Runs a scene in a runtime of its own, under paused time unless it needs sockets.
fn film(paused: bool, scene: impl AsyncFnOnce(&mut Camera)) -> Scrapes {
    let mut camera = Camera {
        flow: Flow::new("film"),
        taken: Vec::new(),
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(paused).build().unwrap();
    runtime.block_on(scene(&mut camera));
    camera.taken.try_into().unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Half of the calls fail, and all take two seconds.
pub fn failing_and_late() -> Scrapes {
    film(true, async |camera| {
        let layer = TimingLayer::new("api").attach(&camera.flow);
        let service = layer.layer(service_fn(async |(time, fails): (Duration, bool)| {
            tokio::time::sleep(time).await;
            match fails {
                true => Err(BoxError::from("told to")),
                false => Ok(()),
            }
        }));
        camera.take();
        for n in 0..60 {
            let answered = service.clone().oneshot((ms(2_000), n % 2 == 0)).await;
            assert_eq!(answered.is_err(), n % 2 == 0);
        }
        camera.take();
        for _ in 0..60 {
            service.clone().oneshot((ms(2), false)).await.unwrap();
        }
        camera.take();
    })
}

pub fn panicking() -> Scrapes {
    film(true, async |camera| {
        let layer = TimingLayer::new("api").attach(&camera.flow);
        let service = layer.layer(service_fn(async |panics: bool| {
            assert!(!panics, "told to");
            Ok::<_, BoxError>(())
        }));
        camera.take();
        let asked = tokio::spawn(service.clone().oneshot(true));
        assert!(asked.await.unwrap_err().is_panic());
        camera.take();
        service.oneshot(false).await.unwrap();
        camera.take();
    })
}

/// Calls on both sides are late and unavailable; what the server answers ends within a message.
pub fn grpc_failing_late_and_cut() -> Scrapes {
    film(true, async |camera| {
        let fds = include_bytes!("../../interop/gen/interop.fds");
        let server = GrpcServerLayer::new().register_fds(fds).unwrap();
        let server = server.attach(&camera.flow);
        let client = GrpcClientLayer::new().register_fds(fds).unwrap();
        let client = client.attach(&camera.flow);
        let ill = Arc::new(AtomicBool::new(false));
        let answer = |side: &'static str| {
            let ill = ill.clone();
            service_fn(move |_: http::Request<RequestBody<Steps>>| {
                let ill = ill.load(Ordering::Relaxed);
                async move {
                    tokio::time::sleep(ms(if ill { 2_000 } else { 2 })).await;
                    Ok::<_, BoxError>(match (ill, side) {
                        (false, _) => grpc_response([trailers("0")]),
                        (true, "client") => grpc_response([trailers("14")]),
                        (true, _) => {
                            grpc_response([data(&framed(0, b"hello")[..7]), trailers("14")])
                        }
                    })
                }
            })
        };
        let mut served = server.layer(answer("server"));
        let mut asked = client.layer(answer("client"));
        let mut minute = async || {
            for _ in 0..30 {
                let req = || grpc_request("/grpc.testing.TestService/UnaryCall");
                read(served.ready().await.unwrap().call(req()).await.unwrap()).await;
                read(asked.ready().await.unwrap().call(req()).await.unwrap()).await;
            }
        };
        camera.take();
        ill.store(true, Ordering::Relaxed);
        minute().await;
        camera.take();
        ill.store(false, Ordering::Relaxed);
        minute().await;
        camera.take();
    })
}

/// A limit of one that is taken, so that even what is critical is refused.
pub fn shedding() -> Scrapes {
    film(true, async |camera| {
        let shed = ShedLayer::fixed(64).name("gate").queue(Queue::none());
        let shed = shed.triage_by(|level: &Priority| -> Ask<'_> { Ask::new().priority(*level) });
        let shed = shed.attach(&camera.flow);
        let service = shed.layer(service_fn(async |level: Priority| {
            match level {
                Priority::BestEffort => std::future::pending().await,
                _ => tokio::time::sleep(ms(2)).await,
            }
            Ok::<_, BoxError>(())
        }));
        camera.take();
        shed.handle().set_limit(1);
        let mut held = tokio_test::task::spawn(service.clone().oneshot(Priority::BestEffort));
        assert!(held.poll().is_pending());
        for n in 0..30 {
            let level = [Priority::Default, Priority::Critical][n % 2];
            service.clone().oneshot(level).await.unwrap_err();
        }
        camera.take();
        drop(held);
        shed.handle().set_limit(64);
        for _ in 0..30 {
            service.clone().oneshot(Priority::Critical).await.unwrap();
        }
        camera.take();
    })
}

/// A signal that is far beyond what is critical.
pub fn pressed() -> Scrapes {
    film(true, async |camera| {
        let lag = LagSignal::new("lag");
        let pressure = Pressure::new(lag.clone()).warn(1.0).critical(9.0);
        let shed = ShedLayer::fixed(64).pressure(pressure).attach(&camera.flow);
        let mut minute = async |value: f64| {
            for _ in 0..60 {
                lag.push(value);
                shed.handle().snapshot();
                tokio::time::sleep(ms(1_000)).await;
            }
            camera.take();
        };
        minute(0.0).await;
        minute(100.0).await;
        minute(0.0).await;
    })
}

/// Left in a dry run, and paused.
pub fn left_switched() -> Scrapes {
    film(true, async |camera| {
        let shed = ShedLayer::adaptive().attach(&camera.flow);
        let service = shed.layer(service_fn(async |()| {
            tokio::time::sleep(ms(10)).await;
            Ok::<_, BoxError>(())
        }));
        for _ in 0..500 {
            service.clone().oneshot(()).await.unwrap();
        }
        camera.take();
        shed.handle().dry_run(true);
        shed.handle().pause(true);
        camera.take();
        shed.handle().dry_run(false);
        shed.handle().pause(false);
        camera.take();
    })
}

/// A backend that refuses everything.
pub fn throttled() -> Scrapes {
    film(true, async |camera| {
        let layer = ThrottleLayer::new("stock").attach(&camera.flow);
        let ill = Arc::new(AtomicBool::new(false));
        let down = ill.clone();
        let service = layer.layer(service_fn(move |()| {
            let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            std::future::ready(match down.load(Ordering::Relaxed) {
                true => Err(refused()),
                false => Ok(()),
            })
        }));
        let mut minutes = async |seconds: u64| {
            for _ in 0..seconds * 10 {
                tokio::time::sleep(ms(100)).await;
                let _ = service.clone().oneshot(()).await;
            }
            camera.take();
        };
        minutes(60).await;
        ill.store(true, Ordering::Relaxed);
        // As long as the layer looks back.
        minutes(180).await;
        ill.store(false, Ordering::Relaxed);
        minutes(240).await;
    })
}

pub fn coalescing_is_paused() -> Scrapes {
    film(true, async |camera| {
        let layer = CoalesceLayer::new(|req: &u8| Some(*req)).attach(&camera.flow);
        let service = layer.layer(service_fn(async |req: u8| Ok::<_, BoxError>(req)));
        let mut minute = async |paused: bool| {
            layer.handle().pause(paused);
            for n in 0..30 {
                service.clone().oneshot(n).await.unwrap();
            }
            camera.take();
        };
        minute(false).await;
        minute(true).await;
        minute(false).await;
    })
}

/// No two requests are equal.
pub fn nothing_to_share() -> Scrapes {
    film(true, async |camera| {
        let layer = CoalesceLayer::new(|req: &u16| Some(*req)).attach(&camera.flow);
        let service = layer.layer(service_fn(async |req: u16| {
            tokio::time::sleep(ms(2)).await;
            Ok::<_, BoxError>(req)
        }));
        let mut minute = async |keys: u16| {
            for n in 0..120 {
                let asked = [n % keys, (n + 1) % keys].map(|key| service.clone().oneshot(key));
                futures_util::future::try_join_all(asked).await.unwrap();
            }
            camera.take();
        };
        minute(1).await;
        minute(1_000).await;
        minute(1).await;
    })
}

/// Every item of every batch fails.
pub fn batches_failing() -> Scrapes {
    film(true, async |camera| {
        let layer = BatchLayer::new().name("writes").attach(&camera.flow);
        let service = layer.layer(service_fn(async |reqs: Batch<bool>| {
            let results = reqs.into_iter().map(|fails| match fails {
                true => Err(BoxError::from("told to")),
                false => Ok(()),
            });
            Ok::<_, BoxError>(results.collect::<Vec<_>>())
        }));
        let mut minute = async |fails: bool| {
            let asked = (0..30).map(|_| service.clone().oneshot(fails));
            let answered = futures_util::future::join_all(asked).await;
            assert!(answered.iter().all(|answered| answered.is_err() == fails));
            camera.take();
        };
        minute(false).await;
        minute(true).await;
        minute(false).await;
    })
}

/// Nobody listens.
pub fn dials_failing() -> Scrapes {
    film(false, async |camera| {
        let pool = ConnPool::builder(connect::http())
            .backoff(Duration::ZERO, Duration::ZERO)
            .attach(&camera.flow)
            .build();
        camera.take();
        for _ in 0..10 {
            let req = http::Request::get("http://127.0.0.1:1/");
            let req = req.body(http_body_util::Empty::<bytes::Bytes>::new());
            pool.clone().oneshot(req.unwrap()).await.unwrap_err();
        }
        camera.take();
        camera.take();
    })
}
