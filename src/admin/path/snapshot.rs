use super::{Page, answer};

/// Every layer's numbers.
pub(super) const PAGE: Page = Page::get("/snapshot.json", |shared, _| {
    answer("application/json", shared.flow.snapshot().to_string()).into()
});
