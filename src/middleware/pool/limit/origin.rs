//! What is limited as one host: scheme, name and port of a URI.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::hash::{Hash, Hasher};

use http::Uri;

/// A host as it is kept: in lower case, without a user's name and password, without a port that goes without saying.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    scheme: Box<str>,
    authority: Box<str>,
}

/// The two parts of a host, wherever they are: a look-up by those of a URI copies nothing.
pub(super) trait Parts {
    fn parts(&self) -> (&str, Cow<'_, str>);
}

impl Parts for Origin {
    fn parts(&self) -> (&str, Cow<'_, str>) {
        (&self.scheme, Cow::Borrowed(&self.authority))
    }
}

impl Parts for Uri {
    fn parts(&self) -> (&str, Cow<'_, str>) {
        let authority = self.authority().map_or("", |authority| authority.as_str());
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let scheme = match self.scheme_str() {
            Some(scheme) => scheme,
            // The form of CONNECT; hyper's client guesses the same way.
            None if authority.ends_with(":443") => "https",
            None => "http",
        };
        let implied = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let authority = authority.strip_suffix(implied).unwrap_or(authority);
        let authority = match authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(authority.to_ascii_lowercase()),
            false => Cow::Borrowed(authority),
        };
        (scheme, authority)
    }
}

impl PartialEq for dyn Parts + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Parts + '_ {}

impl Hash for dyn Parts + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl ToOwned for dyn Parts + '_ {
    type Owned = Origin;

    fn to_owned(&self) -> Origin {
        let (scheme, authority) = self.parts();
        Origin {
            scheme: scheme.into(),
            authority: authority.into(),
        }
    }
}

// ===== impl Origin =====

impl<'a> Borrow<dyn Parts + 'a> for Origin {
    fn borrow(&self) -> &(dyn Parts + 'a) {
        self
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl fmt::Display for dyn Parts + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = self.parts();
        write!(f, "{scheme}://{authority}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(uri: &str) -> String {
        let uri: Uri = uri.parse().unwrap();
        (&uri as &dyn Parts).to_string()
    }

    #[test]
    fn one_host_has_one_name() {
        assert_eq!(shown("http://a.test/x?y"), "http://a.test");
        assert_eq!(shown("HTTP://me:secret@A.Test:80"), "http://a.test");
        assert_eq!(shown("https://a.test:443/"), "https://a.test");
        assert_eq!(shown("https://a.test:80/"), "https://a.test:80");
        assert_eq!(shown("a.test:443"), "https://a.test");
        assert_eq!(shown("http://[::1]:8080/"), "http://[::1]:8080");
        assert_eq!(shown("/x"), "http://");
    }

    #[test]
    fn a_uri_finds_what_was_kept() {
        let uri: Uri = "http://A.test:80/x".parse().unwrap();
        let kept = std::collections::HashSet::from([(&uri as &dyn Parts).to_owned()]);
        let other: Uri = "http://a.test/y".parse().unwrap();
        assert!(kept.contains(&other as &dyn Parts));
        let other: Uri = "https://a.test/y".parse().unwrap();
        assert!(!kept.contains(&other as &dyn Parts));
    }
}
