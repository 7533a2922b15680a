//! What the shell knows of one connection, and the slot that is free when it is gone.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::Connected;

use super::core::{CloseReason, ConnId, Version};
use super::error::Error;
use super::events::Observer;
use super::link::Link;
use super::request;
use super::sender::Sender;
use super::shared::Shared;
use crate::base::clock::{self, Instant};
use crate::base::phases::Dial;

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

// ===== impl Connection =====

impl<B: Send + 'static> Connection<B> {
    pub(super) fn new(shared: Arc<Shared<B>>, id: ConnId, origin: Origin) -> Self {
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
        let entry = locked.forget(self.id);
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
    pub(super) fn new(uri: Uri) -> Self {
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
