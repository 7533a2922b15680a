//! One host: where connections lead, and what is known of it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use http::Uri;
use http::uri::Authority;
use rustc_hash::FxHasher;

use super::Cause;
use super::conn::{AmongIdleOfHost, Conn, ConnId, Version};
use super::slab::{Id, Link, List, Slab, Through};
use super::waiter::{InLine, Waiter, WaiterId};
use crate::base::clock::Instant;

pub(in crate::middleware::pool) type HostId = Id<Host>;

/// What tells hosts apart, borrowed from a request's URI: scheme, name and port. The port is the scheme's own when the
/// URI names none, and the case of the name does not count, so that two spellings of a host are one host.
#[derive(Debug, Clone, Copy)]
pub(in crate::middleware::pool) struct HostKey<'a> {
    pub(in crate::middleware::pool) scheme: &'a str,
    pub(in crate::middleware::pool) name: &'a str,
    pub(in crate::middleware::pool) port: u16,
}

#[derive(Debug)]
pub(in crate::middleware::pool) struct Host {
    /// `scheme://authority/`, what the connector is called with.
    pub(super) uri: Uri,
    pub(super) port: u16,
    hash: u64,
    /// The next host under the same hash.
    alike: Option<HostId>,

    /// Unknown until its first connection, unless configured.
    pub(super) version: Option<Version>,
    /// Slots it holds, whatever their stage.
    pub(super) open: usize,
    pub(super) dialling: usize,
    /// What its waiters hope for.
    pub(super) latest_dial: Option<ConnId>,
    pub(super) draining: usize,
    /// Established connections that take requests, when there is room.
    pub(super) live: usize,
    pub(super) idle: List<Conn, AmongIdleOfHost>,
    /// Its live HTTP/2 connections.
    pub(super) multiplexed: Vec<ConnId>,
    /// How many streams the last of them took.
    pub(super) streams: Option<usize>,
    pub(super) waiting: List<Waiter, InLine>,
    pub(super) warming: Vec<WaiterId>,
    /// Dials that failed since the last that did not.
    pub(super) failures: u32,
    /// Until then nothing is dialled.
    pub(super) retry_at: Option<Instant>,
    /// Connections that were lost before anybody used them, one after the other.
    pub(super) wasted: u32,
    /// Until then none is dialled to have it in hand.
    pub(super) refill_at: Option<Instant>,
    pub(super) last_error: Option<Arc<Cause>>,
    pub(super) requests: u64,
    pub(super) reused: u64,

    pub(super) among_starved: Link<Host>,
    pub(super) among_forgotten: Link<Host>,
}

/// Hosts by what tells them apart.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<u64, HostId, BuildHasherDefault<FxHasher>>);

/// Hosts by how their origin is written, which is how most requests write it: found without taking the URI apart. A place
/// is for whichever of those that share it was looked for last; there are at least twice as many as hosts.
#[derive(Debug, Default)]
pub(super) struct Spellings(Vec<Option<HostId>>);

// ===== impl Host =====

impl Host {
    pub(super) fn new(uri: Uri, port: u16, hash: u64, version: Option<Version>) -> Self {
        Self {
            uri,
            port,
            hash,
            alike: None,
            version,
            open: 0,
            dialling: 0,
            latest_dial: None,
            draining: 0,
            live: 0,
            idle: List::new(),
            multiplexed: Vec::new(),
            streams: None,
            waiting: List::new(),
            warming: Vec::new(),
            failures: 0,
            retry_at: None,
            wasted: 0,
            refill_at: None,
            last_error: None,
            requests: 0,
            reused: 0,
            among_starved: Link::default(),
            among_forgotten: Link::default(),
        }
    }

    pub(super) fn is(&self, key: &HostKey<'_>) -> bool {
        self.port == key.port
            && self.uri.scheme_str() == Some(key.scheme)
            && self
                .uri
                .host()
                .is_some_and(|name| name.eq_ignore_ascii_case(key.name))
    }

    /// Whether its origin is written as that of `uri` is.
    #[inline]
    fn is_spelled(&self, uri: &Uri) -> bool {
        self.uri.scheme() == uri.scheme()
            && self.uri.authority().map(Authority::as_str) == uri.authority().map(Authority::as_str)
    }

    /// Nobody is there and nobody wants to be.
    pub(super) fn empty(&self) -> bool {
        self.open == 0 && self.waiting.len() == 0 && self.warming.is_empty()
    }

    /// How many requests one dial will serve.
    pub(super) fn per_dial(&self) -> usize {
        match self.version {
            Some(Version::Http2) => self.streams.unwrap_or(1).max(1),
            _ => 1,
        }
    }
}

// ===== impl Names =====

impl Names {
    #[inline]
    pub(super) fn find(&self, hosts: &Slab<Host>, hash: u64, key: &HostKey<'_>) -> Option<HostId> {
        let mut next = self.0.get(&hash).copied();
        while let Some(id) = next {
            let host = &hosts[id];
            if host.is(key) {
                return Some(id);
            }
            next = host.alike;
        }
        None
    }

    pub(super) fn insert(&mut self, hosts: &mut Slab<Host>, id: HostId) {
        let hash = hosts[id].hash;
        hosts[id].alike = self.0.insert(hash, id);
    }

    pub(super) fn remove(&mut self, hosts: &mut Slab<Host>, id: HostId) {
        let (hash, after) = (hosts[id].hash, hosts[id].alike);
        let first = self.0.get(&hash).copied();
        if first == Some(id) {
            match after {
                Some(after) => self.0.insert(hash, after),
                None => self.0.remove(&hash),
            };
            return;
        }
        let mut next = first;
        while let Some(before) = next {
            next = hosts[before].alike;
            if next == Some(id) {
                hosts[before].alike = after;
                return;
            }
        }
    }
}

// ===== impl Spellings =====

impl Spellings {
    #[inline]
    pub(super) fn find(&self, hosts: &Slab<Host>, hash: u64, uri: &Uri) -> Option<HostId> {
        let id = *self.0.get(self.place(hash))?;
        id.filter(|id| hosts.get(*id).is_some_and(|host| host.is_spelled(uri)))
    }

    pub(super) fn learn(&mut self, hosts: &Slab<Host>, hash: u64, id: HostId) {
        if self.0.len() < 2 * hosts.len() {
            self.0.clear();
            self.0.resize((4 * hosts.len()).next_power_of_two(), None);
        }
        let place = self.place(hash);
        self.0[place] = Some(id);
    }

    /// Nowhere within when there are no places.
    #[inline]
    fn place(&self, hash: u64) -> usize {
        hash as usize & self.0.len().wrapping_sub(1)
    }
}

/// Hosts that want a connection and may have none yet.
#[derive(Debug)]
pub(super) struct AmongStarved;

impl Through<Host> for AmongStarved {
    fn link(host: &mut Host) -> &mut Link<Host> {
        &mut host.among_starved
    }
}

/// Hosts that are only remembered.
#[derive(Debug)]
pub(super) struct AmongForgotten;

impl Through<Host> for AmongForgotten {
    fn link(host: &mut Host) -> &mut Link<Host> {
        &mut host.among_forgotten
    }
}
