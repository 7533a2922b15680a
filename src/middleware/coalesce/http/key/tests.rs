use super::*;

use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, COOKIE, HOST, HeaderName,
};
use http_body_util::{Empty, Full};
use proptest::prelude::*;

use crate::base::clock;
use crate::base::deadline::Deadline;
use crate::base::priority::Priority;
use crate::middleware::coalesce::known::KNOWN;
use crate::middleware::coalesce::listed::Credentials;

type Req = Request<Full<bytes::Bytes>>;

fn rules(set: impl FnOnce(&mut Options)) -> HttpKey {
    let mut options = Options::new();
    set(&mut options);
    HttpKey::new(Arc::new(options))
}

fn both_in_key() -> HttpKey {
    rules(|options| {
        options
            .listed
            .credentials(AUTHORIZATION, Credentials::InKey);
        options.listed.credentials(COOKIE, Credentials::InKey);
        options.listed.add(HeaderName::from_static("accept"));
    })
}

fn get(uri: &str, headers: &[(&str, &str)]) -> Req {
    let mut req = Request::new(Full::default());
    *req.uri_mut() = uri.parse().unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        req.headers_mut().append(name, value.parse().unwrap());
    }
    req
}

fn key(req: &Req) -> Option<HttpRequestKey> {
    rules(|_| {}).key(req)
}

fn plain(headers: &[(&str, &str)]) -> Option<HttpRequestKey> {
    key(&get("http://a/b", headers))
}

#[test]
fn only_get_and_head_without_a_body_have_a_key() {
    let mut req = get("http://a/b", &[]);
    let first = key(&req).unwrap();
    *req.method_mut() = Method::HEAD;
    assert_ne!(key(&req).unwrap(), first, "a HEAD is no GET");
    for method in [Method::POST, Method::OPTIONS, Method::CONNECT, Method::PUT] {
        *req.method_mut() = method;
        assert_eq!(key(&req), None);
    }
    *req.method_mut() = Method::from_bytes(b"get").unwrap();
    assert_eq!(key(&req), None, "methods have a case");
    let with_body = get("http://a/b", &[]).map(|_| Full::from("x"));
    assert_eq!(key(&with_body), None);
    assert!(plain(&[("content-length", "0")]).is_some());
    for length in ["1", "00", "x", ""] {
        assert_eq!(plain(&[("content-length", length)]), None);
    }
    assert_eq!(
        plain(&[("content-length", "0"), ("content-length", "5")]),
        None
    );
    assert_eq!(plain(&[("transfer-encoding", "chunked")]), None);
}

#[test]
fn what_says_who_asks_goes_alone_unless_it_is_listed() {
    let listing = |name| rules(|options| options.listed.add(HeaderName::from_static(name)));
    for (name, known) in KNOWN {
        assert!(Options::new().agrees(name.to_uppercase().as_bytes()));
        let is_alone = plain(&[(name, "a")]).is_none();
        assert_eq!(is_alone, known == Known::Caller, "{name}");
        let rules = listing(name);
        let key = |values: &[&'static str]| {
            let headers: Vec<_> = values.iter().map(|value| (name, *value)).collect();
            rules.key(&get("http://a/b", &headers)).unwrap()
        };
        assert_eq!(key(&["a"]), key(&["a"]));
        for other in [&[][..], &[""], &["b"], &["a", "a"]] {
            assert_ne!(key(&["a"]), key(other), "{name}");
        }
    }
}

#[test]
fn what_names_the_target_is_in_every_key() {
    let targets = KNOWN
        .iter()
        .filter(|(_, known)| *known == Known::Target)
        .map(|(name, _)| *name);
    let targets: Vec<_> = targets.collect();
    let mut keys = vec![plain(&[])];
    for name in &targets {
        keys.extend([plain(&[(name, "")]), plain(&[(name, "a")])]);
        keys.push(plain(&[(name, "a"), ("accept-encoding", "a")]));
        assert_eq!(plain(&[(name, "a")]), plain(&[(name, "a"), ("x", "a")]));
    }
    keys.push(plain(&[(targets[0], "a"), (targets[1], "a")]));
    for (n, one) in keys.iter().enumerate() {
        assert!(one.is_some());
        assert!(keys.iter().skip(n + 1).all(|other| other != one), "{n}");
    }
}

