//! The header fields an intermediary takes out and puts in: RFC 9110 7.6, RFC 7239.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{self, Entry, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use http_body::Frame;

pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is for the next hop alone, whatever `Connection` says.
fn is_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What `Connection` may name without its being taken out, though RFC 9110 7.6.1 would: a client could hide from the upstream
/// whom it speaks for, or how its message is to be read.
const KEPT: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::AUTHORIZATION,
    header::COOKIE,
];

/// What tells how to read a message, or who sends it to whom, comes before it or not at all.
const UNTRAILED: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::HOST,
    header::SET_COOKIE,
    header::TRAILER,
];

/// Takes out all that is for one hop.
pub(crate) fn end_to_end(headers: &mut HeaderMap) {
    let mut gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop(name))
        .cloned()
        .collect();
    if gone.contains(&header::CONNECTION) {
        let named = list(headers, &header::CONNECTION).filter_map(|name| name.parse().ok());
        gone.extend(named.filter(|name| !KEPT.contains(name)));
    }
    for name in gone {
        headers.remove(name);
    }
}

/// HTTP/2 splits cookies for its compression, HTTP/1 has one field for them: RFC 9113 8.2.3.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let cookies = headers.get_all(header::COOKIE).into_iter();
    let cookies: Vec<_> = cookies.map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
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
    let h2c = list(headers, &header::UPGRADE).any(|name| !switches(name.as_bytes()));
    (named && !h2c).then(|| asked.clone())
}

/// Whether what follows the request may be something else than another one. [`Scanner`](crate::scan::Scanner) looks no further
/// then.
pub(crate) fn may_switch<B>(req: &Request<B>) -> bool {
    let mut upgrades = req.headers().get_all(header::UPGRADE).into_iter();
    req.method() == Method::CONNECT || upgrades.any(|to| switches(to.as_bytes()))
}

/// Whether an `Upgrade` to this is ever granted.
pub(crate) fn switches(to: &[u8]) -> bool {
    !to.trim_ascii().eq_ignore_ascii_case(b"h2c")
}

/// Takes out of trailers what must not be there: RFC 9110 6.5.1. Whoever merges them would take it for the head's.
pub(crate) fn trailing(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            end_to_end(&mut trailers);
            for name in UNTRAILED {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
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

/// Who sends requests, to which host, over what, as fields say it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) host: Option<HeaderValue>,
    ip: HeaderValue,
    proto: HeaderValue,
    forwarded: HeaderValue,
}

impl Client {
    pub(crate) fn new(peer: SocketAddr, tls: bool, host: Option<HeaderValue>) -> Self {
        let ip = peer.ip().to_canonical();
        let proto = if tls { "https" } else { "http" };
        let mut element = match ip {
            IpAddr::V4(ip) => format!("for={ip}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
        };
        // Quoted: a port has a colon, which no token has. An authority has neither quotes nor backslashes.
        if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
            element.push_str(&format!(";host=\"{host}\""));
        }
        element.push_str(&format!(";proto={proto}"));
        let value = |text: String| HeaderValue::try_from(text).expect("it is visible ASCII");
        Self {
            host,
            ip: value(ip.to_string()),
            proto: HeaderValue::from_static(proto),
            forwarded: value(element),
        }
    }

    /// Tells the upstream of it. What the client said of itself stays where a list says who said it, and goes elsewhere.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        append(headers, X_FORWARDED_FOR, self.ip.clone());
        append(headers, FORWARDED, self.forwarded.clone());
        headers.insert(X_FORWARDED_PROTO, self.proto.clone());
        match &self.host {
            Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
}

/// Puts `value` at the end of the list called `name`, in one line where it is text.
fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let mut lines = match headers.entry(name) {
        Entry::Vacant(none) => {
            none.insert(value);
            return;
        }
        Entry::Occupied(lines) => lines,
    };
    let line = lines
        .get()
        .to_str()
        .ok()
        .filter(|_| lines.iter().count() == 1);
    let joined = line
        .zip(value.to_str().ok())
        .and_then(|(line, value)| HeaderValue::try_from(format!("{line}, {value}")).ok());
    match joined {
        Some(joined) => drop(lines.insert(joined)),
        None => lines.append(value),
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
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-other"]);
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
        let host = HeaderValue::from_static("shop:81");
        Client::new("[::1]:9".parse().unwrap(), false, Some(host)).tell(&mut headers);
        assert_eq!(headers["via"], "1.0 fred, 2 tower-flow");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, ::1");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "shop:81");
        let forwarded = "for=10.0.0.1, for=\"[::1]\";host=\"shop:81\";proto=http";
        assert_eq!(headers["forwarded"], forwarded);
    }
}
