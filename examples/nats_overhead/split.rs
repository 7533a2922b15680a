//! Whose a sample is: the innermost function of a call chain that somebody is known to own.

/// Parts a request's CPU time is split into.
pub const PARTS: [&str; 10] = [
    "serialisation",
    "NATS client (async-nats)",
    "NATS service and profile (tower-flow)",
    "network",
    "runtime",
    "workload and store",
    "allocating and copying memory, for whom is not known",
    "atomics, locks and thread-locals, for whom is not known",
    "other, while a profiled call was polled",
    "other, outside of these: the connections' tasks and the runtime",
];

/// What a function's name says of whose it is.
const OWNERS: [(&str, usize); 21] = [
    ("prost::", 0),
    ("ChatEvent", 0),
    ("mio::", 3),
    ("std::net", 3),
    ("std::sys::net", 3),
    ("tokio::net", 3),
    ("tokio::io", 3),
    ("socket2", 3),
    ("__send", 3),
    ("__libc_send", 3),
    ("__libc_recv", 3),
    ("writev", 3),
    ("recv", 3),
    ("epoll_wait", 3),
    ("async_nats", 1),
    // Its parser looks for ends of lines.
    ("memchr::", 1),
    ("tower_flow", 2),
    ("nats_overhead::", 5),
    ("tokio::", 4),
    ("futures_util", 4),
    ("parking_lot", 4),
];

/// What functions that nobody here owns do, by the beginnings of their names.
const MEMORY: [&str; 14] = [
    "malloc",
    "_int_",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "unlink_chunk",
    "mem",
    "__mem",
    "alloc::",
    "__rust_alloc",
    "__rust_dealloc",
    "__rdl_",
    "__libc_",
];

const SHARING: [&str; 6] = [
    "core::sync::atomic",
    "portable_atomic",
    "std::sync",
    "std::thread::local",
    "pthread_",
    "__pthread",
];

/// How many samples belong to each part. `folded` is a call chain a line, the outermost function first, and a count.
pub fn split(folded: &str) -> [u64; PARTS.len()] {
    let mut parts = [0; PARTS.len()];
    for line in folded.lines() {
        let Some((chain, count)) = line.rsplit_once(' ') else {
            continue;
        };
        let count: u64 = count.parse().unwrap_or(0);
        let owner = chain.rsplit(';').find_map(owner);
        parts[owner.unwrap_or_else(|| nobodys(chain))] += count;
    }
    parts
}

/// The part of a chain without an owner: by where it began, and by what it ends in.
fn nobodys(chain: &str) -> usize {
    let mut functions = chain.split(';');
    // What was being polled, as `profile` noted it.
    let polled = functions.next().unwrap_or_default();
    let innermost = functions.next_back().unwrap_or_default();
    let innermost = innermost.trim_start_matches('<');
    let is_one_of = |names: &[&str]| names.iter().any(|name| innermost.starts_with(name));
    match polled {
        // Nothing else runs within.
        store if store.starts_with("store") => 5,
        _ if is_one_of(&MEMORY) => 6,
        _ if is_one_of(&SHARING) => 7,
        "(no route)" => 9,
        _ => 8,
    }
}

fn owner(function: &str) -> Option<usize> {
    // A generic function is its own crate's, whatever it is made for.
    let own = function.trim_start_matches('<');
    let starts = |name: &str| own.starts_with(name);
    let owner = OWNERS.iter().find(|(name, _)| starts(name));
    let owner = owner.or_else(|| OWNERS.iter().find(|(name, _)| function.contains(name)));
    owner.map(|(_, part)| *part)
}
