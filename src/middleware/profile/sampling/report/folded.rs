//! Folded stacks: a line for each, `layer route;thread;frame;frame count`, which flame graph programs read.
//!
//! The route comes first, since the first question is whose time it was; the thread's name next, which tells a runtime's
//! workers from its blocking threads. Without a route the first name is `(no route)`.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Profile, Stack};

/// What stands for the frames of stacks there was no room for.
const DROPPED: &str = "(stack dropped)";

impl Profile {
    /// As folded stacks, in alphabetical order.
    pub fn folded(&self) -> String {
        let mut lines: BTreeMap<String, u64> = BTreeMap::new();
        for stack in &self.stacks {
            *lines.entry(self.line(stack)).or_default() += stack.count;
        }
        let mut folded = String::new();
        for (line, count) in lines {
            // Writing to a string cannot fail.
            _ = writeln!(folded, "{line} {count}");
        }
        folded
    }

    fn line(&self, stack: &Stack) -> String {
        let mut line = String::new();
        match stack.tag.map(|tag| &self.tags[tag]) {
            Some((layer, route)) if layer.is_empty() => plain(&mut line, route),
            Some((layer, route)) => {
                plain(&mut line, layer);
                line.push(' ');
                plain(&mut line, route);
            }
            None => line.push_str("(no route)"),
        }
        line.push(';');
        plain(
            &mut line,
            self.threads.get(stack.thread).map_or("", |name| name),
        );
        if stack.locations.is_empty() {
            line.push(';');
            line.push_str(DROPPED);
        }
        for frame in self.frames(stack) {
            line.push(';');
            plain(&mut line, frame);
        }
        line
    }
}

/// Appends `name` without what ends a frame, a line or a terminal's patience.
fn plain(line: &mut String, name: &str) {
    line.extend(name.chars().map(|char| match char {
        ';' => ',',
        char if char.is_control() => ' ',
        char => char,
    }));
}
