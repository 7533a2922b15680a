//! The format of `pprof`: the public `profile.proto`, not compressed.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use super::Profile;
use crate::base::clock;
use crate::base::protobuf::{Message, varint};

/// Every string once; the others refer to it by number.
struct Strings {
    names: Vec<String>,
    numbers: HashMap<String, u64>,
}

impl Profile {
    /// As `go tool pprof` and its kin read it: samples and nanoseconds, labelled with `layer`, `route` and `thread`.
    ///
    /// ```text
    /// go tool pprof -http : -tagroot route cpu.pb
    /// ```
    pub fn pprof(&self) -> Vec<u8> {
        let mut strings = Strings::default();
        let mut profile = Message::default()
            .nested(1, strings.value_type("samples", "count"))
            .nested(1, strings.value_type("cpu", "nanoseconds"));
        let period = self.counts.period();
        for stack in &self.stacks {
            let mut sample = Message::default()
                // Identifiers begin with 1.
                .bytes(
                    1,
                    &packed(stack.locations.iter().map(|at| u64::from(*at) + 1)),
                )
                .bytes(2, &packed([stack.count, stack.count * period].into_iter()));
            if let Some((layer, route)) = stack.tag.map(|tag| &self.tags[tag]) {
                sample = sample
                    .nested(3, strings.label("layer", layer))
                    .nested(3, strings.label("route", route));
            }
            if let Some(thread) = self.threads.get(stack.thread) {
                sample = sample.nested(3, strings.label("thread", thread));
            }
            profile = profile.nested(2, sample);
        }
        for (id, module) in (1..).zip(&self.modules) {
            let mapping = Message::default()
                .whole(1, id)
                .whole(2, module.start)
                .whole(3, module.end)
                .whole(4, module.offset)
                .whole(5, strings.number(&module.path))
                // It has functions, file names, lines and inlined frames: nobody need look for them again.
                .whole(7, 1)
                .whole(8, 1)
                .whole(9, 1)
                .whole(10, 1);
            profile = profile.nested(3, mapping);
        }
        for (id, location) in (1..).zip(&self.locations) {
            let mut message = Message::default()
                .whole(1, id)
                .whole(2, location.module.map_or(0, |module| module as u64 + 1))
                .whole(3, location.address);
            for line in &location.lines {
                let line = Message::default()
                    .whole(1, u64::from(line.function) + 1)
                    .whole(2, u64::from(line.line));
                message = message.nested(4, line);
            }
            profile = profile.nested(4, message);
        }
        for (id, function) in (1..).zip(&self.functions) {
            let name = strings.number(&function.name);
            let file = function
                .file
                .as_deref()
                .map_or(0, |file| strings.number(file));
            // The system's name stays empty: a reader takes one that is equal for mangled, and shortens it.
            let message = Message::default()
                .whole(1, id)
                .whole(2, name)
                .whole(4, file);
            profile = profile.nested(5, message);
        }
        let began = self.counts.began.duration_since(UNIX_EPOCH);
        let cpu = strings.value_type("cpu", "nanoseconds");
        let comment = strings.number(&self.comment());
        profile = profile
            .whole(9, began.map_or(0, clock::nanos))
            .whole(10, clock::nanos(self.counts.duration))
            .nested(11, cpu)
            .whole(12, period)
            .bytes(13, &packed([comment].into_iter()));
        let default = strings.number("cpu");
        profile = profile.whole(14, default);
        strings
            .names
            .iter()
            .fold(profile, |profile, name| profile.text(6, name))
            .into_bytes()
    }

    fn comment(&self) -> String {
        let counts = &self.counts;
        format!(
            "{} samples, {} tagged, {} lost, {} of stacks that were dropped",
            counts.samples, counts.tagged, counts.lost, counts.dropped
        )
    }
}

// ===== impl Strings =====

impl Default for Strings {
    fn default() -> Self {
        // Number 0 is the empty one, by the format.
        Self {
            names: vec![String::new()],
            numbers: HashMap::from([(String::new(), 0)]),
        }
    }
}

impl Strings {
    fn number(&mut self, name: &str) -> u64 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u64;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    fn value_type(&mut self, what: &str, unit: &str) -> Message {
        Message::default()
            .whole(1, self.number(what))
            .whole(2, self.number(unit))
    }

    fn label(&mut self, key: &str, value: &str) -> Message {
        Message::default()
            .whole(1, self.number(key))
            .whole(2, self.number(value))
    }
}

fn packed(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    numbers.for_each(|number| varint(&mut bytes, number));
    bytes
}
