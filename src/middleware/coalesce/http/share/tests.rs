use super::*;

use std::convert::Infallible;
use std::time::Duration;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, COOKIE, HeaderName, HeaderValue, SET_COOKIE, VARY,
};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use proptest::prelude::*;

use crate::middleware::coalesce::listed::Credentials;

type Res = Result<Response<Full<Bytes>>, Infallible>;

fn policy(set: impl FnOnce(&mut Options)) -> HttpShare {
    let mut options = Options::new();
    set(&mut options);
    HttpShare::new(Arc::new(options), Arc::default(), false)
}

fn response(status: u16, headers: &[(&str, &str)]) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("body"));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    response
}

fn admit(status: u16, headers: &[(&str, &str)]) -> Admit {
    let result: Res = Ok(response(status, headers));
    policy(|_| {}).admit(&result)
}

#[test]
fn statuses_of_the_resource_and_failures_are_shared() {
    for status in 100..=999 {
        let shared = match status {
            200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 451 => true,
            500..=599 => status != 505 && status != 511,
            _ => false,
        };
        assert_eq!(admit(status, &[]) == Admit::Share, shared, "{status}");
        // What is about the one who asked is never made public by a header.
        let explicit = shared || matches!(status, 302 | 303 | 307);
        let public = admit(status, &[("cache-control", "public")]);
        assert_eq!(public == Admit::Share, explicit, "{status}");
    }
    assert_eq!(admit(302, &[]), Admit::LeaderOnly);
    assert_eq!(
        admit(302, &[("cache-control", "max-age=0")]),
        Admit::LeaderOnly
    );
    assert_eq!(admit(302, &[("cache-control", "s-maxage=1")]), Admit::Share);
    assert_eq!(admit(401, &[("cache-control", "private")]), Admit::Retry);
    assert_eq!(admit(503, &[("cache-control", "no-store")]), Admit::Retry);
    assert_eq!(
        admit(200, &[("cache-control", "no-store")]),
        Admit::LeaderOnly
    );
    assert_eq!(admit(200, &[("cache-control", "max-age=0")]), Admit::Share);
}

#[test]
fn what_is_for_one_is_for_one() {
    for name in FOR_ONE {
        assert_eq!(
            admit(200, &[("cache-control", "public"), (name, "")]),
            Admit::LeaderOnly
        );
    }
    assert_eq!(admit(200, &[("pragma", "no-cache")]), Admit::LeaderOnly);
}

#[test]
fn vary_must_be_agreed_on() {
    let vary = |policy: &HttpShare, names: &str| {
        let result: Res = Ok(response(200, &[("vary", names)]));
        policy.admit(&result)
    };
    let plain = policy(|_| {});
    for names in [
        "",
        "accept-encoding",
        "Accept-Encoding, HOST",
        "cookie, Authorization",
        "range",
        "X-Api-Key, x-forwarded-proto",
    ] {
        assert_eq!(vary(&plain, names), Admit::Share, "{names}");
    }
    for names in [
        "*",
        "accept",
        "accept-encoding, origin",
        "accept-encoding,*",
        "a b",
        "user-agent",
    ] {
        assert_eq!(vary(&plain, names), Admit::LeaderOnly, "{names}");
    }
    let listing = policy(|options| {
        options.listed.add(HeaderName::from_static("origin"));
        options
            .listed
            .credentials(AUTHORIZATION, Credentials::InKey);
    });
    assert_eq!(
        vary(&listing, "Origin, authorization, cookie"),
        Admit::Share
    );
    let back = policy(|options| {
        options.listed.credentials(COOKIE, Credentials::InKey);
        options.listed.credentials(COOKIE, Credentials::Bypass);
    });
    assert_eq!(vary(&back, "cookie"), Admit::Share);
}

#[test]
fn lies_about_length_are_not_shared() {
    for (length, admitted) in [
        ("4", Admit::Share),
        ("3", Admit::Retry),
        ("5", Admit::Retry),
        ("+4", Admit::Retry),
        ("4, 4", Admit::Retry),
        ("", Admit::Retry),
        ("99999999999999999999999", Admit::Retry),
    ] {
        assert_eq!(
            admit(200, &[("content-length", length)]),
            admitted,
            "{length}"
        );
    }
    let twice = |second| admit(200, &[("content-length", "4"), ("content-length", second)]);
    assert_eq!((twice("4"), twice("5")), (Admit::Share, Admit::Retry));
    // To a HEAD request the length is of what a GET would have brought.
    let head = response(200, &[("content-length", "5000")]).map(|_| Empty::<Bytes>::new());
    let head: Result<_, Infallible> = Ok(head);
    assert_eq!(policy(|_| {}).admit(&head), Admit::Share);
}

