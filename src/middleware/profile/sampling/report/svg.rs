//! A flame graph.

use inferno::flamegraph::{Options, from_lines};

use super::Profile;

impl Profile {
    /// As a flame graph: an SVG document with a script of its own, to zoom and search, and nothing from outside.
    ///
    /// Names in it are escaped. Serve it with a policy that allows no script where that is not wanted; it can then only be
    /// looked at.
    pub fn svg(&self) -> String {
        let counts = &self.counts;
        let mut options = Options::default();
        options.title = "CPU time by route".to_owned();
        options.subtitle = Some(format!(
            "{} samples in {:.1} s at {} Hz, {} lost",
            counts.samples,
            counts.duration.as_secs_f64(),
            counts.hz,
            counts.lost,
        ));
        options.count_name = "samples".to_owned();
        // The same colour for the same name in every graph.
        options.hash = true;
        let folded = self.folded();
        let mut svg = Vec::new();
        // Without a single sample it fails, and has drawn that it has nothing to draw.
        _ = from_lines(&mut options, folded.lines(), &mut svg);
        String::from_utf8_lossy(&svg).into_owned()
    }
}