#[test]
fn what_asks_for_something_of_its_own_goes_alone() {
    for name in ALONE.iter().chain(&["authorization", "cookie"]) {
        assert_eq!(plain(&[(name, "")]), None, "{name}");
        assert!(is_never_carried(name.to_uppercase().as_bytes()));
    }
    for value in ["no-cache", "NO-store", "max-age=0", "public;", "\""] {
        assert_eq!(
            plain(&[("cache-control", "max-age=5"), ("cache-control", value)]),
            None
        );
    }
    for value in ["no-cache", "No-Cache, x", "\""] {
        assert_eq!(plain(&[("pragma", "x"), ("pragma", value)]), None);
    }
    assert!(plain(&[("pragma", "x")]).is_some());
}

#[test]
fn what_a_request_asks_of_caches_is_in_the_key() {
    let aged = plain(&[("cache-control", "max-age=5")]);
    assert!(aged.is_some());
    assert_eq!(aged, plain(&[("cache-control", "max-age=5")]));
    assert_ne!(aged, plain(&[]));
    assert_ne!(aged, plain(&[("cache-control", "only-if-cached")]));
}

#[test]
fn codings_are_never_mixed() {
    let gzip = plain(&[("accept-encoding", "gzip")]);
    let all = [
        plain(&[]),
        plain(&[("accept-encoding", "")]),
        plain(&[("accept-encoding", "identity")]),
        gzip.clone(),
        plain(&[("accept-encoding", "gzip"), ("accept-encoding", "")]),
        plain(&[("accept-encoding", "gzip"), ("accept-encoding", "br")]),
        plain(&[("accept-encoding", "br"), ("accept-encoding", "gzip")]),
        plain(&[("accept-encoding", "gzip, br")]),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(one.is_some());
        assert!(all.iter().skip(n + 1).all(|other| other != one), "{n}");
    }
    assert_eq!(gzip, plain(&[("accept", "x"), ("accept-encoding", "gzip")]));
}

#[test]
fn targets_are_told_apart() {
    let host = [("host", "a")];
    let all = [
        key(&get("http://a/b", &[])),
        key(&get("https://a/b", &[])),
        key(&get("http://a:80/b", &[])),
        key(&get("http://a/B", &[])),
        key(&get("http://a/b?", &[])),
        key(&get("http://a/b?x=1&y=2", &[])),
        key(&get("http://a/b?y=2&x=1", &[])),
        key(&get("http://a/%62", &[])),
        key(&get("/b", &[])),
        key(&get("/b", &host)),
        key(&get("/b", &[("host", "")])),
        key(&get("a", &[])),
        key(&get("*", &host)),
        key(&get("http://a/b", &[("host", "c")])),
        key(&get("http://c/b", &host)),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(one.is_some(), "{n}");
        assert!(all.iter().skip(n + 1).all(|other| other != one), "{n}");
    }
}

#[test]
fn hosts_have_no_case_and_are_said_once() {
    let first = key(&get("http://example.com/b", &[]));
    assert_eq!(first, key(&get("HTTP://Example.COM/b", &[])));
    assert_eq!(
        first,
        key(&get("http://example.com/b", &[("host", "EXAMPLE.com")]))
    );
    let relative = key(&get("/b", &[("host", "a")]));
    assert_eq!(relative, key(&get("/b", &[("host", "A")])));
    assert_eq!(key(&get("/b", &[("host", "a"), ("host", "a")])), None);
    assert_eq!(
        key(&get("http://a/b", &[("host", "a"), ("host", "b")])),
        None
    );
}

