//! The header fields an intermediary takes out and puts in: RFC 9110 7.6, RFC 7239.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Version};

use crate::edge::Client;

pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is for the next hop alone, whatever `Connection` says.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What `Connection` may name without its being taken out: the message would mean something else without it, or another
/// layer relies on it.
const KEPT: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::AUTHORIZATION,
    header::COOKIE,
];

/// Takes out all that is for one hop.
pub(crate) fn end_to_end(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = list(headers, &header::CONNECTION)
            .filter_map(|name| name.parse().ok())
            .filter(|name| !KEPT.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
}

/// The elements of a comma-separated field.
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// Whether a client takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TE)
        && list(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"))
}

/// What the client asks to speak instead, but for `h2c`: whoever switches to that behind our back is not looked at any more.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(header::UPGRADE)?;
    let named = list(headers, &header::CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"));
    let h2c = list(headers, &header::UPGRADE).any(|name| name.eq_ignore_ascii_case("h2c"));
    (named && !h2c).then(|| asked.clone())
}

/// Says that it went through here.
pub(crate) fn via(headers: &mut HeaderMap, version: Version) {
    let value = match version {
        Version::HTTP_2 => HeaderValue::from_static("2 tower-flow"),
        Version::HTTP_10 => HeaderValue::from_static("1.0 tower-flow"),
        _ => HeaderValue::from_static("1.1 tower-flow"),
    };
    append(headers, header::VIA, value);
}

/// Who sent it, to which host, over what.
pub(crate) fn forwarded(headers: &mut HeaderMap, client: &Client) {
    let (ip, host) = (client.peer.ip().to_canonical(), client.host.as_ref());
    let proto = if client.tls { "https" } else { "http" };
    if let Ok(value) = HeaderValue::try_from(ip.to_string()) {
        append(headers, X_FORWARDED_FOR, value);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
        None => headers.remove(X_FORWARDED_HOST),
    };
    let mut element = String::with_capacity(64);
    let _ = match ip {
        IpAddr::V4(ip) => write!(element, "for={ip}"),
        IpAddr::V6(ip) => write!(element, "for=\"[{ip}]\""),
    };
    // Quoted: a port has a colon, which no token has. An authority has neither quotes nor backslashes.
    if let Some(host) = host.and_then(|host| host.to_str().ok()) {
        let _ = write!(element, ";host=\"{host}\"");
    }
    let _ = write!(element, ";proto={proto}");
    if let Ok(value) = HeaderValue::try_from(element) {
        append(headers, FORWARDED, value);
    }
}

/// Puts `value` at the end of the list called `name`, in one line where it is text.
fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let lines = headers.get_all(&name).iter().count();
    let one = headers
        .get(&name)
        .filter(|_| lines == 1)
        .and_then(|line| line.to_str().ok());
    let joined = one
        .zip(value.to_str().ok())
        .and_then(|(line, value)| HeaderValue::try_from(format!("{line}, {value}")).ok());
    match joined {
        Some(joined) => drop(headers.insert(name, joined)),
        None => drop(headers.append(name, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_connection_names_goes_but_for_what_makes_the_message() {
        let mut headers = headers(&[
            ("connection", "close, x-secret"),
            ("connection", "Content-Length, keep-alive"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("proxy-authorization", "basic"),
        ]);
        end_to_end(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other", "content-length"]);
    }

    #[test]
    fn an_upgrade_has_to_be_named_and_is_never_to_h2c() {
        let asked =
            |connection, to| upgrade(&headers(&[("connection", connection), ("upgrade", to)]));
        assert_eq!(asked("Upgrade", "websocket").unwrap(), "websocket");
        assert_eq!(asked("keep-alive", "websocket"), None);
        assert_eq!(asked("upgrade, http2-settings", "h2c"), None);
        assert_eq!(asked("upgrade", "websocket, h2c"), None);
    }

    #[test]
    fn lists_grow_at_their_end_and_what_a_client_says_of_itself_does_not_stay() {
        let mut headers = headers(&[
            ("via", "1.0 fred"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        via(&mut headers, Version::HTTP_2);
        let client = Client {
            peer: "[::1]:9".parse().unwrap(),
            host: Some(HeaderValue::from_static("shop:81")),
            tls: false,
        };
        forwarded(&mut headers, &client);
        assert_eq!(headers["via"], "1.0 fred, 2 tower-flow");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, ::1");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "shop:81");
        let forwarded = "for=10.0.0.1, for=\"[::1]\";host=\"shop:81\";proto=http";
        assert_eq!(headers["forwarded"], forwarded);
    }
}
