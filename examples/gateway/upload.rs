//! The body of a request on its way to an upstream.
//!
//! It can be asked for again as long as nobody has read of it, so that another upstream can be tried; it waits for the
//! upstream's 100 where the client does; and it tells whether it moves.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::Instant;
use tower_flow::BoxError;

use crate::fields;

/// A request's body, or that it has none. Once one has read of it, it is that one's.
#[derive(Debug)]
pub(crate) struct Upload {
    shared: Option<Arc<Shared>>,
    /// Whether this one has read of it.
    reads: bool,
}

/// What can be told of an upload while it goes on.
#[derive(Debug, Clone)]
pub(crate) struct Progress(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    source: Mutex<Source>,
    /// Whether the client is waited for.
    starved: AtomicBool,
}

#[derive(Debug)]
struct Source {
    /// `None` once it is read to its end or given up.
    body: Option<UnsyncBoxBody<Bytes, BoxError>>,
    begun: bool,
    /// Whether the client waits for a 100, and nobody may read: reading would send one.
    held: bool,
    /// Who wants to read.
    reader: Option<Waker>,
    /// When there last was a frame.
    moved: Option<Instant>,
    /// How it failed, if it did. hyper's HTTP/2 does not hand it back.
    failed: Option<Failed>,
    /// Whether its reader went away before its end.
    left_off: bool,
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum Failed {
    TooLarge,
    Client,
}

/// Why a client's body came to no good end.
#[derive(Debug)]
pub(crate) enum UploadError {
    /// It is larger than it may be.
    TooLarge,
    /// The client sent nothing for so long.
    Silent(Duration),
    /// The client broke off, or sent what is no body.
    Client(BoxError),
}

impl Upload {
    /// `held` lets nobody read until [`Progress::release`].
    pub(crate) fn new<B>(body: B, largest: Option<u64>, held: bool) -> Self
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let shared = (!body.is_end_stream()).then(|| {
            Arc::new(Shared {
                source: Mutex::new(Source {
                    body: Some(body.map_err(Into::into).boxed_unsync()),
                    begun: false,
                    held,
                    reader: None,
                    moved: None,
                    failed: None,
                    left_off: false,
                    left: largest.unwrap_or(u64::MAX),
                }),
                starved: AtomicBool::new(false),
            })
        });
        Self {
            shared,
            reads: false,
        }
    }

    /// The same again, unless somebody has read of it.
    pub(crate) fn again(&self) -> Option<Self> {
        let begun = self
            .shared
            .as_ref()
            .is_some_and(|shared| shared.source().begun);
        (!begun).then(|| Self {
            shared: self.shared.clone(),
            reads: false,
        })
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress(self.shared.clone())
    }
}

impl Drop for Upload {
    /// The client need not be read from for nobody.
    fn drop(&mut self) {
        if let Some(shared) = self.shared.as_ref().filter(|_| self.reads) {
            let mut source = shared.source();
            let body = source.body.take();
            source.left_off |= body.as_ref().is_some_and(|body| !body.is_end_stream());
            drop(source);
            drop(body);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(shared) = &this.shared else {
            return Poll::Ready(None);
        };
        let mut source = shared.source();
        if source.held {
            source.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let source = &mut *source;
        let Some(body) = &mut source.body else {
            return Poll::Ready(None);
        };
        source.begun = true;
        this.reads = true;
        let frame = Pin::new(body).poll_frame(cx);
        shared.starved.store(frame.is_pending(), Relaxed);
        let Poll::Ready(frame) = frame else {
            return Poll::Pending;
        };
        source.moved = Some(Instant::now());
        let failed = match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                match source.left.checked_sub(length) {
                    Some(left) => {
                        source.left = left;
                        return Poll::Ready(Some(Ok(fields::trailing(frame))));
                    }
                    None => {
                        source.failed = Some(Failed::TooLarge);
                        Some(UploadError::TooLarge.into())
                    }
                }
            }
            // One within another knows better.
            Some(Err(error)) if error.is::<UploadError>() => Some(error),
            Some(Err(error)) => {
                source.failed = Some(Failed::Client);
                Some(UploadError::Client(error).into())
            }
            None => None,
        };
        source.body = None;
        Poll::Ready(failed.map(Err))
    }

    fn is_end_stream(&self) -> bool {
        let ended = |shared: &Arc<Shared>| {
            let source = shared.source();
            source.body.as_ref().is_none_or(Body::is_end_stream)
        };
        self.shared.as_ref().is_none_or(ended)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = |shared: &Arc<Shared>| shared.source().body.as_ref().map(Body::size_hint);
        let hint = self.shared.as_ref().and_then(hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Progress {
    /// When there last was a frame.
    pub(crate) fn moved(&self) -> Option<Instant> {
        self.0.as_ref()?.source().moved
    }

    /// Whether more is to come and the client does not send it.
    pub(crate) fn starved(&self) -> bool {
        let starved = |shared: &Arc<Shared>| shared.starved.load(Relaxed);
        self.0.as_ref().is_some_and(starved)
    }

    /// How it failed, if it did.
    pub(crate) fn failed(&self) -> Option<BoxError> {
        let failed = self.0.as_ref()?.source().failed?;
        Some(match failed {
            Failed::TooLarge => UploadError::TooLarge.into(),
            Failed::Client => UploadError::Client("it was not whole".into()).into(),
        })
    }

    /// Whether some of it was not read.
    pub(crate) fn unread(&self) -> bool {
        let unread = |shared: &Arc<Shared>| {
            let source = shared.source();
            source.left_off
                || source.failed.is_some()
                || source
                    .body
                    .as_ref()
                    .is_some_and(|body| !body.is_end_stream())
        };
        self.0.as_ref().is_some_and(unread)
    }

    /// Whether it waits for the upstream's 100.
    pub(crate) fn held(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.source().held)
    }

    /// It may be read: the upstream wants it.
    pub(crate) fn release(&self) {
        if let Some(shared) = &self.0 {
            let reader = {
                let mut source = shared.source();
                source.held = false;
                source.reader.take()
            };
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}

impl Shared {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("the request's body is larger than --max-body allows"),
            Self::Silent(after) => write!(
                f,
                "the client sent nothing of the request's body for {after:?}"
            ),
            Self::Client(_) => f.write_str("the request's body broke off"),
        }
    }
}

impl Error for UploadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TooLarge | Self::Silent(_) => None,
            Self::Client(error) => Some(error.as_ref()),
        }
    }
}
