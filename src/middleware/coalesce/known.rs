//! Headers that are known to say who asks, or what for, in the stead of those that HTTP has for it.
//!
//! They are what widespread proxies, gateways and clouds send. No such list is complete: it is for those who forget to
//! list what they know, and no substitute for listing it.

use http::HeaderMap;

use super::exact::Writer;

/// What a header is known to be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Who asks, and by what right: its requests go alone unless it is listed.
    Caller,
    /// What is asked for: it is in every key.
    Target,
}

/// All of them, by length, then by name: most names are ruled out by their length.
pub(super) const KNOWN: [(&str, Known); 42] = [
    ("apikey", Known::Caller),
    ("x-host", Known::Target),
    ("x-user", Known::Caller),
    ("api-key", Known::Caller),
    ("forwarded", Known::Target),
    ("x-api-key", Known::Caller),
    ("x-user-id", Known::Caller),
    ("x-id-token", Known::Caller),
    ("remote-user", Known::Caller),
    ("x-tenant-id", Known::Caller),
    ("x-auth-token", Known::Caller),
    ("x-csrf-token", Known::Caller),
    ("x-xsrf-token", Known::Caller),
    ("x-client-cert", Known::Caller),
    ("x-consumer-id", Known::Caller),
    ("x-remote-user", Known::Caller),
    ("x-rewrite-url", Known::Target),
    ("x-access-token", Known::Caller),
    ("x-goog-api-key", Known::Caller),
    ("x-original-url", Known::Target),
    ("cf-access-token", Known::Caller),
    ("ssl-client-cert", Known::Caller),
    ("x-jwt-assertion", Known::Caller),
    ("x-original-host", Known::Target),
    ("x-forwarded-host", Known::Target),
    ("x-forwarded-user", Known::Caller),
    ("x-forwarded-email", Known::Caller),
    ("x-forwarded-proto", Known::Target),
    ("x-organization-id", Known::Caller),
    ("x-ssl-client-cert", Known::Caller),
    ("x-forwarded-prefix", Known::Target),
    ("x-amz-security-token", Known::Caller),
    ("x-authenticated-user", Known::Caller),
    ("x-ms-client-principal", Known::Caller),
    ("x-authenticated-userid", Known::Caller),
    ("cf-access-jwt-assertion", Known::Caller),
    ("x-forwarded-client-cert", Known::Caller),
    ("x-forwarded-access-token", Known::Caller),
    ("x-goog-iap-jwt-assertion", Known::Caller),
    ("x-ms-client-principal-id", Known::Caller),
    ("x-ms-token-aad-access-token", Known::Caller),
    ("x-goog-authenticated-user-email", Known::Caller),
];

/// Those about the target, in the order in which they are written.
const TARGETS: [&str; 8] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-host",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
];

// ===== impl Known =====

impl Known {
    /// Of a name in lower case.
    #[inline]
    pub(super) fn of(name: &str) -> Option<Self> {
        // How they begin; most headers of a request do not.
        match name.as_bytes() {
            [b'x', b'-', ..]
            | [b'a', b'p', ..]
            | [b'c', b'f', ..]
            | [b'f', b'o', ..]
            | [b'r', b'e', b'm', ..]
            | [b's', b's', ..] => Self::search(name),
            _ => None,
        }
    }

    fn search(name: &str) -> Option<Self> {
        let order = |known: &str| known.len().cmp(&name.len()).then_with(|| known.cmp(name));
        let place = KNOWN.binary_search_by(|(known, _)| order(known));
        place.ok().map(|place| KNOWN[place].1)
    }
}

/// Whether `name`, in any case, is one of them.
pub(super) fn is_known(name: &[u8]) -> bool {
    let mut known = KNOWN.iter();
    known.any(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Bytes written of targets whose values take `values` bytes, frames included.
pub(super) fn room(values: usize) -> usize {
    match values {
        0 => 0,
        values => TARGETS.len() + values,
    }
}

/// All values of each that is about the target; nothing when these take no bytes, as of most requests. Nothing may be
/// written after it.
pub(super) fn write(headers: &HeaderMap, values: usize, to: &mut Writer) {
    if values == 0 {
        return;
    }
    for name in TARGETS {
        for value in headers.get_all(name) {
            to.field(value.as_bytes());
        }
        to.absent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_found() {
        let key = |n: usize| (KNOWN[n].0.len(), KNOWN[n].0);
        assert!((1..KNOWN.len()).all(|n| key(n - 1) < key(n)));
        for (name, known) in KNOWN {
            assert_eq!(Known::of(name), Some(known));
            assert!(is_known(name.to_uppercase().as_bytes()));
            assert_eq!(TARGETS.contains(&name), known == Known::Target);
        }
        for name in ["", "x", "accept", "x-hosts", "x-forwarded-for", "x-tenant"] {
            assert_eq!(Known::of(name), None);
            assert!(!is_known(name.as_bytes()));
        }
    }
}
