//! A bar on stderr for those who wait.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far `time` has gone until it is over, unless `quiet`.
pub(crate) async fn show(what: &str, time: Duration, quiet: bool) {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(time.as_millis() as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    let start = Instant::now();
    while start.elapsed() < time {
        bar.set_position(start.elapsed().as_millis() as u64);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bar.finish_and_clear();
}
