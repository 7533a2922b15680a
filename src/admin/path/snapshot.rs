use super::{Page, answer};

pub(super) const PAGE: Page = Page {
    path: "/snapshot.json",
    says: "every layer's numbers",
    answer: |flow, _| answer("application/json", flow.snapshot().to_string()),
};
