use super::*;

use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::Empty;
use proptest::prelude::*;

use super::super::body::Whole;
use crate::middleware::coalesce::known::{KNOWN, Known};
use crate::middleware::coalesce::listed::Credentials;

type Req = Request<GrpcBody<Empty<Bytes>>>;

fn rules(set: impl FnOnce(&mut Options)) -> GrpcKey {
    let mut options = Options::new();
    for path in ["/a.B/C", "/a.B/c", "/a.B/D"] {
        options.methods.insert(path.into());
    }
    set(&mut options);
    GrpcKey::new(Arc::new(options))
}

fn call(path: &str, message: &'static [u8], headers: &[(&str, &str)]) -> Req {
    let whole = Whole {
        data: Some(Bytes::from_static(message)),
        trailers: None,
    };
    let mut req = Request::new(GrpcBody::whole(whole));
    *req.method_mut() = Method::POST;
    *req.uri_mut() = format!("http://host{path}").parse().unwrap();
    let given = [("content-type", "application/grpc")];
    for (name, value) in given.iter().chain(headers) {
        let name: HeaderName = name.parse().unwrap();
        req.headers_mut().append(name, value.parse().unwrap());
    }
    req
}

fn key(path: &str, message: &'static [u8], headers: &[(&str, &str)]) -> Option<GrpcRequestKey> {
    rules(|_| {}).key(&call(path, message, headers))
}

#[test]
fn only_listed_unary_calls_have_a_key() {
    assert!(key("/a.B/C", b"x", &[]).is_some());
    for path in ["/a.B/X", "/a.B/C/", "//a.B/C", "/a.B/C?x", "/A.B/C", "/"] {
        assert_eq!(key(path, b"x", &[]), None, "{path}");
    }
    let mut req = call("/a.B/C", b"x", &[]);
    *req.method_mut() = Method::GET;
    assert_eq!(rules(|_| {}).key(&req), None);
    let req = call("/a.B/C", b"x", &[]).map(|_| GrpcBody::passed(Empty::<Bytes>::new()));
    assert_eq!(rules(|_| {}).key(&req), None, "it was not read");
    let with_trailers = Whole {
        data: None,
        trailers: Some(HeaderMap::new()),
    };
    let req =
        call("/a.B/C", b"x", &[]).map(|_| GrpcBody::<Empty<Bytes>>::whole(with_trailers.clone()));
    assert_eq!(rules(|_| {}).key(&req), None);
}

#[test]
fn only_plain_framing_has_a_key() {
    let of = |kind: &'static str| {
        let mut req = call("/a.B/C", b"x", &[]);
        let kind = HeaderValue::from_static(kind);
        req.headers_mut().insert(CONTENT_TYPE, kind);
        rules(|_| {}).key(&req)
    };
    assert_ne!(of("application/grpc"), of("application/grpc+proto"));
    assert!(of("Application/gRPC;x").is_some());
    for kind in [
        "application/grpc-web",
        "application/grpc-web-text",
        "application/grpcx",
        "application/json",
        "",
    ] {
        assert_eq!(of(kind), None, "{kind}");
    }
    assert_eq!(
        key("/a.B/C", b"x", &[("content-type", "application/grpc")]),
        None,
        "twice"
    );
    let mut req = call("/a.B/C", b"x", &[]);
    req.headers_mut().clear();
    assert_eq!(rules(|_| {}).key(&req), None);
}

#[test]
fn what_belongs_to_a_caller_is_no_part_of_the_key() {
    let first = key("/a.B/C", b"x", &[]);
    for (name, value) in [
        ("grpc-timeout", "10m"),
        ("te", "trailers"),
        ("user-agent", "x"),
        ("traceparent", "00-1-2-3"),
        ("x-request-id", "7"),
        ("grpc-trace-bin", "AA"),
        ("host", "HOST"),
    ] {
        assert_eq!(first, key("/a.B/C", b"x", &[(name, value)]), "{name}");
    }
    for (name, value) in [
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "gzip"),
        ("accept-encoding", "gzip"),
        ("host", "other"),
    ] {
        let other = key("/a.B/C", b"x", &[(name, value)]);
        assert!(other.is_some() && other != first, "{name}");
    }
    assert_ne!(first, key("/a.B/c", b"x", &[]));
    assert_ne!(first, key("/a.B/C", b"X", &[]));
    assert_ne!(first, key("/a.B/C", b"", &[]));
}

#[test]
fn messages_are_compared_as_they_are() {
    let one = b"\0\0\0\0\x01x";
    let two = b"\0\0\0\0\x01x\0\0\0\0\x01x";
    let compressed = b"\x01\0\0\0\x01x";
    let keys = [&one[..], two, compressed].map(|message| key("/a.B/C", message, &[]).unwrap());
    assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
}

