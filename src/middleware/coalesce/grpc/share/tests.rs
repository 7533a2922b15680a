use super::*;

use bytes::Bytes;
use http::HeaderName;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use proptest::prelude::*;

use super::super::body::{Begun, Rest};
use crate::base::error::Reason;

/// A body that may fail.
type Inner = UnsyncBoxBody<Bytes, &'static str>;
type Res = Result<Response<GrpcBody<Inner>>, BoxError>;

fn map(statuses: &[&[u8]]) -> HeaderMap {
    let values = statuses
        .iter()
        .map(|status| HeaderValue::from_bytes(status));
    values.map(|value| (GRPC_STATUS, value.unwrap())).collect()
}

/// A response with a message and these statuses in its trailers.
fn answered(statuses: &[&[u8]]) -> Response<GrpcBody<Inner>> {
    Response::new(GrpcBody::whole(Whole {
        data: Some(Bytes::from_static(b"\0\0\0\0\x01x")),
        trailers: Some(map(statuses)),
    }))
}

/// A response that is over with its headers.
fn only_headers(statuses: &[&[u8]]) -> Response<GrpcBody<Inner>> {
    let mut response = Response::new(GrpcBody::whole(Whole::default()));
    *response.headers_mut() = map(statuses);
    response
}

fn admit(response: Response<GrpcBody<Inner>>) -> Admit {
    let result: Res = Ok(response);
    GrpcShare::default().admit(&result)
}

#[test]
fn codes_about_the_caller_are_never_shared() {
    for code in Code::ALL {
        let expected = match code {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unauthenticated
            | Code::PermissionDenied => Admit::Retry,
            _ => Admit::Share,
        };
        let text = code.index().to_string();
        assert_eq!(admit(answered(&[text.as_bytes()])), expected, "{code:?}");
        assert_eq!(
            admit(only_headers(&[text.as_bytes()])),
            expected,
            "{code:?}"
        );
    }
}

#[test]
fn what_is_no_status_is_not_shared() {
    for status in [
        &b""[..],
        b"00",
        b"01",
        b"17",
        b"20",
        b"-0",
        b"+0",
        b" 0",
        b"0 ",
        b"x",
        b"\xff",
        b"000",
    ] {
        assert_eq!(
            admit(answered(&[status])),
            Admit::Retry,
            "{}",
            status.escape_ascii()
        );
    }
    assert_eq!(admit(answered(&[])), Admit::Retry);
    assert_eq!(admit(answered(&[b"0", b"0"])), Admit::Retry);
    assert_eq!(admit(only_headers(&[])), Admit::Retry);
    let mut two = answered(&[b"0"]);
    two.headers_mut()
        .insert(GRPC_STATUS, HeaderValue::from_static("0"));
    assert_eq!(admit(two), Admit::Retry);
    let mut late = answered(&[]);
    late.headers_mut()
        .insert(GRPC_STATUS, HeaderValue::from_static("0"));
    assert_eq!(admit(late), Admit::Retry);
}

#[test]
fn what_was_not_read_to_its_end_is_not_shared() {
    let begun = |rest| {
        let read = [Some(Bytes::from_static(b"x")), None];
        Response::new(GrpcBody::begun(Begun { read, rest }))
    };
    assert_eq!(
        admit(begun(Rest::Body(Box::pin(
            Empty::new().map_err(|never| match never {}).boxed_unsync()
        )))),
        Admit::LeaderOnly
    );
    assert_eq!(admit(begun(Rest::Failed(Some("cut")))), Admit::Retry);
    let result: Res = Ok(begun(Rest::Failed(None)));
    let shared = GrpcShare::default().split(result);
    assert!(join(&shared).is_err());
}

