use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body::Body;

use super::body::GrpcBody;
use super::options::Options;
use crate::middleware::coalesce::exact::{Exact, Writer};
use crate::middleware::coalesce::key::{Facts, KeyBy, Terms};
use crate::middleware::coalesce::known;
use crate::middleware::coalesce::target::Target;
use crate::middleware::coalesce::terms;

/// Which gRPC calls are equal: calls of a listed unary method with the same message, byte for byte, to the same authority,
/// in the same encodings, with the same chosen metadata.
///
/// Made by [`CoalesceLayer::grpc`](crate::coalesce::CoalesceLayer::grpc). `grpc-timeout`, `user-agent` and whatever
/// else is not chosen is no part of it, but for what proxies say of the target. A call goes alone when it carries
/// `authorization`, `cookie`, `proxy-authorization`, or other metadata that is known to say who asks, unless that is
/// chosen; [`HttpKey`](crate::coalesce::HttpKey) has the names of both.
///
/// No such list is complete. Metadata by which the server tells callers apart must be chosen, for a gRPC response does
/// not say what it varies by. What is known of a caller by its connection alone, such as a client certificate, no
/// metadata says: do not list methods that answer by it.
///
/// A call that names no host, neither in its URI nor in `Host`, gets one further inside, as in tonic's `Channel`: it
/// is equal only to those that are sent to the same service of the layer's.
///
/// A key is one allocation. The message is not copied.
#[derive(Debug, Clone)]
pub struct GrpcKey {
    options: Arc<Options>,
}

/// What equal gRPC calls have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GrpcRequestKey {
    head: Exact,
    message: Bytes,
}

// ===== impl GrpcKey =====

impl GrpcKey {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self { options }
    }

    pub(super) fn options(&self) -> &Arc<Options> {
        &self.options
    }
}

impl<B: Body> KeyBy<Request<GrpcBody<B>>> for GrpcKey {
    type Key = GrpcRequestKey;

    fn key(&self, req: &Request<GrpcBody<B>>) -> Option<GrpcRequestKey> {
        let whole = req.body().as_whole()?;
        // Nobody sends trailers with a request; what they would mean is not known.
        if whole.trailers.is_some() {
            return None;
        }
        let look = self.options.look(req)?;
        let target = Target::of(req.uri(), look.host)?;
        let listed = &self.options.listed;
        let room = target.room() + listed.room(look.listed) + known::room(look.named);
        let mut head = Writer::new(room);
        target.write(&mut head);
        listed.write(req.headers(), &mut head);
        known::write(req.headers(), look.named, &mut head);
        debug_assert!(head.len() <= room, "a key is one allocation");
        Some(GrpcRequestKey {
            head: head.finish(),
            message: whole.data.clone().unwrap_or_default(),
        })
    }

    fn terms(&self, req: &Request<GrpcBody<B>>) -> Terms {
        terms::terms(req)
    }

    fn is_local(&self, req: &Request<GrpcBody<B>>) -> bool {
        Target::is_missing(req.uri(), req.headers())
    }

    fn prepare(&self, req: &mut Request<GrpcBody<B>>, flight: Facts) {
        terms::prepare(req, flight);
    }
}

// ===== impl GrpcRequestKey =====

/// Messages are nobody else's business.
impl fmt::Debug for GrpcRequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcRequestKey")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
