use http::header::HOST;
use http::{HeaderMap, HeaderValue, Uri};

use super::exact::Writer;

/// Where a request goes.
pub(super) struct Target<'a> {
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    /// Unless it says the same.
    host: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
}

// ===== impl Target =====

impl<'a> Target<'a> {
    /// `None` when it names a user: that and its password are credentials, and differ by case as hosts do not.
    pub(super) fn of(uri: &'a Uri, host: Option<&'a HeaderValue>) -> Option<Self> {
        let authority = uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        // A client may well send another host than it connects to.
        let host = host.map(HeaderValue::as_bytes);
        let host = host.filter(|host| {
            !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
        });
        let mut names = [authority, host].into_iter().flatten();
        if names.any(|name| name.contains(&b'@')) {
            return None;
        }
        Some(Self {
            scheme: uri.scheme_str().map(str::as_bytes),
            authority,
            host,
            path: uri.path_and_query().map(|path| path.as_str().as_bytes()),
        })
    }

    /// Whether only the service a request is sent to knows whom it is for: it names nobody itself.
    pub(super) fn is_missing(uri: &Uri, headers: &HeaderMap) -> bool {
        let named = || headers.get(HOST).is_some_and(|host| !host.is_empty());
        uri.authority().is_none() && !named()
    }

    /// Bytes written at most.
    pub(super) fn room(&self) -> usize {
        let parts = [self.scheme, self.authority, self.host, self.path];
        parts
            .map(|part| Writer::FRAME + part.map_or(0, <[u8]>::len))
            .into_iter()
            .sum()
    }

    pub(super) fn write(&self, to: &mut Writer) {
        for part in [self.scheme, self.authority, self.host] {
            match part {
                Some(part) => to.lower(part),
                None => to.absent(),
            }
        }
        match self.path {
            Some(path) => to.field(path),
            None => to.absent(),
        }
    }
}
