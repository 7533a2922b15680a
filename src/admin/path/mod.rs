//! What is served: one file for each path.

mod events;
mod hdr;
mod healthz;
mod hot;
mod index;
mod knobs;
mod metrics;
mod profile;
mod session;
mod snapshot;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::body::AdminBody;
use super::service::{Ask, Shared};

pub(super) use profile::Profiles;

/// A path, and what answers it.
pub(super) struct Page {
    /// With a slash at its end it is all that begins with it.
    path: &'static str,
    /// The whole path, for those who ask which there are.
    shown: &'static str,
    pub(super) allow: &'static str,
    /// It is for all, even when the others are private: it tells nothing.
    pub(super) open: bool,
    /// It is not for pages of other sites: it does something.
    pub(super) own: bool,
    pub(super) answer: fn(&Arc<Shared>, Ask) -> Answer,
}

/// An answer, or one that takes a while.
pub(super) enum Answer {
    Now(Response<AdminBody>),
    Later(Pin<Box<dyn Future<Output = Response<AdminBody>> + Send>>),
}

/// All that is served.
static PAGES: [Page; 12] = [
    index::PAGE,
    index::STYLE,
    index::SCRIPT,
    events::PAGE,
    metrics::PAGE,
    snapshot::PAGE,
    hot::PAGE,
    profile::PAGE,
    hdr::PAGE,
    knobs::PAGE,
    session::PAGE,
    healthz::PAGE,
];

impl Page {
    const fn get(path: &'static str, answer: fn(&Arc<Shared>, Ask) -> Answer) -> Self {
        Self {
            path,
            shown: path,
            allow: "GET, HEAD",
            open: false,
            own: false,
            answer,
        }
    }
}

impl<T: Into<AdminBody>> From<Response<T>> for Answer {
    fn from(response: Response<T>) -> Self {
        Self::Now(response.map(Into::into))
    }
}

/// The page at `path`, and the rest of the path.
pub(super) fn find(path: &str) -> Option<(&'static Page, &str)> {
    // A router that takes its prefix off may leave nothing.
    let path = if path.is_empty() { "/" } else { path };
    PAGES.iter().find_map(|page| {
        let rest = path.strip_prefix(page.path)?;
        let prefix = page.path.len() > 1 && page.path.ends_with('/');
        (prefix || rest.is_empty()).then_some((page, rest))
    })
}

/// All paths.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|page| page.shown)
}

fn answer(kind: &'static str, body: impl Into<Bytes>) -> Response<AdminBody> {
    let mut response = Response::new(body.into().into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(body: impl Into<Bytes>) -> Response<AdminBody> {
    answer("text/plain; charset=utf-8", body)
}

/// A short answer that says what is wrong.
pub(super) fn refused(status: StatusCode, message: impl Into<Bytes>) -> Response<AdminBody> {
    let mut response = text(message);
    *response.status_mut() = status;
    response
}

fn done() -> Response<AdminBody> {
    let mut response = Response::new(Bytes::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
