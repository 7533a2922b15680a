//! Whose a sample is: the innermost function of a call chain that somebody is known to own.

/// Parts a request's CPU time is split into.
pub const PARTS: [&str; 6] = [
    "serialisation",
    "NATS client (async-nats)",
    "NATS service and profile (tower-flow)",
    "network",
    "runtime",
    "other (workload, store, and what has no known owner)",
];

/// What a function's name says of whose it is.
const OWNERS: [(&str, usize); 20] = [
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
    ("tower_flow", 2),
    ("nats_overhead::", 5),
    ("tokio::", 4),
    ("futures_util", 4),
    ("parking_lot", 4),
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
        parts[owner.unwrap_or(PARTS.len() - 1)] += count;
    }
    parts
}

fn owner(function: &str) -> Option<usize> {
    // A generic function is its own crate's, whatever it is made for.
    let own = function.trim_start_matches('<');
    let starts = |name: &str| own.starts_with(name);
    let owner = OWNERS.iter().find(|(name, _)| starts(name));
    let owner = owner.or_else(|| OWNERS.iter().find(|(name, _)| function.contains(name)));
    owner.map(|(_, part)| *part)
}
