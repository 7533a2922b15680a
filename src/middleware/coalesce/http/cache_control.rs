//! What headers say of sharing: `Cache-Control`, `Pragma` and `Vary`, read strictly.
//!
//! Who guesses what a malformed header was meant to say guesses wrong for somebody: what is not by the grammar of RFC
//! 9110 §5.6 refuses to be shared.

use http::header::{CACHE_CONTROL, PRAGMA, VARY};
use http::{HeaderMap, HeaderValue};

/// What the headers of a response say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// It is for one, or nobody can tell.
    Refused,
    /// Nothing.
    Silent,
    /// It may be stored for all: RFC 9111 §3 asks for that where a status does not allow it by itself.
    Explicit,
}

/// A list that is not by the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Garbage;

/// One member of a list: a name, and what stands behind its `=`, without the quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member<'a> {
    name: &'a [u8],
    value: Option<&'a [u8]>,
}

/// The members of one line of a list. Ends after garbage.
struct Members<'a>(&'a [u8]);

/// Whether a request with this `Cache-Control` takes an answer that somebody else asked for.
///
/// What it says beside that is in the key: a `max-age=60` is not answered with what others were content with.
pub(super) fn request_allows(cache_control: &HeaderValue) -> bool {
    Members(cache_control.as_bytes()).all(|member| match member {
        Ok(member) if member.is(b"max-age") => member.seconds().is_some_and(|seconds| seconds > 0),
        Ok(member) => !member.is(b"no-store") && !member.is(b"no-cache"),
        Err(Garbage) => false,
    })
}

/// The same of its `Pragma`.
pub(super) fn pragma_allows(pragma: &HeaderValue) -> bool {
    Members(pragma.as_bytes()).all(|member| member.is_ok_and(|member| !member.is(b"no-cache")))
}

/// What `Cache-Control` and `Pragma` of a response say.
///
/// `private` and `no-cache` refuse with field names behind them too: taking those fields out is not our business. That
/// `must-understand` lifts a `no-store` is not believed.
pub(super) fn permission(headers: &HeaderMap) -> Permission {
    let mut permission = Permission::Silent;
    for value in headers.get_all(CACHE_CONTROL) {
        for member in Members(value.as_bytes()) {
            let Ok(member) = member else {
                return Permission::Refused;
            };
            if member.is(b"private") || member.is(b"no-store") || member.is(b"no-cache") {
                return Permission::Refused;
            }
            let lasts = (member.is(b"max-age") || member.is(b"s-maxage"))
                && member.seconds().is_some_and(|seconds| seconds > 0);
            if lasts || member.is(b"public") {
                permission = Permission::Explicit;
            }
        }
    }
    // No cache need heed it in a response; who writes it means it all the same.
    if !headers.get_all(PRAGMA).iter().all(pragma_allows) {
        return Permission::Refused;
    }
    permission
}

/// Whether `covers` all headers the response varies by. `*` is never covered.
pub(super) fn varies_within(headers: &HeaderMap, covers: impl Fn(&[u8]) -> bool) -> bool {
    let mut lines = headers.get_all(VARY).iter();
    lines.all(|line| {
        Members(line.as_bytes()).all(|member| {
            member
                .is_ok_and(|Member { name, value }| value.is_none() && name != b"*" && covers(name))
        })
    })
}

// ===== impl Member =====

impl Member<'_> {
    fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// A delta of RFC 9111 §1.2.2: digits, however many.
    fn seconds(&self) -> Option<u64> {
        let digits = self.value.filter(|digits| !digits.is_empty())?;
        digits.iter().try_fold(0u64, |seconds, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            Some(seconds.saturating_mul(10).saturating_add(digit))
        })
    }
}

// ===== impl Members =====

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Garbage>;

    fn next(&mut self) -> Option<Self::Item> {
        // Empty members are allowed, RFC 9110 §5.6.1.2.
        while let [b' ' | b'\t' | b',', rest @ ..] = self.0 {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let member = self.member().ok_or(Garbage);
        if member.is_err() {
            self.0 = &[];
        }
        Some(member)
    }
}

