use std::cmp::Reverse;

use http::{Response, StatusCode};

use super::{Page, answer, refused, text};
use crate::admin::body::AdminBody;
use crate::admin::live::cut;
use crate::admin::query;
use crate::base::flow::asked;
use crate::base::inspect::{HotPath, Value, is_hidden};

/// Where the time went, by layer, route and stage: what took most first.
pub(super) const PAGE: Page = Page::get("/debug/hot", |shared, ask| {
    let layers = shared.flow.attached();
    let mut hot: Vec<_> = layers
        .iter()
        .filter_map(|layer| asked(|| layer.hot()))
        .flatten()
        .collect();
    hot.sort_by_key(|path| Reverse(path.busy));
    let asked = query::pairs(&ask.query).unwrap_or_else(|| vec![Default::default()]);
    let asked: Vec<_> = asked.iter().map(|(k, v)| (&**k, &**v)).collect();
    match asked[..] {
        [] | [("format", "text")] => text(table(&hot)).into(),
        [("format", "json")] => json(&hot).into(),
        _ => refused(
            StatusCode::BAD_REQUEST,
            "the only question is format=text or format=json\n",
        )
        .into(),
    }
});

fn json(hot: &[HotPath]) -> Response<AdminBody> {
    let paths = hot.iter().map(|path| {
        Value::map([
            ("layer", path.layer.as_str().into()),
            ("route", path.route.as_str().into()),
            ("stage", path.stage.into()),
            ("polls", path.polls.into()),
            ("busy", path.busy.into()),
            ("total", path.total.into()),
            ("share", path.share.into()),
            ("max", path.max.into()),
            ("slow", path.slow.into()),
        ])
    });
    let all = Value::map([("hot", Value::list(paths))]);
    answer("application/json", all.to_string())
}

fn table(hot: &[HotPath]) -> String {
    if hot.is_empty() {
        return "no attached layer measures where the time goes\n".to_owned();
    }
    let head = [
        "share", "busy", "polls", "mean", "max", "slow", "stage", "layer", "route",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for path in hot {
        let mean = path
            .busy
            .checked_div(u32::try_from(path.polls).unwrap_or(u32::MAX));
        rows.push([
            path.share
                .map_or("-".to_owned(), |share| format!("{:.1}%", share * 100.0)),
            format!("{:.3}s", path.busy.as_secs_f64()),
            path.polls.to_string(),
            micros(mean.unwrap_or_default()),
            micros(path.max),
            path.slow.to_string(),
            path.stage.to_owned(),
            plain(&path.layer),
            plain(&path.route),
        ]);
    }
    aligned(&rows)
}

fn micros(duration: std::time::Duration) -> String {
    format!("{:.1}us", duration.as_secs_f64() * 1e6)
}

/// A name that no terminal takes for a command.
fn plain(name: &str) -> String {
    cut(name)
        .chars()
        .map(|char| if is_hidden(char) { '?' } else { char })
        .collect()
}

/// Numbers to the right, texts to the left.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    const NUMBERS: usize = 6;
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            let (before, after) = if index < NUMBERS {
                (&*gap, "")
            } else {
                ("", &*gap)
            };
            table.extend([before, cell, after, "  "]);
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let row = |cells: [&str; 8]| cells.map(str::to_owned);
        let table = aligned(&[
            row([
                "share", "busy", "polls", "mean", "max", "slow", "stage", "route",
            ]),
            row(["12.5%", "1.250s", "7", "1.0us", "10.0us", "0", "call", "ü"]),
        ]);
        assert_eq!(
            table,
            "share    busy  polls   mean     max  slow  stage  route\n\
             12.5%  1.250s      7  1.0us  10.0us     0  call   ü\n"
        );
        assert_eq!(plain("a\u{1b}[31m\n\u{9b}\u{202e}"), "a?[31m???");
    }
}