#[tokio::test]
async fn all_get_the_head_and_the_body() {
    let policy = policy(|_| {});
    let mut sent = response(404, &[("content-length", "4"), ("x", "1"), ("x", "2")]);
    *sent.version_mut() = http::Version::HTTP_2;
    sent.extensions_mut().insert("extension");
    let headers = sent.headers().clone();
    let shared = policy.split(Ok::<_, Infallible>(sent));
    let mut got = vec![
        join(&policy, &shared).unwrap(),
        join(&policy, &shared).unwrap(),
    ];
    got.push(Share::<Response<Full<Bytes>>, Infallible>::last(&policy, shared).unwrap());
    for response in got {
        assert_eq!(response.status(), 404);
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.extensions().get(), Some(&"extension"));
        assert_eq!(*response.headers(), headers);
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "body"
        );
    }
}

fn join<B>(policy: &HttpShare, shared: &HttpShared<B>) -> Result<Response<SharedBody<B>>, BoxError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Share::<Response<B>, Infallible>::join(policy, shared)
}

#[tokio::test]
async fn a_body_shorter_than_promised_has_no_clean_end() {
    let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(
        b"four",
    )))];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = response(200, &[("content-length", "5")]).map(|_| body);
    let policy = policy(|options| options.stall = Duration::ZERO);
    let result: Result<_, Infallible> = Ok(response);
    assert_eq!(policy.admit(&result), Admit::Share, "nobody can know yet");
    let shared = policy.split(result);
    let (one, two) = (
        join(&policy, &shared).unwrap(),
        join(&policy, &shared).unwrap(),
    );
    drop(shared);
    for response in [one, two] {
        assert!(response.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn errors_are_shared_whole() {
    let policy = policy(|_| {});
    let failed = || Err::<Response<Full<Bytes>>, _>(std::io::Error::other("cut"));
    assert_eq!(policy.admit(&failed()), Admit::Share);
    let shared = policy.split(failed());
    let error = join(&policy, &shared).unwrap_err();
    assert!(crate::base::error::find::<std::io::Error>(error.as_ref()).is_some());
    let alone = policy.alone(failed()).unwrap_err();
    assert!(alone.is::<std::io::Error>(), "untouched");
}

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
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_private_is_never_shared(
        status in 100u16..=999,
        noise in proptest::collection::vec(("[a-z-]{1,12}", "[ -~]{0,16}"), 0..4),
        reason in prop::sample::select(vec![
            ("cache-control", "private"),
            ("cache-control", "no-store"),
            ("cache-control", "no-cache"),
            ("cache-control", "private=\"x\""),
            ("set-cookie", "a=b"),
            ("vary", "*"),
            ("vary", "accept"),
            ("vary", "x-theme"),
        ]),
        public in any::<bool>(),
        flips in any::<u32>(),
        spaces in ("[ \t,]{0,3}", "[ \t,]{0,3}"),
        place in any::<prop::sample::Index>(),
    ) {
        let mut lines: Vec<(String, String)> = noise;
        let value = match reason.0 {
            "set-cookie" => reason.1.to_owned(),
            _ => format!("{}{}{}", spaces.0, cased(reason.1, flips), spaces.1),
        };
        let at = place.index(lines.len() + 1);
        lines.insert(at, (reason.0.to_owned(), value));
        if public {
            lines.insert(at, ("cache-control".to_owned(), "public, max-age=60".to_owned()));
        }
        let lines: Vec<_> = lines.iter().map(|(name, value)| (&**name, &**value)).collect();
        prop_assert_ne!(admit(status, &lines), Admit::Share);
    }

    #[test]
    fn no_response_panics(
        status in 100u16..=999,
        values in proptest::collection::vec(proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff, Just(b'\t')], 0..24), 4),
    ) {
        let mut response = response(status, &[]);
        for (name, value) in [CACHE_CONTROL, VARY, SET_COOKIE, CONTENT_LENGTH].into_iter().zip(&values) {
            response.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let result: Res = Ok(response);
        let policy = policy(|_| {});
        prop_assert_ne!(policy.admit(&result), Admit::Share);
        let _ = policy.split(result);
    }
}

#[test]
fn failures_are_errors_or_responses() {
    let rejection = |reason| Rejection::new("coalesce", reason, "told to");
    let fail = |respond, reason| {
        let policy = HttpShare::new(Arc::new(Options::new()), Arc::default(), respond);
        let result: Result<Response<SharedBody<Full<Bytes>>>, BoxError> =
            Share::<Response<Full<Bytes>>, BoxError>::fail(&policy, rejection(reason));
        result
    };
    assert!(fail(false, Reason::Timeout).is_err());
    for (reason, status) in [
        (Reason::Timeout, 504),
        (Reason::Deadline, 504),
        (Reason::Recursion, 508),
        (Reason::Panicked, 500),
        (Reason::Abandoned, 503),
    ] {
        let response = fail(true, reason).unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-coalesce-reason"], reason.as_str());
        assert_eq!(
            response.headers().contains_key("retry-after"),
            status == 503
        );
        assert!(response.body().is_end_stream());
    }
}
