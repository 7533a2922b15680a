use http::{HeaderValue, Response, StatusCode, header};

use super::{Page, refused};
use crate::admin::body::AdminBody;
use crate::admin::live::Refusal;

/// The numbers once a second, as they come.
pub(super) const PAGE: Page = Page {
    allow: "GET",
    own: true,
    ..Page::get("/events", |shared, ask| {
        let token = shared.access.token.is_some();
        let profile = super::profile::refusal(shared, &ask).is_none();
        let head = format!(
            "\"knobs\":{},\"token\":{token},\"profile\":{profile}",
            ask.trusted
        );
        let held = ask.link.as_ref().map(|link| link.hold());
        let listener = match shared.hub.listen(head, held) {
            Ok(listener) => listener,
            Err(refusal) => return unheard(refusal).into(),
        };
        let mut response = Response::new(AdminBody::events(listener));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        );
        // For proxies that would collect them.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response.into()
    })
};

fn unheard(refusal: Refusal) -> Response<AdminBody> {
    let message = match refusal {
        Refusal::Full(most) => {
            format!("{most} clients listen already; come back later, or raise Admin::max_events\n")
        }
        Refusal::NoRuntime => "this runs outside of a tokio runtime\n".to_owned(),
    };
    let mut response = refused(StatusCode::SERVICE_UNAVAILABLE, message);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
    response
}
