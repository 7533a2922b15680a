//! What an intermediary does to each message: RFC 9110 7.6.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::answer::{self, is_grpc};
use crate::drain::Drain;
use crate::erased::Body;
use crate::fields::{self, Client};
use crate::interim::Interim;
use crate::rules::{self, Refused};
use crate::stack::Stacks;
use crate::tunnel;
use crate::upload::{Progress, Upload};
use crate::wire::Line;

/// Marks an answer after which the connection is of no more use.
#[derive(Clone, Copy)]
struct Last;

/// One client's connection.
pub(crate) struct Edge {
    peer: SocketAddr,
    tls: bool,
    drain: Drain,
    interim: Interim,
    line: Line,
    /// Who sent the last request.
    client: Mutex<Arc<Client>>,
    stacks: Stacks,
}

impl Edge {
    pub(crate) fn new(
        peer: SocketAddr,
        stacks: Stacks,
        drain: Drain,
        interim: Interim,
        line: Line,
    ) -> Self {
        Self {
            peer,
            tls: stacks.tls,
            drain,
            interim,
            line,
            client: Mutex::new(Arc::new(Client::new(peer, stacks.tls, None))),
            stacks,
        }
    }

    /// Answers `req`, come what may.
    pub(crate) async fn answer(&self, req: Request<Incoming>) -> Response<Body> {
        let (version, grpc) = (req.version(), is_grpc(req.headers()));
        let switches = fields::may_switch(&req);
        let unread = !req.body().is_end_stream();
        let mut response = match self.forward(req).await {
            Ok(response) => response,
            Err(refused) => {
                let mut response = answer::refused(&refused, grpc);
                if unread {
                    response.extensions_mut().insert(Last);
                }
                response
            }
        };
        match version {
            Version::HTTP_10 => response = self.unmistakable(response),
            Version::HTTP_2 if is_grpc(response.headers()) => {
                response = answer::told_in_trailers(response)
            }
            _ => {}
        }
        if version < Version::HTTP_2 {
            let last = response.extensions_mut().remove::<Last>().is_some();
            // What was not looked at is not to be read as another request.
            let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if !switched && (last || switches && !self.line.stay() || self.drain.ending()) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            self.interim.end().await;
        }
        response
    }

    async fn forward(&self, mut req: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let client = self.client(&req)?;
        rules::permitted(&mut req)?;
        let version = req.version();
        let http1 = version < Version::HTTP_2;
        let grpc = is_grpc(req.headers());
        let trailers = fields::takes_trailers(req.headers());
        let asked = fields::upgrade(req.headers()).filter(|_| version == Version::HTTP_11);
        let tunnel = req.extensions_mut().remove::<OnUpgrade>();
        let expects = rules::expects(&mut req, self.stacks.max_body)?;
        // HTTP/2 upstreams have no way to send a 100 that hyper would show.
        let held = expects && http1 && self.stacks.holds;

        let (mut head, body) = req.into_parts();
        let upload = Upload::new(body, self.stacks.max_body, held);
        // What a message with a body would switch to is anybody's guess.
        let upgrade = asked.zip(tunnel).filter(|_| upload.is_end_stream());
        fields::end_to_end(&mut head.headers);
        fields::via(&mut head.headers, version);
        if !http1 {
            fields::join_cookies(&mut head.headers);
        }
        // It becomes fields only further inside: equal requests of two clients are equal.
        head.extensions.insert(client);
        // Accounting puts a body round it, which does not tell.
        if grpc {
            head.extensions.insert(upload.progress());
        }
        if trailers {
            head.headers
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some((to, _)) = &upgrade {
            head.headers.insert(header::UPGRADE, to.clone());
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let upload_goes_on = upload.progress();
        let mut req = Request::from_parts(head, upload);
        if http1 {
            self.pass_interim(&mut req, version);
        }

        let stack = if grpc {
            &self.stacks.grpc
        } else {
            &self.stacks.http
        };
        Ok(match stack.send(req).await {
            Ok(response) => {
                let received = response.version();
                let mut response = self.returned(response, upgrade);
                fields::via(response.headers_mut(), received);
                response
            }
            Err(error) => {
                let mut response = answer::of(error.as_ref(), grpc);
                if upload_goes_on.unread() {
                    response.extensions_mut().insert(Last);
                }
                response
            }
        })
    }

    /// What the client gets of `response`.
    fn returned(
        &self,
        mut response: Response<Body>,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
    ) -> Response<Body> {
        let status = response.status();
        let to = response.headers().get(header::UPGRADE).cloned();
        fields::end_to_end(response.headers_mut());
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let upstream = response.extensions_mut().remove::<OnUpgrade>();
            let Some(((_, client), upstream)) = upgrade.zip(upstream) else {
                let message = "the upstream switched protocols unasked";
                return answer::plain(StatusCode::BAD_GATEWAY, message);
            };
            // Its body has nothing to say, and is how long the upstream has this request.
            let (head, body) = response.into_parts();
            tunnel::dig(client, upstream, body, &self.drain);
            response = Response::from_parts(head, answer::empty());
        }
        let tells = matches!(
            status,
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED
        );
        if let Some(to) = to.filter(|_| tells) {
            let upgrade = HeaderValue::from_static("upgrade");
            response.headers_mut().insert(header::UPGRADE, to);
            response.headers_mut().insert(header::CONNECTION, upgrade);
        }
        *response.version_mut() = Version::HTTP_11;
        response
    }

    /// Who it is, mostly the same as with the request before.
    fn client<B>(&self, req: &Request<B>) -> Result<Arc<Client>, Refused> {
        let mut last = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let host = rules::host(req)?;
        if host != last.host.as_ref().map(HeaderValue::as_bytes) {
            let host = host.map(rules::checked).transpose()?;
            *last = Arc::new(Client::new(self.peer, self.tls, host));
        }
        Ok(last.clone())
    }

    /// A body of unknown length ends with its connection in HTTP/1.0: one that breaks off must not end alike.
    fn unmistakable(&self, response: Response<Body>) -> Response<Body> {
        let line = self.line.clone();
        response.map(|body| {
            let body = body.map_err(move |error| {
                line.cut();
                error
            });
            body.boxed_unsync()
        })
    }

    /// The upstream's interim answers go to the client. Its 100 lets the body be read, which makes hyper send one.
    fn pass_interim(&self, req: &mut Request<Upload>, version: Version) {
        let upload: Progress = req.body().progress();
        let interim = self.interim.clone();
        let request = interim.begin();
        req.extensions_mut().insert(interim.clone());
        hyper::ext::on_informational(req, move |answer| {
            interim.heard();
            match answer.status() {
                StatusCode::CONTINUE => upload.release(),
                _ if version < Version::HTTP_11 => {}
                status => interim.push(request, status, answer.headers()),
            }
        });
    }
}
