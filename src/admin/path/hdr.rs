use std::io;

use http::{Response, StatusCode};

use super::{Page, refused, text};
use crate::admin::body::AdminBody;
use crate::admin::query;
use crate::admin::service::{Ask, Shared};
use crate::base::flow::asked;

/// A route's window as an HdrHistogram interval log: of the first layer that has such a route, or of `?layer=`.
pub(super) const PAGE: Page = Page {
    shown: "/hdr/<route>.log",
    ..Page::get("/hdr/", |shared, ask| log(shared, &ask).into())
};

fn log(shared: &Shared, ask: &Ask) -> Response<AdminBody> {
    let route = ask.rest.strip_suffix(".log").map(query::decoded);
    let Some(Some(route)) = route else {
        let message =
            "the path is /hdr/<route>.log, and what is special in a route percent-encoded UTF-8\n";
        return refused(StatusCode::BAD_REQUEST, message);
    };
    let layers = shared.flow.attached();
    let wanted = match picked(&ask.query, layers.len()) {
        Ok(wanted) => wanted,
        Err(message) => return refused(StatusCode::BAD_REQUEST, message),
    };
    let mut broken = false;
    for (id, layer) in layers.iter().enumerate() {
        if wanted.is_some_and(|wanted| wanted != id) {
            continue;
        }
        let mut log = Vec::new();
        match asked(|| layer.interval_log(&route, &mut log)) {
            Some(Ok(())) => return text(log),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            // Another one may have such a route.
            _ => broken = true,
        }
    }
    if broken {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, "the log broke off\n");
    }
    let message =
        "no layer keeps a log of such a route; /snapshot.json says which routes there are\n";
    refused(StatusCode::NOT_FOUND, message)
}

/// The layer of `?layer=`, if there is such a question.
fn picked(text: &str, layers: usize) -> Result<Option<usize>, String> {
    let pairs = query::pairs(text).unwrap_or_else(|| vec![Default::default()]);
    match pairs.as_slice() {
        [] => Ok(None),
        [(key, value)] if key == "layer" => match value.parse() {
            Ok(layer) if layer < layers => Ok(Some(layer)),
            _ => Err(format!("layer is a whole number below {layers}\n")),
        },
        _ => Err("the only question is layer=, once\n".to_owned()),
    }
}
