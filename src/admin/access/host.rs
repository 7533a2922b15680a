//! Which names the endpoint answers to.
//!
//! A page from elsewhere can give its own name this endpoint's address, and then read it as its own: DNS rebinding. Its
//! requests still carry its name.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, Uri, Version, header};

/// What is wrong with the host a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum HostError {
    /// There is none.
    Missing,
    /// It is none, or there are several.
    Malformed,
    /// It is somebody else's.
    Foreign,
}

/// The host, with its port if it has one, that a request is for.
pub(super) fn of<'a>(
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    names: &[String],
) -> Result<&'a str, HostError> {
    let mut named = None;
    let hosts = headers.get_all(header::HOST);
    if hosts.iter().count() > 1 {
        return Err(HostError::Malformed);
    }
    // In HTTP/2, or for a proxy, the target itself names one. When both do, neither may be another's.
    let of_target = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    for host in hosts.iter().map(|host| host.as_bytes()).chain(of_target) {
        let host = std::str::from_utf8(host).map_err(|_| HostError::Malformed)?;
        let name = name(host).ok_or(HostError::Malformed)?;
        if !is_ours(name, names) {
            return Err(HostError::Foreign);
        }
        named = named.or(Some(host));
    }
    match named {
        Some(host) => Ok(host),
        // Before 1.1 there was none; no browser speaks that.
        None if version < Version::HTTP_11 => Ok(""),
        None => Err(HostError::Missing),
    }
}

/// The host without its port, when it is well-formed.
fn name(host: &str) -> Option<&str> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(inside) => {
            let (address, rest) = inside.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (&host[..address.len() + 2], rest)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = rest.is_empty()
        || rest
            .strip_prefix(':')
            .is_some_and(|port| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()));
    (port && (name.starts_with('[') || is_name(name))).then_some(name)
}

/// Whether it could be the name of a host.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

fn is_ours(name: &str, names: &[String]) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    // An address is nobody's name, so nobody else can give it another address.
    name.starts_with('[')
        || name.parse::<Ipv4Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(hosts: &[&str], uri: &str, version: Version) -> Result<String, HostError> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(
                header::HOST,
                HeaderValue::from_bytes(host.as_bytes()).unwrap(),
            );
        }
        let names = ["orders.internal".to_owned()];
        of(&uri.parse().unwrap(), version, &headers, &names).map(str::to_owned)
    }

    #[test]
    fn addresses_and_names_of_this_machine_pass() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "192.168.1.7:80",
            "[::1]",
            "[::1]:9090",
            "[fe80::1:2]:1",
            "localhost",
            "LOCALHOST:9090",
            "localhost.",
            "orders.localhost:9090",
            "orders.internal",
            "Orders.Internal.:9090",
            "localhost:",
        ] {
            assert_eq!(
                check(&[host], "/", Version::HTTP_11).as_deref(),
                Ok(host),
                "{host}"
            );
        }
        assert_eq!(
            check(&[], "http://localhost/x", Version::HTTP_2).as_deref(),
            Ok("localhost")
        );
        assert_eq!(check(&[], "/", Version::HTTP_10).as_deref(), Ok(""));
    }

    #[test]
    fn all_others_are_refused() {
        use HostError::*;
        for (hosts, uri, error) in [
            (&["evil.example"][..], "/", Foreign),
            (&["evil.example:9090"], "/", Foreign),
            (&["localhost.evil.example"], "/", Foreign),
            (&["notlocalhost"], "/", Foreign),
            (&["127.0.0.1.evil.example"], "/", Foreign),
            (&["127.0.0.1.nip.io"], "/", Foreign),
            (&["0x7f.1"], "/", Foreign),
            (&["2130706433"], "/", Foreign),
            (&["localhost"], "http://evil.example/", Foreign),
            (&["evil.example"], "http://localhost/", Foreign),
            (&[""], "/", Malformed),
            (&["localhost", "localhost"], "/", Malformed),
            (&["user@localhost"], "/", Malformed),
            (&["localhost:99999999"], "/", Malformed),
            (&["localhost:80:80"], "/", Malformed),
            (&["localhost:8o"], "/", Malformed),
            (&["[::1"], "/", Malformed),
            (&["[evil.example]"], "/", Malformed),
            (&["[::1]evil.example"], "/", Malformed),
            (&["local host"], "/", Malformed),
            (&["localhost/"], "/", Malformed),
            (&["localhost\u{fc}"], "/", Malformed),
            (&[".localhost"], "/", Malformed),
            (&[], "/", Missing),
        ] {
            assert_eq!(
                check(hosts, uri, Version::HTTP_11),
                Err(error),
                "{hosts:?} {uri}"
            );
        }
    }
}
