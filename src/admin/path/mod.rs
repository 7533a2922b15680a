//! What is served: one file for each path.

mod healthz;
mod index;
mod metrics;
mod snapshot;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::Full;

use crate::base::flow::Flow;

/// A path, and what answers it.
pub(super) struct Page {
    pub(super) path: &'static str,
    pub(super) says: &'static str,
    pub(super) answer: fn(&Flow, &HeaderMap) -> Response<Full<Bytes>>,
}

/// All that is served.
pub(super) const PAGES: [Page; 4] = [index::PAGE, metrics::PAGE, snapshot::PAGE, healthz::PAGE];

pub(super) fn answer(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

pub(super) fn text(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer("text/plain; charset=utf-8", body)
}
