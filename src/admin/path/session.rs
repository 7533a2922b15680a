use http::{Method, StatusCode, header};

use super::{Page, done, refused};
use crate::admin::access::Token;

/// Gives a browser a cookie for the token, or takes it away.
pub(super) const PAGE: Page = Page {
    allow: "POST, DELETE",
    open: true,
    own: true,
    ..Page::get("/session", |shared, ask| {
        let token = match &shared.access.token {
            _ if ask.method == Method::DELETE => None,
            Some(token) if token.is(ask.body.trim_ascii()) => Some(token),
            Some(_) => return refused(StatusCode::UNAUTHORIZED, "that is not the token\n").into(),
            None => {
                let message = "this endpoint has no token; give it one by Admin::token\n";
                return refused(StatusCode::FORBIDDEN, message).into();
            }
        };
        let mut response = done();
        let cookie = Token::cookie(token, &ask.caller.host, ask.caller.secure);
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        response.into()
    })
};