#[test]
fn who_names_no_host_is_local() {
    let local = |uri, headers: &[(&str, &str)]| rules(|_| {}).is_local(&get(uri, headers));
    assert!(local("/b", &[]) && local("*", &[]) && local("/b", &[("host", "")]));
    assert!(!local("/b", &[("host", "a")]));
    assert!(!local("http://a/b", &[]) && !local("a", &[]));
}

#[test]
fn a_user_in_the_target_goes_alone() {
    assert_eq!(key(&get("http://user:word@a/b", &[])), None);
    assert_eq!(key(&get("/b", &[("host", "user@a")])), None);
    assert!(key(&get("http://a/user@b", &[])).is_some());
}

#[test]
fn credentials_in_the_key_are_exact() {
    let rules = both_in_key();
    let key = |headers: &[(&str, &str)]| rules.key(&get("/", headers)).unwrap();
    let one = key(&[("authorization", "Bearer a")]);
    assert_eq!(one, key(&[("authorization", "Bearer a")]));
    let others = [
        key(&[]),
        key(&[("authorization", "")]),
        key(&[("authorization", "Bearer A")]),
        key(&[("authorization", "bearer a")]),
        key(&[("authorization", "Bearer a ")]),
        key(&[("cookie", "Bearer a")]),
        key(&[("authorization", "Bearer a"), ("cookie", "")]),
        key(&[("authorization", "Bearer a"), ("authorization", "Bearer a")]),
    ];
    assert!(others.iter().all(|other| *other != one));
}

