use super::{Page, text};

pub(super) const PAGE: Page = Page {
    path: "/healthz",
    says: "ok, as long as this process answers",
    answer: |_, _| text("ok\n"),
};
