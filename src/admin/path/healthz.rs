use super::{Page, text};

/// `ok`, as long as this process answers.
pub(super) const PAGE: Page = Page {
    open: true,
    ..Page::get("/healthz", |_, _| text("ok\n").into())
};
