use http::{Response, StatusCode, header};

use super::{Page, done, refused};
use crate::admin::body::AdminBody;
use crate::admin::query;
use crate::admin::scalar::scalar;
use crate::admin::service::{Ask, Shared, untrusted};
use crate::base::flow::asked;
use crate::base::inspect::is_hidden;

/// Sets a knob of a layer.
pub(super) const PAGE: Page = Page {
    shown: "/knobs/<layer>/<name>",
    allow: "PUT",
    own: true,
    ..Page::get("/knobs/", |shared, ask| turn(shared, &ask).into())
};

fn turn(shared: &Shared, ask: &Ask) -> Response<AdminBody> {
    if shared.access.token.is_none() {
        let message =
            "knobs are only shown, for this endpoint has no token; give it one by Admin::token\n";
        return refused(StatusCode::FORBIDDEN, message);
    }
    if !ask.trusted {
        return untrusted();
    }
    // What a form of another site can send is none of this.
    let kind = ask.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()?.split(';').next());
    if !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "a knob takes application/json\n";
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
    }
    let Some((layer, knob)) = find(shared, &ask.rest) else {
        let message = "there is no such knob; /snapshot.json says which there are\n";
        return refused(StatusCode::NOT_FOUND, message);
    };
    let Some(value) = scalar(&ask.body) else {
        let message = "the body is to be null, true, false, a number or a string, as JSON\n";
        return refused(StatusCode::BAD_REQUEST, message);
    };
    let turned = asked(|| layer.turn(&knob, &value).map_err(|error| error.to_string()));
    match turned {
        Some(Ok(())) => done(),
        Some(Err(error)) => refused(StatusCode::UNPROCESSABLE_ENTITY, short(&error)),
        None => refused(StatusCode::INTERNAL_SERVER_ERROR, "the layer panicked\n"),
    }
}

/// The layer and its knob's name.
fn find(
    shared: &Shared,
    path: &str,
) -> Option<(std::sync::Arc<dyn crate::inspect::Inspect>, String)> {
    let (id, name) = path.split_once('/')?;
    // Not what else Rust takes for a number.
    let id: usize = id
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| id.parse().ok())??;
    let name = query::decoded(name)?;
    let layer = shared.flow.attached().into_iter().nth(id)?;
    let known = asked(|| layer.knobs())?
        .iter()
        .any(|knob| knob.name == name);
    known.then_some((layer, name))
}

/// One line, and not a long one: it may hold what was sent.
fn short(error: &str) -> String {
    let line = error
        .chars()
        .map(|char| if is_hidden(char) { ' ' } else { char });
    let mut line: String = line.take(300).collect();
    line.push('\n');
    line
}
