//! The backend: an HTTP server whose jobs queue, first come first served, for a number of slots.
//!
//! A job goes on when its client has left, as queries and spawned tasks do. A slot's times are planned, not measured: a
//! job starts the moment the one before it ended or it arrived itself, so that timers which fire late delay answers a
//! little and take nothing from the capacity, which is slots ÷ mean time by construction.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::random::{Random, Service};

/// A backend on a thread of its own, until dropped.
pub(crate) struct Backend {
    addr: SocketAddr,
    open: Arc<watch::Sender<usize>>,
    taken: Arc<Mutex<Vec<Taken>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A job that got a slot.
#[derive(Clone, Copy)]
struct Taken {
    at: Instant,
    takes: Duration,
}

struct Job {
    arrived: Instant,
    done: oneshot::Sender<()>,
}

type Jobs = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>>;

// ===== impl Backend =====

impl Backend {
    pub(crate) fn start(slots: usize, service: Service, seed: u64) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let open = Arc::new(watch::Sender::new(slots));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (jobs, queue) = mpsc::unbounded_channel();
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let random = Arc::new(Mutex::new(Random(seed)));
        let draw = move || service.time(&mut random.lock().unwrap_or_else(PoisonError::into_inner));
        for number in 0..slots {
            let slot = slot(
                number,
                open.subscribe(),
                queue.clone(),
                draw.clone(),
                taken.clone(),
            );
            runtime.spawn(slot);
        }
        let thread = std::thread::Builder::new()
            .name("backend".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        _ = serve(listener, jobs) => {}
                    }
                });
            })?;
        Ok(Self {
            addr,
            open,
            taken,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The number of slots, which can be set: jobs that run are finished where they are.
    pub(crate) fn slots(&self) -> Arc<watch::Sender<usize>> {
        self.open.clone()
    }

    /// The mean time of the jobs that got a slot within this span, if there were any.
    pub(crate) fn mean(&self, from: Instant, to: Instant) -> Option<f64> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let within = taken.iter().filter(|job| (from..to).contains(&job.at));
        let (jobs, sum) = within.fold((0_u32, Duration::ZERO), |(jobs, sum), job| {
            (jobs + 1, sum + job.takes)
        });
        (jobs > 0).then(|| sum.as_secs_f64() / f64::from(jobs))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed there.
            let _ = thread.join();
        }
    }
}

async fn slot(
    number: usize,
    mut open: watch::Receiver<usize>,
    jobs: Jobs,
    draw: impl Fn() -> Duration,
    taken: Arc<Mutex<Vec<Taken>>>,
) {
    let mut free = Instant::now();
    while open.wait_for(|open| number < *open).await.is_ok() {
        let next = async { jobs.lock().await.recv().await };
        let job = tokio::select! {
            biased;
            _ = open.changed() => continue,
            Some(job) = next => job,
            else => return,
        };
        let at = free.max(job.arrived);
        let takes = draw();
        taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Taken { at, takes });
        free = at + takes;
        tokio::time::sleep_until(free.into()).await;
        // Whoever asked may have left.
        let _ = job.done.send(());
    }
}

async fn serve(listener: std::net::TcpListener, jobs: mpsc::UnboundedSender<Job>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let jobs = jobs.clone();
        let service = service_fn(move |_| {
            let (done, ended) = oneshot::channel();
            let job = Job {
                arrived: Instant::now(),
                done,
            };
            let _ = jobs.send(job);
            async {
                let _ = ended.await;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done\n")))
            }
        });
        let _ = socket.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(socket), service);
        tokio::spawn(connection);
    }
}
