//! What all handles of a pool share: the core under its lock, and the doing of what the core decides.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use http::Uri;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::connection::{Connection, Origin};
use super::core::{
    Acquired, Action, Cause, ConnId, Core, Grant, HostId, HostKey, Limits, Refusal, WaiterId,
};
use super::crew::Crew;
use super::events::PoolEvents;
use super::keeper::{self, Keeper};
use super::metrics::Measures;
use super::request;
use crate::base::clock::Instant;
use crate::base::cost::Cost;

/// Makes the connections: the connector, whatever its type.
pub(super) trait Dialler<B>: Send + Sync {
    /// The whole life of a connection: dialled, driven, dropped.
    fn run(&self, connection: Arc<Connection<B>>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Sets hyper's own options.
pub(super) type Http2Options =
    Box<dyn Fn(&mut hyper::client::conn::http2::Builder<Crew>) + Send + Sync>;

/// What a pool was built with and the core need not know.
pub(super) struct Options {
    pub(super) name: Arc<str>,
    pub(super) connect_timeout: Duration,
    pub(super) retries: u32,
    pub(super) host_metrics: usize,
    pub(super) timings: bool,
    pub(super) events: Option<Arc<dyn PoolEvents>>,
    pub(super) http1: hyper::client::conn::http1::Builder,
    pub(super) http2: Http2Options,
}

pub(super) struct Shared<B> {
    pub(super) cost: Cost,
    pub(super) options: Options,
    pub(super) measures: Measures,
    dialler: Box<dyn Dialler<B>>,
    hasher: RandomState,
    locked: Mutex<Locked<B>>,
    /// The runtime that was last seen: for dials that begin where there is none.
    runtime: Mutex<Option<Handle>>,
    /// Tasks under way.
    tasks: AtomicUsize,
    /// Something ended that a shutdown may wait for.
    pub(super) ended: Notify,
}

pub(super) struct Locked<B> {
    pub(super) core: Core,
    /// By the place of their `ConnId`; there from the dial until the socket is gone.
    connections: Vec<Option<Arc<Connection<B>>>>,
    pub(super) keeper: Option<Keeper>,
}

/// One of the pool's tasks; dropped when the task is.
pub(super) struct Task<B>(Arc<Shared<B>>);

/// What became of a request for a connection.
pub(super) enum Asked<B> {
    Granted(Grant, Arc<Connection<B>>),
    Queued(WaiterId),
    Refused(Refusal),
}

enum Job<B> {
    Dial(Arc<Connection<B>>),
    Close(Arc<Connection<B>>),
    Wake(Waker),
    Discard(Arc<Cause>),
    Alarm,
}

/// What is to be done, all of it even when a waker panics.
struct Jobs<'a, B: Send + 'static> {
    shared: &'a Arc<Shared<B>>,
    left: std::vec::IntoIter<Job<B>>,
}

// ===== impl Shared =====

impl<B: 'static> Shared<B> {
    pub(super) fn new(options: Options, limits: Limits, dialler: Box<dyn Dialler<B>>) -> Self {
        let hasher = RandomState::new();
        Self {
            cost: Cost::new(),
            measures: Measures::default(),
            dialler,
            locked: Mutex::new(Locked {
                core: Core::new(limits, hasher.hash_one(&options.name)),
                connections: Vec::new(),
                keeper: None,
            }),
            hasher,
            options,
            runtime: Mutex::new(Handle::try_current().ok()),
            tasks: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Locked<B>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn hash(&self, key: &HostKey<'_>) -> u64 {
        self.hasher
            .hash_one((key.scheme, request::lower(key.name), key.port))
    }

    /// The host of `uri`, if it is known.
    pub(super) fn find(&self, uri: &Uri) -> Option<HostId> {
        let key = request::key(uri)?;
        let hash = self.hash(&key);
        self.lock().core.find(hash, &key)
    }

    pub(super) fn tasks(&self) -> usize {
        self.tasks.load(Ordering::Acquire)
    }
}

impl<B: Send + 'static> Shared<B> {
    /// Changes the core and does what follows.
    #[inline]
    pub(super) fn event<T>(self: &Arc<Self>, change: impl FnOnce(&mut Core) -> T) -> T {
        let mut locked = self.lock();
        let result = change(&mut locked.core);
        self.carry_out(locked);
        result
    }

    /// Asks for a place on a connection to the host of `uri`, and gives the connection with it; `None` when `uri` names
    /// no host.
    #[inline]
    pub(super) fn ask(self: &Arc<Self>, now: Instant, uri: &Uri, before: bool) -> Option<Asked<B>> {
        let spelling = request::spelling(uri);
        let mut locked = self.lock();
        let host = match locked.core.spelled(spelling, uri) {
            Some(host) => host,
            None => {
                drop(locked);
                let (known, host) = self.meet(spelling, uri)?;
                locked = known;
                host
            }
        };
        // The waker comes with the first poll.
        let waker = || Waker::noop().clone();
        let asked = match locked.core.acquire(now, host, before, waker) {
            Acquired::Granted(grant) => {
                let connection = locked.connection(grant.conn);
                Asked::Granted(grant, connection.expect("a granted connection is there"))
            }
            Acquired::Queued(waiter) => Asked::Queued(waiter),
            Acquired::Refused(refusal) => Asked::Refused(refusal),
        };
        self.carry_out(locked);
        if let Asked::Queued(_) = asked {
            keeper::visit(self);
        }
        Some(asked)
    }

    /// The host of `uri` as it was never written before, or not lately.
    #[cold]
    fn meet(&self, spelling: u64, uri: &Uri) -> Option<(MutexGuard<'_, Locked<B>>, HostId)> {
        let key = request::key(uri)?;
        let hash = self.hash(&key);
        let mut locked = self.lock();
        let core = &mut locked.core;
        let host = match core.find(hash, &key) {
            Some(host) => host,
            None => {
                let origin = request::origin(uri)?;
                core.host(hash, &key, || origin)
            }
        };
        core.learn(spelling, host);
        Some((locked, host))
    }

    /// Does what the core decided, outside its lock.
    #[inline]
    pub(super) fn carry_out(self: &Arc<Self>, locked: MutexGuard<'_, Locked<B>>) {
        if !locked.core.rests() {
            self.act(locked);
        }
    }

    #[cold]
    fn act(self: &Arc<Self>, mut locked: MutexGuard<'_, Locked<B>>) {
        let actions = locked.core.actions();
        let jobs: Vec<_> = actions
            .into_iter()
            .filter_map(|action| self.job(&mut locked, action))
            .collect();
        drop(locked);
        Jobs {
            shared: self,
            left: jobs.into_iter(),
        }
        .carry_out();
    }

    fn job(self: &Arc<Self>, locked: &mut Locked<B>, action: Action) -> Option<Job<B>> {
        Some(match action {
            Action::Dial(conn) => {
                let origin = Origin::new(locked.core.target(conn)?);
                let connection = Arc::new(Connection::new(self.clone(), conn, origin));
                let place = conn.index();
                if locked.connections.len() <= place {
                    locked.connections.resize_with(place + 1, || None);
                }
                locked.connections[place] = Some(connection.clone());
                Job::Dial(connection)
            }
            Action::Close(conn) => Job::Close(locked.connection(conn)?),
            Action::Wake(waker) => Job::Wake(waker),
            Action::Discard(cause) => Job::Discard(cause),
            Action::Alarm => Job::Alarm,
        })
    }

    /// The runtime this is called from, else the one that was last seen.
    pub(super) fn runtime(&self) -> Option<Handle> {
        let Ok(current) = Handle::try_current() else {
            return self.last_runtime();
        };
        let mut last = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(current.clone());
        Some(current)
    }

    pub(super) fn last_runtime(&self) -> Option<Handle> {
        let last = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Runs `future` as one of the pool's tasks. Without a runtime it is dropped, and with it a dial's slot: whoever
    /// waits is told.
    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime() {
            self.spawn_on(&runtime, future);
        }
    }

    pub(super) fn spawn_on(
        self: &Arc<Self>,
        runtime: &Handle,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.fetch_add(1, Ordering::Relaxed);
        let task = Task(self.clone());
        runtime.spawn(async move {
            let _task = task;
            future.await;
        });
    }

    /// Lets the keeper look whether it is still needed.
    pub(super) fn ring_keeper(&self) {
        if let Some(keeper) = &self.lock().keeper {
            keeper.ring();
        }
    }

    pub(super) fn close_all(self: &Arc<Self>) {
        let connections: Vec<_> = {
            let locked = self.lock();
            let all = locked.core.all().into_iter();
            all.filter_map(|conn| locked.connection(conn)).collect()
        };
        for connection in connections {
            connection.link.stop();
        }
    }

    /// The one that is dialled for a waiter that gave up.
    pub(super) fn connection(&self, conn: ConnId) -> Option<Arc<Connection<B>>> {
        self.lock().connection(conn)
    }
}

impl<B: Send + 'static> Jobs<'_, B> {
    fn carry_out(&mut self) {
        for job in self.left.by_ref() {
            match job {
                Job::Dial(connection) => {
                    let shared = self.shared;
                    shared.spawn(shared.dialler.run(connection));
                }
                Job::Close(connection) => connection.link.stop(),
                Job::Wake(waker) => waker.wake(),
                Job::Discard(cause) => drop(cause),
                Job::Alarm => keeper::ring(self.shared),
            }
        }
    }
}

impl<B: Send + 'static> Drop for Jobs<'_, B> {
    fn drop(&mut self) {
        self.carry_out();
    }
}

impl<B> Locked<B> {
    #[inline]
    pub(super) fn connection(&self, conn: ConnId) -> Option<Arc<Connection<B>>> {
        let connection = self.connections.get(conn.index())?.as_ref()?;
        (connection.id == conn).then(|| connection.clone())
    }

    pub(super) fn forget(&mut self, conn: ConnId) -> Option<Arc<Connection<B>>> {
        let place = self.connections.get_mut(conn.index())?;
        place.take_if(|connection| connection.id == conn)
    }
}

impl<B> Drop for Task<B> {
    fn drop(&mut self) {
        // Acquired by whoever waits for all of them.
        self.0.tasks.fetch_sub(1, Ordering::Release);
        self.0.ended.notify_waiters();
    }
}
