//! Which pages may send requests here.

use http::{HeaderMap, header};

/// Whether no page of another site is behind a request that named `host`, as far as its browser says.
pub(super) fn is_own(host: &str, headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let mut origins = headers.get_all(header::ORIGIN).iter();
    sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
        && origins.all(|origin| origin.to_str().is_ok_and(|origin| matches(origin, host)))
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

    fn own(host: &str, said: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(*name, HeaderValue::from_static(value));
        }
        is_own(host, &headers)
    }

    #[test]
    fn only_this_endpoints_page_passes_and_what_is_no_browser() {
        let host = "127.0.0.1:9090";
        for said in [
            &[][..],
            &[("origin", "http://127.0.0.1:9090")],
            &[("origin", "https://127.0.0.1:9090")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert!(own(host, said), "{said:?}");
        }
        for said in [
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
        ] {
            assert!(!own(host, said), "{said:?}");
        }
        assert!(own("localhost", &[("origin", "http://localhost:80")]));
        assert!(own("LocalHost:80", &[("origin", "http://localhost")]));
        assert!(own(
            "orders.internal",
            &[("origin", "https://orders.internal:443")]
        ));
        assert!(!own("localhost:443", &[("origin", "http://localhost")]));
        assert!(!own("", &[("origin", "http://")]));
    }
}
