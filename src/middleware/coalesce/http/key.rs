use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request};
use http_body::Body;

use super::cache_control::{pragma_allows, request_allows};
use super::options::Options;
use crate::middleware::coalesce::exact::{Exact, Writer};
use crate::middleware::coalesce::key::{Facts, KeyBy, Terms};
use crate::middleware::coalesce::known::{self, Known};
use crate::middleware::coalesce::target::Target;
use crate::middleware::coalesce::terms;

/// Which HTTP requests are equal: `GET` and `HEAD` without a body, with the same target and the same listed headers.
///
/// Made by [`CoalesceLayer::http`](crate::coalesce::CoalesceLayer::http).
///
/// A request goes alone when it carries `Authorization`, `Cookie`, or another header that is known to say who asks,
/// unless that is listed: `x-api-key`, `api-key`, `apikey`, `x-auth-token`, `x-access-token`, `x-id-token`,
/// `x-csrf-token`, `x-xsrf-token`, `x-forwarded-client-cert`, `x-client-cert`, `ssl-client-cert`, `x-ssl-client-cert`,
/// `x-forwarded-user`, `x-forwarded-email`, `x-forwarded-access-token`, `x-remote-user`, `remote-user`, `x-user`,
/// `x-user-id`, `x-authenticated-user`, `x-authenticated-userid`, `x-consumer-id`, `x-amz-security-token`,
/// `x-goog-api-key`, `x-goog-iap-jwt-assertion`, `x-goog-authenticated-user-email`, `cf-access-jwt-assertion`,
/// `cf-access-token`, `x-ms-client-principal`, `x-ms-client-principal-id`, `x-ms-token-aad-access-token`,
/// `x-jwt-assertion`, `x-tenant-id`, `x-organization-id`. What proxies say of the target is in every key: `forwarded`,
/// `x-forwarded-host`, `x-forwarded-proto`, `x-forwarded-prefix`, `x-original-url`, `x-rewrite-url`, `x-original-host`,
/// `x-host`.
///
/// No such list is complete. What else may tell callers apart is for [`header`](crate::coalesce::CoalesceLayer::header)
/// to list: a tenant, a language. What is known of a caller by its connection alone, such as a client certificate, no
/// header says: do not coalesce what is answered by that, or take a [`KeyBy`] of your own.
///
/// A request that names no host, neither in its URI nor in `Host`, gets one further inside, as in tonic's `Channel`: it
/// is equal only to those that are sent to the same service of the layer's.
///
/// A key is one allocation.
#[derive(Debug, Clone)]
pub struct HttpKey {
    options: Arc<Options>,
}

/// What equal HTTP requests have in common. Hosts are compared without regard to case, all else as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpRequestKey(Exact);

/// Headers whose presence makes a request go alone: it asks for a part, on a condition, for another protocol, for
/// another method, or carries what only its connection knows. Whatever varies by them varies by nothing that is shared.
const ALONE: [&str; 14] = [
    "expect",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "proxy-authorization",
    "range",
    "transfer-encoding",
    "upgrade",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// What one look at the headers tells.
struct Look<'a> {
    host: Option<&'a HeaderValue>,
    /// Bytes of listed values, with what surrounds them.
    listed: usize,
    /// The same of those that are known to name the target.
    named: usize,
}

// ===== impl HttpKey =====

impl HttpKey {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self { options }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// `None` when the request must go alone.
    fn look<'a>(&self, headers: &'a HeaderMap) -> Option<Look<'a>> {
        let mut look = Look {
            host: None,
            listed: 0,
            named: 0,
        };
        for (name, value) in headers {
            let listed = self.options.listed.contains(name);
            let allowed = match name.as_str() {
                // Two hosts are one host to us and another to the next server.
                "host" => look.host.replace(value).is_none(),
                "authorization" | "cookie" => listed,
                "cache-control" => request_allows(value),
                "content-length" => value == "0",
                "pragma" => pragma_allows(value),
                name => match Known::of(name) {
                    Some(Known::Caller) => listed,
                    Some(Known::Target) => {
                        look.named += Writer::FRAME + value.len();
                        true
                    }
                    None => !goes_alone(name),
                },
            };
            if !allowed {
                return None;
            }
            if listed {
                look.listed += Writer::FRAME + value.len();
            }
        }
        Some(look)
    }
}

impl<B: Body> KeyBy<Request<B>> for HttpKey {
    type Key = HttpRequestKey;

    fn key(&self, req: &Request<B>) -> Option<HttpRequestKey> {
        let method = match *req.method() {
            Method::GET => 0,
            Method::HEAD => 1,
            _ => return None,
        };
        if !req.body().is_end_stream() {
            return None;
        }
        let Look {
            host,
            listed,
            named,
        } = self.look(req.headers())?;
        let target = Target::of(req.uri(), host)?;
        let room = 1 + target.room() + self.options.listed.room(listed) + known::room(named);
        let mut key = Writer::new(room);
        key.tag(method);
        target.write(&mut key);
        self.options.listed.write(req.headers(), &mut key);
        known::write(req.headers(), named, &mut key);
        debug_assert!(key.len() <= room, "a key is one allocation");
        Some(HttpRequestKey(key.finish()))
    }

    fn terms(&self, req: &Request<B>) -> Terms {
        terms::terms(req)
    }

    fn is_local(&self, req: &Request<B>) -> bool {
        Target::is_missing(req.uri(), req.headers())
    }

    fn prepare(&self, req: &mut Request<B>, flight: Facts) {
        terms::prepare(req, flight);
    }
}

/// Whether `name`, in lower case, is one of [`ALONE`].
#[inline]
fn goes_alone(name: &str) -> bool {
    // How they begin; most headers of a request do not.
    let begins = matches!(
        name.as_bytes(),
        [b'e', b'x', ..]
            | [b'h', b't', ..]
            | [b'i', b'f', ..]
            | [b'p', b'r', ..]
            | [b'r', b'a', ..]
            | [b't', b'r', ..]
            | [b'u', b'p', ..]
            | [b'x', b'-', ..]
    );
    begins && ALONE.contains(&name)
}

/// Whether no request that has a key carries the header called `name`.
pub(super) fn is_never_carried(name: &[u8]) -> bool {
    let alone = ALONE.iter().chain(&["authorization", "cookie"]);
    alone
        .into_iter()
        .any(|alone| name.eq_ignore_ascii_case(alone.as_bytes()))
}

#[cfg(test)]
mod tests;
