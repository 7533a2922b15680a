//! The secret that lets somebody turn knobs.

use std::fmt;
use std::hint::black_box;

use http::{HeaderMap, HeaderValue, header};

/// What the cookie is called, before the port.
const COOKIE: &str = "tower_flow";
/// What can be guessed is no secret.
const SHORTEST: usize = 16;
/// More than a header should hold.
const LONGEST: usize = 512;

/// A secret of visible characters.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::admin) struct Token(Box<str>);

impl Token {
    /// Panics when it is too short or long, or could not travel in a header.
    pub(in crate::admin) fn new(token: &str) -> Self {
        let length = token.len();
        assert!(
            (SHORTEST..=LONGEST).contains(&length),
            "a token has {SHORTEST} to {LONGEST} characters, not {length}"
        );
        // The characters of a cookie's value.
        let visible =
            |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\');
        assert!(
            token.bytes().all(visible),
            "a token is made of visible ASCII characters other than quotes, commas, semicolons and backslashes"
        );
        Self(token.into())
    }

    /// Whether `offered` is the same. How long that takes does not depend on where they differ.
    pub(in crate::admin) fn is(&self, offered: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let mut differ = own.len() ^ offered.len();
        for (index, byte) in own.iter().enumerate() {
            let other = offered.get(index).copied().unwrap_or(0);
            differ |= usize::from(black_box(byte ^ other));
        }
        black_box(differ) == 0
    }

    /// Whether a request says it, as its bearer.
    pub(super) fn is_borne(&self, headers: &HeaderMap) -> bool {
        let bearers = headers.get_all(header::AUTHORIZATION).iter();
        let mut bearers = bearers.filter_map(|value| bearer(value.as_bytes()));
        bearers.any(|offered| self.is(offered))
    }

    /// Whether a request says it in the cookie.
    pub(super) fn is_kept(&self, headers: &HeaderMap, host: &str) -> bool {
        let own = cookie_name(host);
        let mut cookies = headers.get_all(header::COOKIE).iter().flat_map(|value| {
            let pairs = value.as_bytes().split(|byte| *byte == b';');
            pairs.filter_map(|pair| {
                let pair = pair.trim_ascii();
                let at = pair.iter().position(|byte| *byte == b'=')?;
                let name = &pair[..at];
                (name == own.as_bytes() || name == COOKIE.as_bytes()).then_some(&pair[at + 1..])
            })
        });
        cookies.any(|offered| self.is(offered))
    }

    /// The header that makes a browser send it from now on, or with `None` no more.
    pub(in crate::admin) fn cookie(token: Option<&Self>, host: &str, secure: bool) -> HeaderValue {
        let (value, age) = token.map_or(("", "; Max-Age=0"), |token| (&*token.0, ""));
        let secure = if secure { "; Secure" } else { "" };
        let name = cookie_name(host);
        let cookie = format!("{name}={value}; HttpOnly; SameSite=Strict; Path=/{age}{secure}");
        let mut cookie =
            HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static(""));
        cookie.set_sensitive(true);
        cookie
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Browsers send a cookie to every port of its host: two services on one machine would take each other's.
fn cookie_name(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{COOKIE}_{port}")
        }
        _ => COOKIE.to_owned(),
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn only_the_very_same_is_the_same() {
        let token = Token::new(SECRET);
        assert!(token.is(SECRET.as_bytes()));
        for offered in [
            "",
            "0",
            "0123456789abcde",
            "0123456789abcdeF",
            "1123456789abcdef",
            "0123456789abcdef\0",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert!(!token.is(offered.as_bytes()), "{offered:?}");
        }
        // Lengths that differ by what a byte cannot hold.
        let long = [SECRET.as_bytes(), &[0; 256]].concat();
        assert!(!token.is(&long));
        assert!(!token.is(&vec![b'0'; 16 + (1 << 16)]));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn it_is_found_where_it_may_be() {
        let token = Token::new(SECRET);
        let found = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.append("cookie", HeaderValue::from_static("theme=dark"));
            headers.append(name, HeaderValue::try_from(value).unwrap());
            token.is_borne(&headers) || token.is_kept(&headers, "localhost:9090")
        };
        for (name, value) in [
            ("authorization", "Bearer 0123456789abcdef"),
            ("authorization", "bearer  0123456789abcdef "),
            ("cookie", "tower_flow=0123456789abcdef"),
            ("cookie", "a=b; tower_flow_9090=0123456789abcdef;c"),
            ("cookie", "tower_flow=wrong; tower_flow=0123456789abcdef"),
        ] {
            assert!(found(name, value), "{value}");
        }
        for (name, value) in [
            ("authorization", "Basic 0123456789abcdef"),
            ("authorization", "0123456789abcdef"),
            ("authorization", "Bearer"),
            ("authorization", "Bearer 0123456789abcdeX"),
            ("cookie", "tower_flow"),
            ("cookie", "tower_flow_9091=0123456789abcdef"),
            ("cookie", "xtower_flow=0123456789abcdef"),
            ("cookie", "tower_flow=\"0123456789abcdef\""),
            ("x-token", "0123456789abcdef"),
        ] {
            assert!(!found(name, value), "{value}");
        }
    }

    #[test]
    fn cookies_are_told_apart_by_their_ports() {
        let token = Token::new(SECRET);
        let set = Token::cookie(Some(&token), "[::1]:9090", false);
        assert_eq!(
            set,
            "tower_flow_9090=0123456789abcdef; HttpOnly; SameSite=Strict; Path=/"
        );
        assert!(set.is_sensitive());
        let cleared = Token::cookie(None, "orders.internal", true);
        assert_eq!(
            cleared,
            "tower_flow=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0; Secure"
        );
    }

    #[test]
    #[should_panic(expected = "16 to 512 characters, not 15")]
    fn short_ones_are_refused() {
        Token::new("0123456789abcde");
    }

    #[test]
    #[should_panic(expected = "visible ASCII")]
    fn those_that_cannot_travel_are_refused() {
        Token::new("0123456789 abcdef");
    }
}
