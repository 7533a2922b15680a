//! What a request's URI says, and what each version wants of it.

use std::hash::{Hash, Hasher};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, header};
use rustc_hash::FxHasher;

use super::connection::Origin;
use super::core::HostKey;

/// What tells the request's host apart.
#[inline]
pub(super) fn key(uri: &Uri) -> Option<HostKey<'_>> {
    let name = uri.host().filter(|name| !name.is_empty())?;
    let port = uri.port_u16();
    let scheme = match uri.scheme_str() {
        Some(scheme) => scheme,
        // The target of a CONNECT is an authority alone.
        None if uri.path_and_query().is_none() => match port? {
            443 => "https",
            _ => "http",
        },
        None => return None,
    };
    let port = port.unwrap_or(match scheme {
        "http" => 80,
        "https" => 443,
        _ => 0,
    });
    Some(HostKey { scheme, name, port })
}

/// A hash of how the origin of `uri` is written. Whoever makes many that are the same makes look-ups slower, and no more.
#[inline]
pub(super) fn spelling(uri: &Uri) -> u64 {
    let mut hasher = FxHasher::default();
    if let Some(authority) = uri.authority() {
        hasher.write(authority.as_str().as_bytes());
    }
    hasher.write_u8(u8::from(uri.scheme() == Some(&Scheme::HTTPS)));
    hasher.finish()
}

/// `scheme://authority/` of a request's URI, without user and password.
pub(super) fn origin(uri: &Uri) -> Option<Uri> {
    let key = key(uri)?;
    let authority = uri.authority()?;
    let plain = match authority.as_str().rsplit_once('@') {
        Some((_, plain)) => plain.parse().ok()?,
        None => authority.clone(),
    };
    build(
        key.scheme.parse().ok()?,
        plain,
        PathAndQuery::from_static("/"),
    )
}

fn build(scheme: Scheme, authority: Authority, path: PathAndQuery) -> Option<Uri> {
    let uri = Uri::builder().scheme(scheme).authority(authority);
    uri.path_and_query(path).build().ok()
}

/// The `Host` header for requests to `origin`: without the port where it is the scheme's own.
pub(super) fn host_header(origin: &Uri) -> Option<HeaderValue> {
    let name = origin.host()?;
    let port = origin.port_u16();
    let own = match origin.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    match port.filter(|_| port != own) {
        Some(port) => HeaderValue::from_str(&format!("{name}:{port}")).ok(),
        None => HeaderValue::from_str(name).ok(),
    }
}

/// Makes `req` what an HTTP/1 connection sends: a `Host` header, and the form of target that fits.
pub(super) fn for_http1<B>(req: &mut Request<B>, origin: &Origin, proxied: bool) {
    if let Some(header) = &origin.header
        && !req.headers().contains_key(header::HOST)
    {
        req.headers_mut().insert(header::HOST, header.clone());
    }
    if req.method() == Method::CONNECT {
        for_connect(req);
    } else if proxied && origin.uri.scheme() == Some(&Scheme::HTTP) {
        // A proxy that is spoken to directly wants the whole of it, but for user and password.
        without_user(req);
    } else {
        let path = req.uri_mut();
        *path = match path.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
    }
}

/// Takes user and password out of the URI: RFC 9113 8.3.1 wants none in `:authority`.
pub(super) fn without_user<B>(req: &mut Request<B>) {
    let authority = req.uri().authority();
    if authority.is_some_and(|authority| authority.as_str().contains('@')) {
        let mut parts = std::mem::take(req.uri_mut()).into_parts();
        parts.authority = parts.authority.map(plain);
        if let Ok(uri) = Uri::from_parts(parts) {
            *req.uri_mut() = uri;
        }
    }
}

/// The target of a CONNECT is an authority alone, whatever the version.
pub(super) fn for_connect<B>(req: &mut Request<B>) {
    if let Some(authority) = req.uri().authority().cloned() {
        *req.uri_mut() = Uri::from(plain(authority));
    }
}

/// `authority` without user and password.
fn plain(authority: Authority) -> Authority {
    let plain = match authority.as_str().rsplit_once('@') {
        Some((_, plain)) => plain.parse().ok(),
        None => None,
    };
    plain.unwrap_or(authority)
}

/// Undoes what was done to the URI of a request that comes back unsent.
pub(super) fn restore<B>(req: &mut Request<B>, origin: &Origin) {
    if req.uri().authority().is_some() || req.method() == Method::CONNECT {
        return;
    }
    let path = req.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = origin.uri.scheme().cloned();
    let authority = origin.uri.authority().cloned();
    if let (Some(scheme), Some(authority)) = (scheme, authority)
        && let Some(uri) = build(scheme, authority, path)
    {
        *req.uri_mut() = uri;
    }
}

/// A host's name, hashed as if it were lower case.
pub(super) fn lower(name: &str) -> Lower<'_> {
    Lower(name)
}

pub(super) struct Lower<'a>(&'a str);

impl Hash for Lower<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 64];
        for chunk in self.0.as_bytes().chunks(bytes.len()) {
            let lower = &mut bytes[..chunk.len()];
            lower.copy_from_slice(chunk);
            lower.make_ascii_lowercase();
            state.write(lower);
        }
        state.write_u8(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uri: &str) -> Option<(String, String, u16)> {
        let uri: Uri = uri.parse().unwrap();
        key(&uri).map(|key| (key.scheme.into(), key.name.into(), key.port))
    }

    #[test]
    fn hosts_are_told_apart_by_scheme_name_and_port() {
        let some = |scheme: &str, name: &str, port| Some((scheme.into(), name.into(), port));
        assert_eq!(told("http://a/x?y"), some("http", "a", 80));
        assert_eq!(told("http://a:80/"), some("http", "a", 80));
        assert_eq!(told("https://u:p@a"), some("https", "a", 443));
        assert_eq!(told("http://[::1]:8080/"), some("http", "[::1]", 8080));
        assert_eq!(told("a:443"), some("https", "a", 443));
        assert_eq!(told("a:8080"), some("http", "a", 8080));
        assert_eq!(told("/path"), None);
    }

    #[test]
    fn origins_hold_no_secrets_and_headers_no_needless_port() {
        let case = |uri: &str| {
            let origin = origin(&uri.parse().unwrap()).unwrap();
            let header = host_header(&origin).unwrap();
            (origin.to_string(), header.to_str().unwrap().to_owned())
        };
        assert_eq!(
            case("http://u:p@a:80/x"),
            ("http://a:80/".into(), "a".into())
        );
        assert_eq!(
            case("https://a:8443"),
            ("https://a:8443/".into(), "a:8443".into())
        );
        assert_eq!(
            case("http://[::1]/"),
            ("http://[::1]/".into(), "[::1]".into())
        );
    }

    #[test]
    fn secrets_leave_a_target_before_it_is_sent() {
        let mut req = Request::get("http://u:p@a:81/x?y").body(()).unwrap();
        without_user(&mut req);
        assert_eq!(req.uri(), "http://a:81/x?y");
        let mut req = Request::connect("http://u:p@a:81").body(()).unwrap();
        for_connect(&mut req);
        assert_eq!(req.uri(), "a:81");
    }
}