#[test]
fn credentials_go_alone_or_are_in_the_key() {
    for name in ["authorization", "cookie", "proxy-authorization"] {
        assert_eq!(key("/a.B/C", b"x", &[(name, "a")]), None);
    }
    let rules = rules(|options| {
        options
            .listed
            .credentials(AUTHORIZATION, Credentials::InKey);
        options.listed.add(COOKIE);
    });
    let key = |headers: &[(&str, &str)]| rules.key(&call("/a.B/C", b"x", headers)).unwrap();
    assert_eq!(
        key(&[("authorization", "a")]),
        key(&[("authorization", "a")])
    );
    assert_ne!(
        key(&[("authorization", "a")]),
        key(&[("authorization", "A")])
    );
    assert_ne!(key(&[("authorization", "a")]), key(&[("cookie", "a")]));
}

#[test]
fn what_says_who_asks_goes_alone_unless_it_is_chosen() {
    for (name, known) in KNOWN {
        let is_alone = key("/a.B/C", b"x", &[(name, "a")]).is_none();
        assert_eq!(is_alone, known == Known::Caller, "{name}");
        let rules = rules(|options| options.listed.add(HeaderName::from_static(name)));
        let key = |headers: &[(&str, &str)]| rules.key(&call("/a.B/C", b"x", headers)).unwrap();
        assert_eq!(key(&[(name, "a")]), key(&[(name, "a")]));
        assert_ne!(key(&[(name, "a")]), key(&[(name, "b")]));
        assert_ne!(key(&[(name, "a")]), key(&[]));
    }
}

#[test]
fn who_names_no_host_is_local() {
    let rules = rules(|_| {});
    let mut req = call("/a.B/C", b"x", &[]);
    assert!(!rules.is_local(&req));
    *req.uri_mut() = "/a.B/C".parse().unwrap();
    assert!(rules.key(&req).is_some() && rules.is_local(&req));
    let host = HeaderValue::from_static("a");
    req.headers_mut().insert("host", host);
    assert!(!rules.is_local(&req));
}

#[test]
fn nothing_of_a_key_is_shown() {
    let key = key("/a.B/C", b"secret", &[]);
    let shown = format!("{key:?}");
    assert!(
        !shown.contains("secret") && !shown.contains("115"),
        "{shown}"
    );
}

fn calls() -> impl Strategy<
    Value = (
        &'static str,
        &'static [u8],
        Vec<(&'static str, &'static str)>,
    ),
> {
    let name = prop::sample::select(vec![
        "authorization",
        "grpc-encoding",
        "grpc-accept-encoding",
        "x-tenant",
        "grpc-timeout",
        "user-agent",
        "forwarded",
        "x-forwarded-host",
    ]);
    let value = prop::sample::select(vec!["", "a", "A", "aa"]);
    (
        prop::sample::select(vec!["/a.B/C", "/a.B/c", "/a.B/D"]),
        prop::sample::select(vec![&b""[..], b"a", b"aa", b"\0\0\0\0\0"]),
        proptest::collection::vec((name, value), 0..4),
    )
}

/// All that says who asks, or what for.
fn who() -> Vec<&'static str> {
    let known = KNOWN.map(|(name, _)| name).into_iter();
    let credentials = ["authorization", "cookie", "proxy-authorization"];
    known.chain(credentials).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn keys_are_equal_only_when_all_that_belongs_to_them_is(one in calls(), two in calls(), same in any::<[bool; 3]>()) {
        let mut two = two;
        if same[0] { two.0 = one.0 }
        if same[1] { two.1 = one.1 }
        if same[2] { two.2 = one.2.clone() }
        let rules = rules(|options| {
            options.listed.credentials(AUTHORIZATION, Credentials::InKey);
            options.listed.add(HeaderName::from_static("x-tenant"));
        });
        let values = |headers: &[(&'static str, &'static str)]| {
            ["authorization", "grpc-encoding", "grpc-accept-encoding", "x-tenant", "forwarded", "x-forwarded-host"].map(|name| {
                let same = headers.iter().filter(|header| header.0 == name);
                same.map(|header| header.1).collect::<Vec<_>>()
            })
        };
        let belongs = one.0 == two.0 && one.1 == two.1 && values(&one.2) == values(&two.2);
        let keys = [&one, &two].map(|(path, message, headers)| rules.key(&call(path, message, headers)).unwrap());
        prop_assert_eq!(keys[0] == keys[1], belongs);
    }

    #[test]
    fn two_users_are_never_crossed(
        one in calls(),
        two in calls(),
        tokens in ("[ -~]{0,8}", "[ -~]{0,8}"),
        name in prop::sample::select(who()),
    ) {
        let name = HeaderName::from_static(name);
        let with = |(path, message, headers): &(&str, &'static [u8], Vec<(&str, &str)>), token: &str| {
            let mut req = call(path, message, headers);
            req.headers_mut().insert(&name, HeaderValue::from_str(token).unwrap());
            req
        };
        for rules in [rules(|_| {}), rules(|options| options.listed.add(name.clone()))] {
            for two in [&one, &two] {
                let keys = (rules.key(&with(&one, &tokens.0)), rules.key(&with(two, &tokens.1)));
                if let (Some(one), Some(two)) = keys && tokens.0 != tokens.1 {
                    prop_assert_ne!(one, two);
                }
            }
        }
    }
}
