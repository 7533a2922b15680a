//! Requests that end here: RFC 9110 7.6.2 and 10.1.1, RFC 9112 3.2.

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body::Body;

use crate::fields;

/// Why a request goes no further.
pub(crate) struct Refused(pub(crate) StatusCode, pub(crate) &'static str);

const TWO_HOSTS: Refused = Refused(StatusCode::BAD_REQUEST, "the request names two hosts");

/// The host it is for: that of the target where it names one. Two are refused.
pub(crate) fn host<B>(req: &Request<B>) -> Result<Option<&[u8]>, Refused> {
    let mut named = req.headers().get_all(header::HOST).iter();
    let host = named.next().map(HeaderValue::as_bytes);
    if named.next().is_some() {
        return Err(TWO_HOSTS);
    }
    if let Some(authority) = req.uri().authority() {
        let authority = authority.as_str().as_bytes();
        let other = host.is_some_and(|host| !plain(host).eq_ignore_ascii_case(plain(authority)));
        // In HTTP/1 the target's counts; in HTTP/2 there are not to be two.
        if other && req.version() >= Version::HTTP_2 {
            return Err(TWO_HOSTS);
        }
        if host.is_some() || req.version() != Version::HTTP_11 {
            return Ok(Some(authority));
        }
    }
    if host.is_none() && req.version() == Version::HTTP_11 {
        return Err(Refused(
            StatusCode::BAD_REQUEST,
            "the request names no host",
        ));
    }
    // Empty is what a target without an authority has.
    Ok(host.filter(|host| !host.is_empty()))
}

/// Without a port that goes without saying.
fn plain(host: &[u8]) -> &[u8] {
    let own = host
        .strip_suffix(b":443")
        .or_else(|| host.strip_suffix(b":80"));
    own.unwrap_or(host)
}

/// `host`, if it is one.
pub(crate) fn checked(host: &[u8]) -> Result<HeaderValue, Refused> {
    let authority = Authority::try_from(host).ok();
    authority
        .filter(|authority| !authority.as_str().contains('@'))
        .and_then(|_| HeaderValue::from_bytes(host).ok())
        .ok_or(Refused(
            StatusCode::BAD_REQUEST,
            "the request's host is none",
        ))
}

/// Methods that end here.
pub(crate) fn permitted<B>(req: &mut Request<B>) -> Result<(), Refused> {
    const NO_METHOD: Refused = Refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "this method ends at the gateway, which does not do it",
    );
    if *req.method() == Method::CONNECT || *req.method() == Method::TRACE {
        return Err(NO_METHOD);
    }
    let path = req.uri().path();
    if !(path.starts_with('/')
        || path.is_empty()
        || *req.method() == Method::OPTIONS && path == "*")
    {
        return Err(Refused(
            StatusCode::BAD_REQUEST,
            "the request's target is none",
        ));
    }
    if *req.method() == Method::OPTIONS {
        max_forwards(req.headers_mut())?;
    }
    Ok(())
}

/// RFC 9110 7.6.2.
fn max_forwards(headers: &mut HeaderMap) -> Result<(), Refused> {
    let left = headers.get(header::MAX_FORWARDS);
    let left: Option<u32> = left.and_then(|left| left.to_str().ok()?.trim().parse().ok());
    match left {
        Some(0) => Err(Refused(StatusCode::OK, "")),
        Some(left) => {
            headers.insert(header::MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Whether the client waits for a 100 before it sends its body.
pub(crate) fn expects<B: Body>(
    req: &mut Request<B>,
    largest: Option<u64>,
) -> Result<bool, Refused> {
    let length = req.body().size_hint().lower();
    if largest.is_some_and(|largest| length > largest) {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Err(Refused(status, "the request is too large"));
    }
    // HTTP/1.0 has no interim answers.
    if req.version() < Version::HTTP_11 {
        req.headers_mut().remove(header::EXPECT);
        return Ok(false);
    }
    let mut expected = fields::list(req.headers(), &header::EXPECT).peekable();
    let expects = expected.peek().is_some();
    if !expected.all(|it| it.eq_ignore_ascii_case("100-continue")) {
        let status = StatusCode::EXPECTATION_FAILED;
        return Err(Refused(status, "only 100-continue can be expected"));
    }
    Ok(expects)
}
