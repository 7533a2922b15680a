use http::header;

use super::{Page, answer};
use crate::base::metrics::Format;

pub(super) const PAGE: Page = Page {
    path: "/metrics",
    says: "for Prometheus: classic text, OpenMetrics or protobuf, as Accept asks",
    answer: |flow, headers| {
        // A scraper may send several; each may list several.
        let accept: Vec<_> = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let format = Format::negotiate(&accept.join(","));
        answer(format.content_type(), flow.encode(format))
    },
};
