//! What an intermediary does to each message: RFC 9110 7.6, RFC 9112 3.2.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::answer::{self, is_grpc};
use crate::drain::Drain;
use crate::erased::Body;
use crate::fields::{self, Client};
use crate::interim::Interim;
use crate::stack::Stacks;
use crate::tunnel;
use crate::upload::{Progress, Upload};
use crate::wire::Cut;

const ALLOWED: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");

/// One client's connection.
pub(crate) struct Edge {
    peer: SocketAddr,
    tls: bool,
    max_body: Option<u64>,
    drain: Drain,
    interim: Interim,
    cut: Cut,
    /// Who sent the last request.
    client: Mutex<Arc<Client>>,
    stacks: Stacks,
}

/// Why a request goes no further.
struct Refused(StatusCode, &'static str);

impl Edge {
    pub(crate) fn new(
        peer: SocketAddr,
        stacks: Stacks,
        drain: Drain,
        interim: Interim,
        cut: Cut,
    ) -> Self {
        Self {
            peer,
            tls: stacks.tls,
            max_body: stacks.max_body,
            drain,
            interim,
            cut,
            client: Mutex::new(Arc::new(Client::new(peer, stacks.tls, None))),
            stacks,
        }
    }

    /// Answers `req`, come what may.
    pub(crate) async fn answer(&self, req: Request<Incoming>) -> Response<Body> {
        let version = req.version();
        let mut response = match self.forward(req).await {
            Ok(response) => response,
            Err(Refused(status, message)) => {
                let mut response = answer::plain(status, message);
                if status == StatusCode::METHOD_NOT_ALLOWED || status == StatusCode::OK {
                    response.headers_mut().insert(header::ALLOW, ALLOWED);
                }
                response
            }
        };
        if version == Version::HTTP_10 {
            response = self.unmistakable(response);
        }
        if version < Version::HTTP_2 {
            if self.drain.ending() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            // A flush after this poll sends what is left of them and polls again.
            std::future::poll_fn(|_| match self.interim.is_empty() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            })
            .await;
        }
        response
    }

    async fn forward(&self, mut req: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let client = self.client(&req)?;
        permitted(&mut req)?;
        let version = req.version();
        let one = version < Version::HTTP_2;
        let grpc = is_grpc(req.headers());
        let trailers = fields::takes_trailers(req.headers());
        let asked = fields::upgrade(req.headers()).filter(|_| version == Version::HTTP_11);
        let tunnel = req.extensions_mut().remove::<OnUpgrade>();
        let held = self.expects(&req)?;

        let (mut head, body) = req.into_parts();
        let upload = Upload::new(body, self.max_body, held && version == Version::HTTP_11);
        // What a message with a body would switch to is anybody's guess.
        let upgrade = asked
            .zip(tunnel)
            .filter(|_| http_body::Body::is_end_stream(&upload));
        fields::end_to_end(&mut head.headers);
        fields::via(&mut head.headers, version);
        if !one {
            fields::join_cookies(&mut head.headers);
        }
        // It becomes fields only further inside: equal requests of two clients are equal.
        head.extensions.insert(client);
        if trailers {
            head.headers
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some((to, _)) = &upgrade {
            head.headers.insert(header::UPGRADE, to.clone());
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let mut req = Request::from_parts(head, upload);
        if one {
            self.pass_interim(&mut req, version);
        }

        let stack = if grpc {
            &self.stacks.grpc
        } else {
            &self.stacks.http
        };
        let sent = stack.send(req).await;
        let response = sent.unwrap_or_else(|error| answer::of(error.as_ref(), grpc));
        Ok(self.returned(response, upgrade))
    }

    /// What the client gets of `response`.
    fn returned(
        &self,
        mut response: Response<Body>,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upstream = response.extensions_mut().remove::<OnUpgrade>();
            let Some(((_, client), upstream)) = upgrade.zip(upstream) else {
                return answer::plain(
                    StatusCode::BAD_GATEWAY,
                    "the upstream switched protocols unasked",
                );
            };
            tunnel::dig(client, upstream, &self.drain);
            let to = response.headers().get(header::UPGRADE).cloned();
            fields::end_to_end(response.headers_mut());
            if let Some(to) = to {
                response.headers_mut().insert(header::UPGRADE, to);
            }
            let upgrade = HeaderValue::from_static("upgrade");
            response.headers_mut().insert(header::CONNECTION, upgrade);
        } else {
            fields::end_to_end(response.headers_mut());
        }
        let version = response.version();
        fields::via(response.headers_mut(), version);
        *response.version_mut() = Version::HTTP_11;
        response
    }

    /// Who it is, mostly the same as with the request before.
    fn client<B>(&self, req: &Request<B>) -> Result<Arc<Client>, Refused> {
        let mut last = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let host = host(req)?;
        if host != last.host.as_ref().map(HeaderValue::as_bytes) {
            let host = host.map(checked).transpose()?;
            *last = Arc::new(Client::new(self.peer, self.tls, host));
        }
        Ok(last.clone())
    }

    /// A body of unknown length ends with its connection in HTTP/1.0: one that breaks off must not end alike.
    fn unmistakable(&self, response: Response<Body>) -> Response<Body> {
        let cut = self.cut.clone();
        response.map(|body| {
            let body = body.map_err(move |error| {
                cut.cut();
                error
            });
            body.boxed_unsync()
        })
    }

    /// Whether the client waits for a 100 before it sends its body.
    fn expects(&self, req: &Request<Incoming>) -> Result<bool, Refused> {
        let length = http_body::Body::size_hint(req.body()).lower();
        if self.max_body.is_some_and(|largest| length > largest) {
            return Err(Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request is too large",
            ));
        }
        let mut expected = fields::list(req.headers(), &header::EXPECT).peekable();
        let expects = expected.peek().is_some();
        if !expected.all(|it| it.eq_ignore_ascii_case("100-continue")) {
            return Err(Refused(
                StatusCode::EXPECTATION_FAILED,
                "only 100-continue can be expected",
            ));
        }
        Ok(expects)
    }

    /// The upstream's interim answers go to the client. Its 100 lets the body be read, which makes hyper send one.
    fn pass_interim(&self, req: &mut Request<Upload>, version: Version) {
        let upload: Progress = req.body().progress();
        let interim = (version == Version::HTTP_11).then(|| self.interim.clone());
        hyper::ext::on_informational(req, move |answer| match answer.status() {
            StatusCode::CONTINUE => upload.release(),
            status => {
                if let Some(interim) = &interim {
                    interim.push(status, answer.headers());
                }
            }
        });
    }
}

/// The host it is for: that of the target where it names one. Two are refused.
fn host<B>(req: &Request<B>) -> Result<Option<&[u8]>, Refused> {
    const TWO_HOSTS: Refused = Refused(StatusCode::BAD_REQUEST, "the request names two hosts");
    let mut named = req.headers().get_all(header::HOST).iter();
    let host = named.next().map(HeaderValue::as_bytes);
    if named.next().is_some() {
        return Err(TWO_HOSTS);
    }
    if let Some(authority) = req.uri().authority() {
        let authority = authority.as_str().as_bytes();
        let other = host.is_some_and(|host| !host.eq_ignore_ascii_case(authority));
        // In HTTP/1 the target's counts; in HTTP/2 there are not to be two.
        if other && req.version() >= Version::HTTP_2 {
            return Err(TWO_HOSTS);
        }
        return Ok(Some(authority));
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

fn checked(host: &[u8]) -> Result<HeaderValue, Refused> {
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
fn permitted<B>(req: &mut Request<B>) -> Result<(), Refused> {
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
