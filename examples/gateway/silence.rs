//! How long nothing may come.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tower_flow::error::Reason;
use tower_flow::{BoxError, Rejection};

use crate::interim::Interim;
use crate::upload::{Progress, UploadError};

/// Bounds the time in which neither the upstream says anything nor the client's upload moves. It runs only while somebody
/// asks: a client that reads slowly does not make an upstream silent.
pub(crate) struct Silence {
    after: Duration,
    upload: Progress,
    /// Interim answers break it too.
    interim: Option<Interim>,
    /// Since when somebody asks, and nothing came.
    since: Option<Instant>,
    /// Ends no later than the silence may last. It is not set back for each frame, but when it has ended too early.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(crate) fn new(after: Duration, upload: Progress, interim: Option<Interim>) -> Self {
        Self {
            after,
            upload,
            interim,
            since: None,
            sleep: None,
        }
    }

    /// Something came.
    pub(crate) fn heard(&mut self) {
        self.since = None;
        // Further ones would be another request's.
        self.interim = None;
    }

    /// Nothing came: is it too long?
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        let mut since = *self.since.get_or_insert_with(Instant::now);
        let after = self.after;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(since + after)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            let interim = self.interim.as_ref().and_then(Interim::last);
            since = since.max(self.upload.moved().max(interim).unwrap_or(since));
            if since.elapsed() >= after {
                return Poll::Ready(self.too_long());
            }
            sleep.as_mut().reset(since + after);
        }
    }

    fn too_long(&self) -> BoxError {
        if self.upload.starved() {
            return UploadError::Silent(self.after).into();
        }
        let message = format!(
            "the upstream was silent for {:?}; raise --timeout",
            self.after
        );
        Rejection::new("gateway", Reason::Timeout, message).into()
    }
}
