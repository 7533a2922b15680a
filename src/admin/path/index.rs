use std::fmt::Write;

use super::{PAGES, Page, text};

pub(super) const PAGE: Page = Page {
    path: "/",
    says: "this list",
    answer: |flow, _| {
        let mut list = format!("{}\n\n", flow.name());
        for page in PAGES {
            writeln!(list, "{:<16}{}", page.path, page.says)
                .expect("a String takes all that is written");
        }
        text(list)
    },
};
