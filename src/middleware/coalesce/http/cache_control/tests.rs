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
