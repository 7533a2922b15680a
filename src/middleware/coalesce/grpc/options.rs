use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use rustc_hash::FxHashSet;

use crate::middleware::coalesce::exact::Writer;
use crate::middleware::coalesce::known::Known;
use crate::middleware::coalesce::listed::Listed;

/// What the parts of the form agree on.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Paths of unary methods.
    pub(super) methods: FxHashSet<Box<str>>,
    /// All values of these are in the key.
    pub(super) listed: Listed,
    pub(super) max_key_bytes: usize,
    pub(super) max_message: usize,
}

/// What one look at the head of a call tells.
pub(super) struct Look<'a> {
    pub(super) host: Option<&'a HeaderValue>,
    /// Bytes of listed values, with what surrounds them.
    pub(super) listed: usize,
    /// The same of those that are known to name the target.
    pub(super) named: usize,
}

// ===== impl Options =====

impl Options {
    pub(super) fn new() -> Self {
        const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
        const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");
        Self {
            methods: FxHashSet::default(),
            listed: Listed::new([ACCEPT_ENCODING, CONTENT_TYPE, ENCODING, ACCEPTED]),
            max_key_bytes: 64 * 1024,
            max_message: 4 * 1024 * 1024,
        }
    }

    /// `None` for a call that goes alone, whatever its message.
    pub(super) fn look<'a, B>(&self, req: &'a Request<B>) -> Option<Look<'a>> {
        let uri = req.uri();
        let listed = *req.method() == Method::POST
            && uri.query().is_none()
            && self.methods.contains(uri.path());
        if !listed {
            return None;
        }
        self.look_at(req.headers())
    }

    fn look_at<'a>(&self, headers: &'a HeaderMap) -> Option<Look<'a>> {
        let mut look = Look {
            host: None,
            listed: 0,
            named: 0,
        };
        let mut framed = false;
        for (name, value) in headers {
            let listed = self.listed.contains(name);
            let allowed = match name.as_str() {
                "host" => look.host.replace(value).is_none(),
                "authorization" | "cookie" | "proxy-authorization" => listed,
                "content-type" => {
                    let first = !std::mem::replace(&mut framed, true);
                    first && is_plain(value)
                }
                name => match Known::of(name) {
                    Some(Known::Caller) => listed,
                    Some(Known::Target) => {
                        look.named += Writer::FRAME + value.len();
                        true
                    }
                    None => true,
                },
            };
            if !allowed {
                return None;
            }
            if listed {
                look.listed += Writer::FRAME + value.len();
            }
        }
        framed.then_some(look)
    }
}

/// Whether messages are framed as gRPC does it. In gRPC-Web the status is in the data, where nobody looks for it here.
fn is_plain(content_type: &HeaderValue) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((start, rest)) = content_type.as_bytes().split_at_checked(GRPC.len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}