#[test]
fn nothing_of_a_key_is_shown() {
    let key = both_in_key().key(&get("/secret", &[("cookie", "secret")]));
    assert!(!format!("{key:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn terms_and_preparation_are_those_of_the_request() {
    let rules = rules(|_| {});
    let at = |secs| Deadline::at(clock::now() + Duration::from_secs(secs));
    let mut req = Request::new(Empty::<bytes::Bytes>::new());
    req.extensions_mut().insert(at(1));
    assert_eq!(rules.terms(&req).deadline, Some(at(1)));
    let flight = Facts {
        priority: Priority::Critical,
        timeout: Some(Duration::from_secs(30)),
    };
    rules.prepare(&mut req, flight);
    assert_eq!(req.extensions().get(), Some(&at(30)));
    assert_eq!(req.extensions().get(), Some(&Priority::Critical));
}

/// A request by its parts.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    head: bool,
    origin: &'static str,
    path: &'static str,
    host: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Model {
    fn request(&self) -> Req {
        let mut req = get(&format!("{}{}", self.origin, self.path), &self.headers);
        if self.head {
            *req.method_mut() = Method::HEAD;
        }
        if let Some(host) = self.host {
            req.headers_mut().append(HOST, host.parse().unwrap());
        }
        req
    }

    /// All that belongs to the key, each value in the order of its header's.
    fn relevant(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let origin = self.origin.to_lowercase();
        let authority = origin.split_once("//").map(|(_, rest)| rest.to_owned());
        let host = self.host.map(str::to_lowercase);
        let host = host.filter(|host| Some(host) != authority.as_ref());
        let listed = [ACCEPT_ENCODING, AUTHORIZATION, COOKIE, CACHE_CONTROL];
        let listed = listed.into_iter().map(|name| name.as_str().to_owned());
        let values: Vec<Vec<&str>> = listed
            .chain(["accept", "forwarded", "x-forwarded-host"].map(str::to_owned))
            .map(|name| {
                let same = self.headers.iter().filter(|header| header.0 == name);
                same.map(|header| header.1).collect()
            })
            .collect();
        (self.head, origin, self.path, host, values)
    }
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let name = prop::sample::select(vec![
        "accept-encoding",
        "authorization",
        "cookie",
        "cache-control",
        "accept",
        "user-agent",
        "traceparent",
        "x-id",
        "forwarded",
        "x-forwarded-host",
    ]);
    // Blanks are not between tokens: in a `cache-control` they would be garbage.
    let value = prop::sample::select(vec!["", "a", "A", "aa", "gzip", "gzip, br", "a=b"]);
    proptest::collection::vec((name, value), 0..5)
}

fn model() -> impl Strategy<Value = Model> {
    (
        any::<bool>(),
        prop::sample::select(vec!["http://a", "http://A", "https://a", "http://a:80", ""]),
        prop::sample::select(vec!["/", "/a", "/A", "/a?", "/a?a"]),
        prop::sample::select(vec![None, Some("a"), Some("A"), Some("b"), Some("")]),
        headers(),
    )
        .prop_map(|(head, origin, path, host, headers)| Model {
            head,
            origin,
            path,
            host,
            headers,
        })
}

/// All that says who asks, or what for.
fn who() -> Vec<&'static str> {
    let known = KNOWN.map(|(name, _)| name).into_iter();
    known.chain(["authorization", "cookie"]).collect()
}

/// Two that differ in little or nothing.
fn pair() -> impl Strategy<Value = (Model, Model)> {
    (model(), model(), any::<[bool; 5]>(), any::<bool>()).prop_map(|(one, two, takes, turn)| {
        let mut other = one.clone();
        if takes[0] {
            other.head = two.head;
        }
        if takes[1] {
            other.origin = two.origin;
        }
        if takes[2] {
            other.path = two.path;
        }
        if takes[3] {
            other.host = two.host;
        }
        if takes[4] {
            other.headers = two.headers;
        } else if turn {
            other.headers.reverse();
        }
        (one, other)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn keys_are_equal_only_when_all_that_belongs_to_them_is((one, two) in pair()) {
        let rules = both_in_key();
        let keys = [rules.key(&one.request()), rules.key(&two.request())].map(Option::unwrap);
        prop_assert_eq!(keys[0] == keys[1], one.relevant() == two.relevant());
    }

    #[test]
    fn who_bypasses_never_has_a_key(one in model()) {
        let credentials = one.headers.iter().any(|header| matches!(header.0, "authorization" | "cookie"));
        prop_assert_eq!(key(&one.request()).is_none(), credentials);
    }

    #[test]
    fn two_users_are_never_crossed(
        (one, two) in pair(),
        tokens in ("[ -~]{0,8}", "[ -~]{0,8}"),
        name in prop::sample::select(who()),
    ) {
        let name = HeaderName::from_static(name);
        let with = |model: &Model, token: &str| {
            let mut req = model.request();
            req.headers_mut().insert(&name, HeaderValue::from_str(token).unwrap());
            req
        };
        for rules in [both_in_key(), rules(|_| {}), rules(|options| options.listed.add(name.clone()))] {
            let keys = (rules.key(&with(&one, &tokens.0)), rules.key(&with(&two, &tokens.1)));
            if let (Some(one), Some(two)) = keys && tokens.0 != tokens.1 {
                prop_assert_ne!(one, two);
            }
        }
    }

    #[test]
    fn no_request_panics(
        uri in "[!-~]{0,20}",
        host in proptest::option::of("[ -~]{0,9}"),
        names in proptest::collection::vec("[a-z-]{1,20}", 0..5),
        value in proptest::collection::vec(0x20u8..0x7f, 0..20),
    ) {
        let Ok(uri) = uri.parse() else { return Ok(()) };
        let mut req = Request::new(Empty::<bytes::Bytes>::new());
        *req.uri_mut() = uri;
        for name in names {
            req.headers_mut().append(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&value).unwrap());
        }
        if let Some(host) = host {
            req.headers_mut().append(HOST, HeaderValue::from_str(&host).unwrap());
        }
        let rules = both_in_key();
        prop_assert_eq!(rules.key(&req), rules.key(&req));
        req.headers_mut().append(CONTENT_LENGTH, HeaderValue::from_static("7"));
        prop_assert_eq!(rules.key(&req), None);
    }
}

#[test]
fn all_that_go_alone_begin_as_they_do() {
    for name in ALONE {
        assert!(goes_alone(name), "{name}");
    }
    assert!(!goes_alone("x-theme") && !goes_alone("accept"));
}
