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
mod tests;