impl<'a> Members<'a> {
    fn member(&mut self) -> Option<Member<'a>> {
        let name = self.token()?;
        let value = match self.0 {
            [b'=', b'"', rest @ ..] => {
                self.0 = rest;
                Some(self.quoted()?)
            }
            [b'=', rest @ ..] => {
                self.0 = rest;
                Some(self.token()?)
            }
            _ => None,
        };
        // Only blanks may stand between a member and the comma behind it.
        match self.0.trim_ascii_start() {
            [] | [b',', ..] => Some(Member { name, value }),
            _ => None,
        }
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| !is_token(*byte));
        let (token, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// What is left of a quoted string, its escapes as they are.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        let mut escaped = false;
        let end = self.0.iter().position(|byte| match byte {
            _ if escaped => {
                escaped = false;
                false
            }
            b'\\' => {
                escaped = true;
                false
            }
            byte => *byte == b'"',
        })?;
        let (string, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(string)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn headers(name: &'static str, lines: &[&[u8]]) -> HeaderMap {
        let lines = lines.iter().map(|line| HeaderValue::from_bytes(line));
        lines
            .map(|line| (http::HeaderName::from_static(name), line.unwrap()))
            .collect()
    }

    fn said(lines: &[&[u8]]) -> Permission {
        let mut found = HeaderMap::new();
        for line in lines {
            found.append(CACHE_CONTROL, HeaderValue::from_bytes(line).unwrap());
        }
        permission(&found)
    }

    #[test]
    fn permissions_are_read() {
        assert_eq!(said(&[]), Permission::Silent);
        for silent in [
            &b""[..],
            b" , ,\t,",
            b"max-age=0",
            b"must-revalidate, no-transform",
            b"x-private, privately=1, publicity",
            b"x=\"private, no-store\"",
            b"x=\"\\\", private\"",
            b"max-age=\"0\"",
            b"max-age",
        ] {
            assert_eq!(
                said(&[silent]),
                Permission::Silent,
                "{}",
                silent.escape_ascii()
            );
        }
        for explicit in [
            &b"public"[..],
            b"PUBLIC",
            b",max-age=1,",
            b"s-maxage=60, max-age=0",
            b"max-age=\"60\"",
            b"max-age=99999999999999999999999999",
        ] {
            assert_eq!(
                said(&[explicit]),
                Permission::Explicit,
                "{}",
                explicit.escape_ascii()
            );
        }
    }

    #[test]
    fn refusals_and_garbage_refuse() {
        for refused in [
            &b"private"[..],
            b"public, PriVate",
            b"private=\"set-cookie\"",
            b"private=x",
            b"max-age=60,no-store",
            b"must-understand, no-store",
            b"no-cache=\"a, b\"",
            b"\tno-cache\t",
            b"max-age=",
            b"max-age = 60",
            b"max-age=60 public",
            b"max-age=\"60",
            b"max-age=\"60\\\"",
            b"x=\"a\"private",
            b"=60",
            b"public;private",
            b"public: private",
            b"\xff\xfe",
            b"a=b=c",
            b"\"private\"",
            b"(private)",
        ] {
            assert_eq!(
                said(&[refused]),
                Permission::Refused,
                "{}",
                refused.escape_ascii()
            );
            assert_eq!(said(&[b"public", refused]), Permission::Refused);
        }
    }

    #[test]
    fn requests_may_ask_for_an_answer_of_their_own() {
        let allows = |text: &[u8]| request_allows(&HeaderValue::from_bytes(text).unwrap());
        for fresh in [
            &b"no-cache"[..],
            b"No-Store",
            b"max-age=0",
            b"max-age=00",
            b"max-age",
            b"max-age=x",
            b"a b",
        ] {
            assert!(!allows(fresh), "{}", fresh.escape_ascii());
        }
        for any in [
            &b""[..],
            b"max-age=60",
            b"no-transform",
            b"only-if-cached, max-stale",
        ] {
            assert!(allows(any), "{}", any.escape_ascii());
        }
        assert!(!pragma_allows(&HeaderValue::from_static("NO-CACHE")));
        assert!(!pragma_allows(&HeaderValue::from_static("x, \"")));
        assert!(pragma_allows(&HeaderValue::from_static("x")));
        let pragma = headers("pragma", &[b"x", b"no-cache"]);
        assert_eq!(permission(&pragma), Permission::Refused);
    }

    #[test]
    fn vary_is_covered_or_not() {
        let within = |lines: &[&[u8]]| {
            varies_within(&headers("vary", lines), |name| {
                name.eq_ignore_ascii_case(b"accept")
            })
        };
        assert!(within(&[]) && within(&[b""]) && within(&[b"Accept, ,ACCEPT", b"accept"]));
        for uncovered in [
            &b"*"[..],
            b"accept,*",
            b"accept, cookie",
            b"accept=1",
            b"accept cookie",
            b"accept;",
            b"\xe9",
        ] {
            assert!(
                !within(&[b"accept", uncovered]),
                "{}",
                uncovered.escape_ascii()
            );
        }
        assert!(!varies_within(&headers("vary", &[b" * "]), |_| true));
    }

    fn spaced() -> impl Strategy<Value = String> {
        "[ \t,]{0,4}"
    }

    /// `text` with the case of its letters by the bits of `flips`.
    fn cased(text: &str, flips: u32) -> String {
        let chars = text.chars().enumerate();
        chars
            .map(|(at, char)| match flips >> (at % 32) & 1 {
                1 => char.to_ascii_uppercase(),
                _ => char,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn no_bytes_panic(line in proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff, Just(b'"'), Just(b',')], 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                let _ = (request_allows(&value), pragma_allows(&value));
                let mut headers = HeaderMap::new();
                for name in [CACHE_CONTROL, PRAGMA, VARY] {
                    headers.append(name, value.clone());
                }
                let _ = (permission(&headers), varies_within(&headers, |_| true));
            }
        }

        #[test]
        fn a_refusal_is_found_in_any_case_and_spacing(
            refusal in prop_oneof![Just("private"), Just("no-store"), Just("no-cache"), Just("private=\"a,b\"")],
            flips in any::<u32>(),
            before in "(public[ \t]*,)?[a-z]{0,8}",
            after in "[ -~\u{80}-\u{ff}]{0,20}",
            spaces in (spaced(), spaced()),
        ) {
            let line = format!("{before},{}{}{},{after}", spaces.0, cased(refusal, flips), spaces.1);
            prop_assert_eq!(said(&[line.as_bytes()]), Permission::Refused, "{}", line);
        }
    }
}
