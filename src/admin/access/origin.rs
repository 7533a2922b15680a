//! Which pages may send requests here.

use http::HeaderMap;
use http::header::{self, HeaderName};

/// Which page is behind a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Site {
    /// This endpoint's, or none: its browser says so.
    Own,
    /// Another site's.
    Other,
    /// Nobody says. It is no browser; or one that says nothing of requests that only read from a host without TLS.
    Unsaid,
}

/// Which page is behind a request that named `host`, as far as its browser says.
pub(super) fn site(host: &str, headers: &HeaderMap) -> Site {
    let all = |name: HeaderName, fits: &dyn Fn(&str) -> bool| {
        let values = headers.get_all(&name).iter();
        let mut fit = values.map(|value| value.to_str().is_ok_and(fits));
        let first = fit.next()?;
        Some(first && fit.all(|fits| fits))
    };
    let fetched = all(HeaderName::from_static("sec-fetch-site"), &|site| {
        matches!(site, "same-origin" | "none")
    });
    let origin = all(header::ORIGIN, &|origin| matches(origin, host));
    let said = match (fetched, origin) {
        (None, None) => all(header::REFERER, &|page| matches(origin_of(page), host)),
        (fetched, origin) => Some(fetched != Some(false) && origin != Some(false)),
    };
    match said {
        Some(true) => Site::Own,
        Some(false) => Site::Other,
        None => Site::Unsaid,
    }
}

/// What of a page's address is its origin.
fn origin_of(page: &str) -> &str {
    let host = page.find("://").map_or(0, |at| at + 3);
    let end = page[host..].find(['/', '?', '#', '\\']);
    end.map_or(page, |end| &page[..host + end])
}

fn matches(origin: &str, host: &str) -> bool {
    // What browsers leave out of the one they may have left in the other.
    let (named, port) = match origin.split_once("://") {
        Some(("http", named)) => (named, ":80"),
        Some(("https", named)) => (named, ":443"),
        _ => return false,
    };
    let bare = |host: &'_ str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    !named.is_empty() && bare(named) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn said(host: &str, said: &[(&'static str, &'static str)]) -> Site {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(*name, HeaderValue::from_static(value));
        }
        site(host, &headers)
    }

    #[test]
    fn only_this_endpoints_page_is_its_own() {
        let host = "127.0.0.1:9090";
        for words in [
            &[("origin", "http://127.0.0.1:9090")][..],
            &[("origin", "https://127.0.0.1:9090")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("referer", "http://127.0.0.1:9090")],
            &[("referer", "http://127.0.0.1:9090/?a=http://b#c")],
            // Whoever says more is believed that.
            &[
                ("sec-fetch-site", "none"),
                ("referer", "http://evil.example/"),
            ],
        ] {
            assert_eq!(said(host, words), Site::Own, "{words:?}");
        }
        for words in [
            &[("origin", "null")][..],
            &[("origin", "")],
            &[("origin", "http://")],
            &[("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1")],
            &[("origin", "http://127.0.0.1:8080")],
            &[("origin", "ftp://127.0.0.1:9090")],
            &[("origin", "http://127.0.0.1:9090.evil.example")],
            &[
                ("origin", "http://127.0.0.1:9090"),
                ("origin", "http://evil.example"),
            ],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "")],
            &[
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("origin", "http://127.0.0.1:9090"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("referer", "http://127.0.0.1:9090/"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("referer", "http://evil.example/http://127.0.0.1:9090/")],
            &[("referer", "http://127.0.0.1:9090.evil.example/")],
            &[("referer", "http://evil.example\\@127.0.0.1:9090/")],
            &[("referer", "http://127.0.0.1:9091/")],
            &[("referer", "about:blank")],
            &[("referer", "")],
        ] {
            assert_eq!(said(host, words), Site::Other, "{words:?}");
        }
        assert_eq!(said(host, &[]), Site::Unsaid);
        for (host, origin, site) in [
            ("localhost", "http://localhost:80", Site::Own),
            ("LocalHost:80", "http://localhost", Site::Own),
            ("orders.internal", "https://orders.internal:443", Site::Own),
            ("localhost:443", "http://localhost", Site::Other),
            ("", "http://", Site::Other),
        ] {
            assert_eq!(said(host, &[("origin", origin)]), site, "{host} {origin}");
        }
    }
}