#[test]
fn a_cookie_is_for_one() {
    let cookie = HeaderValue::from_static("a=b");
    let mut response = answered(&[b"0"]);
    response.headers_mut().insert(SET_COOKIE, cookie.clone());
    assert_eq!(admit(response), Admit::LeaderOnly);
    for (status, admitted) in [(&b"0"[..], Admit::LeaderOnly), (b"7", Admit::Retry)] {
        let mut trailers = map(&[status]);
        trailers.insert(SET_COOKIE, cookie.clone());
        let data = Some(Bytes::from_static(b"\0\0\0\0\0"));
        let trailers = Some(trailers);
        let response = Response::new(GrpcBody::whole(Whole { data, trailers }));
        assert_eq!(admit(response), admitted);
    }
}

#[test]
fn errors_are_shared_unless_they_are_about_the_caller() {
    let of = |reason| Err(Rejection::new("inner", reason, "no").into());
    let admit = |result: Res| GrpcShare::default().admit(&result);
    assert_eq!(admit(of(Reason::Deadline)), Admit::Retry);
    assert_eq!(admit(of(Reason::Limit)), Admit::Share);
    assert_eq!(admit(Err("refused".into())), Admit::Share);
    let shared = GrpcShare::default().split(of(Reason::Limit) as Res);
    let error = join(&shared).unwrap_err();
    assert_eq!(
        Rejection::find(error.as_ref()).unwrap().reason(),
        Reason::Limit
    );
}

fn join(shared: &GrpcShared) -> Res {
    Share::<Response<GrpcBody<Inner>>, BoxError>::join(&GrpcShare::default(), shared)
}

#[tokio::test]
async fn headers_message_and_trailers_reach_all() {
    let mut response = answered(&[b"14"]);
    response
        .headers_mut()
        .insert("x", HeaderValue::from_static("1"));
    response.extensions_mut().insert(7u8);
    let shared = GrpcShare::default().split(Ok(response) as Res);
    let one = join(&shared).unwrap();
    let last = Share::<Response<GrpcBody<Inner>>, BoxError>::last(&GrpcShare::default(), shared);
    for response in [one, last.unwrap()] {
        assert_eq!(response.headers()["x"], "1");
        assert_eq!(response.extensions().get(), Some(&7u8));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()[GRPC_STATUS], "14");
        assert_eq!(body.to_bytes(), "\0\0\0\0\x01x");
    }
}

proptest! {
    #[test]
    fn no_response_panics(
        statuses in proptest::collection::vec(proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff], 0..4), 0..3),
        name in "[a-z-]{1,9}",
        in_headers in any::<bool>(),
    ) {
        let statuses: Vec<_> = statuses.iter().map(|status| &**status).collect();
        let mut response = match in_headers {
            true => only_headers(&statuses),
            false => answered(&statuses),
        };
        let name = HeaderName::try_from(name).unwrap();
        response.headers_mut().append(name, HeaderValue::from_static("0"));
        let shared = admit(response) == Admit::Share;
        let code = match *statuses {
            [status] => std::str::from_utf8(status).ok().and_then(|text| text.parse::<u8>().ok()),
            _ => None,
        };
        prop_assert!(!shared || code.is_some_and(|code| code < 17 && ![1, 4, 7, 16].contains(&code)));
    }
}

#[test]
fn failures_are_errors_or_responses() {
    let fail = |respond, reason| {
        let rejection = Rejection::new("coalesce", reason, "told to");
        let policy = GrpcShare::new(respond);
        Share::<Response<GrpcBody<Inner>>, BoxError>::fail(&policy, rejection)
    };
    assert!(fail(false, Reason::Timeout).is_err());
    for (reason, status) in [
        (Reason::Timeout, "4"),
        (Reason::Deadline, "4"),
        (Reason::Recursion, "13"),
        (Reason::Panicked, "13"),
        (Reason::Abandoned, "14"),
    ] {
        let response = fail(true, reason).unwrap();
        assert_eq!(response.headers()["grpc-status"], status);
        assert_eq!(response.headers()["grpc-message"], "coalesce: told to");
        assert!(response.body().is_end_stream());
    }
}
