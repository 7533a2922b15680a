//! What all handles of a pool share: the core under its lock, and the doing of what the core decides.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::Connected;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::core::{
    Acquired, Action, Cause, CloseReason, ConnId, Core, Grant, HostId, HostKey, Limits, Refusal,
    Version, WaiterId,
};
use super::crew::Crew;
use super::error::Error;
use super::events::{Observer, PoolEvents};
use super::keeper::{self, Keeper};
use super::link::Link;
use super::metrics::Measures;
use super::request;
use super::sender::Sender;
use crate::base::clock::{self, Instant};
use crate::base::phases::Dial;

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

/// What the shell knows of one connection.
pub(super) struct Connection<B> {
    pub(super) shared: Arc<Shared<B>>,
    pub(super) id: ConnId,
    pub(super) origin: Origin,
    pub(super) dial: Dial,
    pub(super) link: Link<Sender<B>>,
    /// Set before the first request.
    pub(super) made: OnceLock<Made>,
    /// The `CloseReason` to give when it goes.
    ending: AtomicU8,
}

/// What a dial found.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) version: Version,
    pub(super) connected: Connected,
    pub(super) proxied: bool,
}

/// Where a connection leads.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// `scheme://authority/`.
    pub(super) uri: Uri,
    /// As errors say it.
    pub(super) name: Arc<str>,
    /// The `Host` header of requests that have none.
    pub(super) header: Option<HeaderValue>,
}

/// The slot of a connection of a [`ConnPool`](super::ConnPool): free when the last clone is dropped. The IO has one, in
/// [`Held`](super::Held), and its dial until it has told what it came to.
#[derive(Clone)]
pub struct Slot {
    _holder: Arc<Holder>,
}

struct Holder(Arc<dyn Gone>);

/// Is told that its socket is no more.
trait Gone: Send + Sync {
    fn gone(&self);
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
}

impl<B> Drop for Task<B> {
    fn drop(&mut self) {
        // Acquired by whoever waits for all of them.
        self.0.tasks.fetch_sub(1, Ordering::Release);
        self.0.ended.notify_waiters();
    }
}

// ===== impl Connection =====

impl<B: Send + 'static> Connection<B> {
    fn new(shared: Arc<Shared<B>>, id: ConnId, origin: Origin) -> Self {
        let now = clock::now();
        let dial = match &shared.options.events {
            None => Dial::new(now),
            Some(events) => {
                let observer = Observer::new(events.clone(), origin.name.clone());
                Dial::observed(now, Arc::new(observer))
            }
        };
        Self {
            shared,
            id,
            origin,
            dial,
            link: Link::new(),
            made: OnceLock::new(),
            ending: AtomicU8::new(CloseReason::Peer as u8),
        }
    }

    /// Its slot, which the caller gives to the IO.
    pub(super) fn slot(self: &Arc<Self>) -> Slot {
        Slot {
            _holder: Arc::new(Holder(self.clone())),
        }
    }

    /// Why it will go, unless the core knows better.
    pub(super) fn ends(&self, reason: CloseReason) {
        self.ending.store(reason as u8, Ordering::Relaxed);
    }

    /// A request on it is over.
    pub(super) fn free(&self, used: bool) {
        self.free_at(clock::now(), used);
    }

    #[inline]
    pub(super) fn free_at(&self, now: Instant, used: bool) {
        let Some(events) = &self.shared.options.events else {
            self.shared.event(|core| core.free(now, self.id, used));
            return;
        };
        let idles = self.shared.event(|core| {
            core.free(now, self.id, used);
            core.idles(self.id)
        });
        if idles {
            events.put_idle_conn(&self.origin.name);
        }
    }

    pub(super) fn multiplexed(&self) -> bool {
        let made = self.made.get();
        made.is_some_and(|made| made.version == Version::Http2)
    }

    /// A stream ended while there is work beside the streams: if it was the last, the connection is idle when that is
    /// done.
    pub(super) fn trail(&self) {
        let now = clock::now();
        let last = self.shared.event(|core| core.trail(now, self.id));
        if last && self.link.trails() {
            self.trailed();
        }
    }

    /// There is no work any more beside the streams.
    pub(super) fn trailed(&self) {
        let now = clock::now();
        self.shared.event(|core| core.trailed(now, self.id));
    }

    pub(super) fn host(&self) -> Arc<str> {
        self.origin.name.clone()
    }
}

impl<B: Send + 'static> Gone for Connection<B> {
    fn gone(&self) {
        self.link.end();
        let reason = CloseReason::ALL[usize::from(self.ending.load(Ordering::Relaxed))];
        let now = clock::now();
        let mut locked = self.shared.lock();
        let place = locked.connections.get_mut(self.id.index());
        let entry = place.and_then(|place| place.take_if(|entry| entry.id == self.id));
        let gone = locked.core.gone(now, self.id, reason);
        let over = locked.core.over();
        self.shared.carry_out(locked);
        drop(entry);
        if let Some(gone) = gone {
            self.shared.measures.gone(&gone, now);
            if let Some(events) = &self.shared.options.events {
                events.closed(&self.origin.name, gone.reason);
            }
        }
        if over {
            self.shared.ended.notify_waiters();
            self.shared.ring_keeper();
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.gone();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

// ===== impl Origin =====

impl Origin {
    fn new(uri: Uri) -> Self {
        let name = uri.to_string();
        Self {
            header: request::host_header(&uri),
            name: name.trim_end_matches('/').into(),
            uri,
        }
    }
}

/// The error of a host nobody has a connection to yet.
pub(super) fn name_of(uri: &Uri) -> Result<Arc<str>, Error> {
    let origin = request::origin(uri).ok_or_else(|| Error::uri(uri))?;
    Ok(origin.to_string().trim_end_matches('/').into())
}
