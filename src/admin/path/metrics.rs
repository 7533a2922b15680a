use http::header;

use super::{Page, answer};
use crate::base::metrics::Format;

/// For Prometheus: classic text, OpenMetrics or protobuf, as Accept asks.
pub(super) const PAGE: Page = Page::get("/metrics", |shared, ask| {
    // A scraper may send several; each may list several.
    let accept: Vec<_> = ask
        .headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let format = Format::negotiate(&accept.join(","));
    answer(format.content_type(), shared.flow.encode(format)).into()
});
