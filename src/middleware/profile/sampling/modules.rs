//! What is mapped where: which addresses are code, and of which file.

use std::sync::Arc;

/// A mapping of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    /// The file, or the kernel's word for it: `[vdso]`.
    pub(super) path: Arc<str>,
}

/// All of the process, in order.
#[derive(Debug, Default)]
pub(super) struct Modules(Vec<Module>);

// ===== impl Modules =====

impl Modules {
    /// Those of this process now; none when they cannot be read.
    pub(super) fn read() -> Self {
        let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&maps))
    }

    fn parse(maps: &str) -> Self {
        let mut modules: Vec<_> = maps.lines().filter_map(Module::parse).collect();
        modules.sort_by_key(|module| module.start);
        Self(modules)
    }

    /// The one that holds `address`.
    pub(super) fn find(&self, address: u64) -> Option<&Module> {
        let after = self.0.partition_point(|module| module.start <= address);
        let module = self.0[..after].last()?;
        (address < module.end).then_some(module)
    }
}

// ===== impl Module =====

impl Module {
    /// A line like `55e0-55f0 r-xp 00001000 fd:00 1234   /usr/bin/true`, if it is code.
    fn parse(line: &str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (permissions, rest) = rest.split_once(' ')?;
        if permissions.as_bytes().get(2) != Some(&b'x') {
            return None;
        }
        let (offset, rest) = rest.split_once(' ')?;
        let (_device, rest) = rest.split_once(' ')?;
        let path = rest
            .split_once(' ')
            .map_or("", |(_inode, path)| path.trim());
        // The kernel's own page of old system calls lies outside of the process.
        if path == "[vsyscall]" {
            return None;
        }
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            offset: u64::from_str_radix(offset, 16).ok()?,
            path: if path.is_empty() { "[anon]" } else { path }.into(),
        })
    }

    /// The last part of its path.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Where in its file `address` is.
    pub(super) fn offset_of(&self, address: u64) -> u64 {
        address - self.start + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0a00000-55d0c0a01000 r--p 00000000 fd:00 42                         /opt/my app (deleted)
55d0c0a01000-55d0c0a05000 r-xp 00001000 fd:00 42                         /opt/my app (deleted)
7ffd1000-7ffd3000 r-xp 00000000 00:00 0                                  [vdso]
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
nonsense
";

    #[test]
    fn code_is_found_and_nothing_else() {
        let modules = Modules::parse(MAPS);
        assert_eq!(modules.0.len(), 3);
        let found = modules.find(0x55d0c0a01010).unwrap();
        assert_eq!(found.name(), "my app (deleted)");
        assert_eq!(found.offset_of(0x55d0c0a01010), 0x1010);
        assert!(modules.find(0x55d0c0a00010).is_none());
        assert!(modules.find(0x55d0c0a05000).is_none());
        assert_eq!(modules.find(0x7ffd2fff).unwrap().name(), "[vdso]");
        assert_eq!(modules.find(0x7f0000000fff).unwrap().name(), "[anon]");
        assert!(modules.find(0).is_none() && modules.find(u64::MAX).is_none());
    }

    #[test]
    fn this_very_function_is_code() {
        let here = this_very_function_is_code as fn() as usize as u64;
        assert!(Modules::read().find(here).is_some());
        let local = 0u8;
        assert!(Modules::read().find(&raw const local as u64).is_none());
    }
}
