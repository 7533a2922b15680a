use http::{HeaderValue, header};

use super::{Page, answer};

/// The live page. It may load what is served beside it, and nothing else.
pub(super) const PAGE: Page = Page {
    open: true,
    ..Page::get("/", |_, _| {
        let mut page = answer(
            "text/html; charset=utf-8",
            include_str!("../page/index.html"),
        );
        page.headers_mut().insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                 img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ),
        );
        page.into()
    })
};

pub(super) const STYLE: Page = Page {
    open: true,
    ..Page::get("/page.css", |_, _| {
        answer("text/css; charset=utf-8", include_str!("../page/page.css")).into()
    })
};

pub(super) const SCRIPT: Page = Page {
    open: true,
    ..Page::get("/page.js", |_, _| {
        let script = include_str!("../page/page.js");
        answer("text/javascript; charset=utf-8", script).into()
    })
};
