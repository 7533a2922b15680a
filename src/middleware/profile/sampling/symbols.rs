//! Addresses become functions, files and lines, when the sampling is over.

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::modules::Modules;
use super::report::{Counts, Function, Line, Location, Profile, Stack};
use super::stacks::Stacks;
use super::tags::Tag;
use crate::base::clock;

/// How long names are looked for; what is not found until then stays an address. A debug build of a great program takes seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names are cut to this many characters: types of services and futures can be longer than pages.
const NAME: usize = 1_000;

/// The profile of what was counted. Names are looked up where most samples are first, until it `is_enough`.
pub(super) fn profile(
    counts: Counts,
    threads: Vec<String>,
    stacks: &Stacks,
    modules: &Modules,
    is_enough: impl Fn() -> bool,
) -> Profile {
    let mut weights: FxHashMap<u64, u64> = FxHashMap::default();
    for (_, addresses, count) in stacks.iter() {
        for address in addresses {
            *weights.entry(*address).or_default() += count;
        }
    }
    let mut addresses: Vec<_> = weights.into_iter().collect();
    addresses.sort_unstable_by_key(|(address, weight)| (std::cmp::Reverse(*weight), *address));
    let mut table = Table::default();
    let end = clock::now() + PATIENCE;
    let mut places = FxHashMap::default();
    for (address, _) in addresses {
        let lines = match is_enough() || clock::now() >= end {
            true => Vec::new(),
            false => table.look_up(address),
        };
        places.insert(address, table.locations.len() as u32);
        table.place(address, lines, modules);
    }
    // What was read of debug information would stay mapped for the next time.
    backtrace::clear_symbol_cache();
    let mut tags: Vec<Tag> = Vec::new();
    let mut numbers: HashMap<Tag, usize> = HashMap::new();
    let mut found = Vec::new();
    for (owner, addresses, count) in stacks.iter() {
        let tag = (owner.tag != Tag::NONE).then(|| {
            *numbers.entry(owner.tag).or_insert_with(|| {
                tags.push(owner.tag);
                tags.len() - 1
            })
        });
        found.push(Stack {
            tag,
            thread: usize::from(owner.thread),
            locations: addresses.iter().map(|address| places[address]).collect(),
            count,
        });
    }
    // The table of counts has no order.
    found.sort_unstable_by(|a, b| {
        b.count
            .cmp(&a.count)
            .then_with(|| a.locations.cmp(&b.locations))
    });
    let tags = tags.into_iter().map(Tag::name).collect();
    let Table {
        functions,
        locations,
        modules,
        ..
    } = table;
    Profile {
        counts,
        threads,
        tags,
        functions,
        modules,
        locations,
        stacks: found,
    }
}

#[derive(Default)]
struct Table {
    functions: Vec<Function>,
    known: HashMap<Function, u32>,
    locations: Vec<Location>,
    modules: Vec<super::modules::Module>,
}

// ===== impl Table =====

impl Table {
    /// What is at `address`: the innermost inlined function first, and last the one that has the code.
    fn look_up(&mut self, address: u64) -> Vec<Line> {
        let mut lines = Vec::new();
        // The library takes what it is given for a return address and looks one byte before it.
        let asked = (address + 1) as usize as *mut c_void;
        // It reads files that may be anything; a profile survives that.
        _ = catch_unwind(AssertUnwindSafe(|| {
            backtrace::resolve(asked, |symbol| {
                let Some(name) = symbol.name() else { return };
                // Without the hash at the end.
                let name = name_of(&format!("{name:#}"));
                let file = symbol.filename().map(|file| file.to_string_lossy().into());
                let function = self.function(Function { name, file });
                let line = symbol.lineno().unwrap_or(0);
                lines.push(Line { function, line });
            });
        }));
        lines
    }

    fn function(&mut self, function: Function) -> u32 {
        if let Some(known) = self.known.get(&function) {
            return *known;
        }
        let id = self.functions.len() as u32;
        self.functions.push(function.clone());
        self.known.insert(function, id);
        id
    }

    /// Adds the location. One without a name is called by its module, or by itself.
    fn place(&mut self, address: u64, mut lines: Vec<Line>, modules: &Modules) {
        let module = modules.find(address);
        if lines.is_empty() {
            let name = match module {
                Some(module) => format!("{}+{:#x}", module.name(), module.offset_of(address)),
                None => format!("{address:#x}"),
            };
            let function = self.function(Function {
                name: name_of(&format!("[{name}]")),
                file: None,
            });
            lines.push(Line { function, line: 0 });
        }
        let module = module.map(|module| {
            self.modules
                .iter()
                .position(|known| known == module)
                .unwrap_or_else(|| {
                    self.modules.push(module.clone());
                    self.modules.len() - 1
                })
        });
        self.locations.push(Location {
            address,
            module,
            lines,
        });
    }
}

fn name_of(name: &str) -> Arc<str> {
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::profile::sampling::stacks::Owner;
    use std::time::SystemTime;

    #[inline(never)]
    fn somewhere() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn functions_of_this_program_have_names_and_nonsense_has_numbers() {
        let here = somewhere as fn() -> u64 as usize as u64;
        let mut stacks = Stacks::default();
        let owner = Owner {
            tag: Tag::new("names", "a"),
            thread: 0,
        };
        let modules = Modules::read();
        let nowhere = 16;
        stacks.add(owner, [nowhere, here].into_iter());
        let counts = Counts::new(99, SystemTime::UNIX_EPOCH);
        let profile = profile(counts, vec!["main".into()], &stacks, &modules, || false);
        let folded = profile.folded();
        let expected = "names a;main;tower_flow::middleware::profile::sampling::symbols::tests::somewhere;[0x10] 1\n";
        assert_eq!(folded, expected);
    }

    #[test]
    fn whoever_does_not_wait_gets_addresses() {
        let here = somewhere as fn() -> u64 as usize as u64;
        let mut stacks = Stacks::default();
        stacks.add(
            Owner {
                tag: Tag::NONE,
                thread: 0,
            },
            [here].into_iter(),
        );
        let counts = Counts::new(99, SystemTime::UNIX_EPOCH);
        let profile = profile(
            counts,
            vec!["main".into()],
            &stacks,
            &Modules::read(),
            || true,
        );
        let folded = profile.folded();
        assert!(
            folded.contains("tower_flow-") && folded.contains("+0x"),
            "{folded}"
        );
    }

    #[test]
    fn long_names_are_cut() {
        let name = name_of(&"ü".repeat(5_000));
        assert_eq!(name.chars().count(), NAME + 1);
    }
}
