//! What an intermediary takes out, adds and changes.

use super::raw::Head;
use super::upstream::{Upstream, ok, response};
use super::{Gateway, get};

/// What upstream gets of this request, without the blank line at its end.
fn forwarded(request: &str) -> Head {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, _) = gateway.ask(format!("{request}\r\n"));
    assert_eq!(head.status(), 200, "{request}");
    upstream.request().head
}

/// The answer to a request that is not to reach any upstream.
fn refused(request: &str) -> Head {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(format!("{request}\r\n"));
    let head = client.bodiless();
    assert!(upstream.requests().is_empty(), "{request} went through");
    head
}

#[test]
fn hop_by_hop_fields_of_a_request_stay_here() {
    let seen = forwarded(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, X-Secret\r\nConnection: x-other,,\r\nx-secret: 1\r\nx-other: 2\r\n\
         keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip\r\nupgrade: nothing\r\nx-kept: 3\r\n",
    );
    for name in [
        "x-secret",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
    ] {
        assert!(seen.all(name).is_empty(), "{name}: {seen:?}");
    }
    assert_eq!(seen.get("x-kept"), Some("3"));
    let options = seen.list("connection");
    assert!(
        options
            .iter()
            .all(|option| option.eq_ignore_ascii_case("keep-alive")),
        "{seen:?}"
    );
}

#[test]
fn hop_by_hop_fields_of_a_response_stay_here() {
    let upstream = Upstream::answering(|_| {
        let fields = "connection: x-secret\r\nx-secret: 1\r\nkeep-alive: timeout=99\r\nproxy-connection: keep-alive\r\n\
                      upgrade: h2c\r\nx-kept: 3\r\n";
        response("200 OK", fields, b"")
    });
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, _) = gateway.ask(get("/"));
    for name in ["x-secret", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(head.all(name).is_empty(), "{name}: {head:?}");
    }
    assert_eq!(head.get("x-kept"), Some("3"));
    assert!(
        !head
            .list("connection")
            .iter()
            .any(|option| option == "x-secret")
    );
}

#[test]
fn te_is_passed_on_for_trailers_only() {
    let seen =
        forwarded("GET / HTTP/1.1\r\nhost: a\r\nconnection: te\r\nte: gzip;q=0.5, trailers\r\n");
    let te = seen.list("te");
    assert!(te.is_empty() || te == ["trailers"], "{seen:?}");
    // It is hop-by-hop where it goes, too.
    if !te.is_empty() {
        assert!(
            seen.list("connection")
                .iter()
                .any(|option| option.eq_ignore_ascii_case("te")),
            "{seen:?}"
        );
    }
}

#[test]
fn connection_cannot_take_away_what_a_request_needs() {
    // Naming fields that are no options must neither break the request nor hide where it came from.
    let seen = forwarded(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: host, x-forwarded-for, via, x-forwarded-proto\r\n",
    );
    assert!(seen.get("host").is_some());
    assert!(
        seen.list("x-forwarded-for")
            .iter()
            .any(|by| by == "127.0.0.1"),
        "{seen:?}"
    );
    assert!(!seen.list("via").is_empty());
}

#[test]
fn via_is_added_both_ways() {
    let seen = forwarded("GET / HTTP/1.1\r\nhost: a\r\nvia: 1.0 fred\r\n");
    let via = seen.list("via");
    assert_eq!(via.len(), 2, "{seen:?}");
    assert_eq!(via[0], "1.0 fred");
    assert!(
        via[1].starts_with("1.1 "),
        "the version it came by: {via:?}"
    );

    let seen = forwarded("GET / HTTP/1.0\r\nhost: a\r\n");
    assert!(
        seen.list("via")[0].starts_with("1.0 "),
        "the version it came by: {seen:?}"
    );

    let upstream = Upstream::answering(|_| response("200 OK", "via: 1.1 origin\r\n", b""));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let (head, _) = gateway.ask(get("/"));
    let via = head.list("via");
    assert_eq!((via.len(), &*via[0]), (2, "1.1 origin"), "{head:?}");
    assert!(via[1].starts_with("1.1 "), "{via:?}");
}

#[test]
fn where_a_request_came_from_is_told() {
    let seen = forwarded("GET / HTTP/1.1\r\nhost: shop.example:8443\r\n");
    assert_eq!(seen.list("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.get("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.get("x-forwarded-host"), Some("shop.example:8443"));
    let told = seen.get("forwarded").unwrap().to_ascii_lowercase();
    assert!(
        told.contains("for=127.0.0.1") || told.contains("for=\"127.0.0.1\""),
        "{told}"
    );
    assert!(told.contains("proto=http"), "{told}");
    // A port needs quotes there.
    assert!(told.contains("host=\"shop.example:8443\""), "{told}");
}

#[test]
fn what_a_client_claims_of_its_origin_is_not_taken_for_what_was_seen() {
    let seen = forwarded(
        "GET / HTTP/1.1\r\nhost: shop.example\r\nx-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: bank.example\r\nforwarded: for=10.0.0.1;host=bank.example\r\n",
    );
    let path = seen.list("x-forwarded-for");
    assert_eq!(
        path.last().unwrap(),
        "127.0.0.1",
        "the last is what was seen: {path:?}"
    );
    assert_eq!(path, ["10.0.0.1", "10.0.0.2", "127.0.0.1"], "appended");
    assert_eq!(seen.get("x-forwarded-proto"), Some("http"), "set");
    assert_eq!(seen.get("x-forwarded-host"), Some("shop.example"), "set");
    let hops = seen.list("forwarded");
    assert!(hops.last().unwrap().contains("127.0.0.1"), "{hops:?}");
    assert!(!hops.last().unwrap().contains("bank.example"), "{hops:?}");
}

#[test]
fn host_is_one_and_is_told() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    gateway.ask("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    let seen = upstream.request().head;
    assert_eq!(
        seen.get("host"),
        Some(&*upstream.addr.to_string()),
        "that of the upstream"
    );
    assert_eq!(seen.get("x-forwarded-host"), Some("shop.example"));
}

#[test]
fn a_whole_uri_wins_over_host() {
    let seen = forwarded("GET http://shop.example/a?b HTTP/1.1\r\nhost: other.example\r\n");
    assert_eq!(seen.target(), "/a?b");
    assert_eq!(
        seen.get("x-forwarded-host"),
        Some("shop.example"),
        "RFC 9112 3.2.2"
    );
    assert_ne!(seen.get("host"), Some("other.example"));
    let seen = forwarded("GET http://shop.example HTTP/1.1\r\nhost: shop.example\r\n");
    assert_eq!(seen.target(), "/");
}

#[test]
fn options_of_the_whole_server_stay_so() {
    let seen = forwarded("OPTIONS * HTTP/1.1\r\nhost: shop.example\r\n");
    assert_eq!(seen.target(), "*");
    let head = refused("GET * HTTP/1.1\r\nhost: shop.example\r\n");
    assert_eq!(head.status(), 400);
}

#[test]
fn max_forwards_is_counted_down() {
    let seen = forwarded("OPTIONS /x HTTP/1.1\r\nhost: a\r\nmax-forwards: 5\r\n");
    assert_eq!(seen.get("max-forwards"), Some("4"), "RFC 9110 7.6.2");
    let head = refused("OPTIONS /x HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n");
    assert!(head.status() < 500, "answered here: {head:?}");
    // It is about TRACE and OPTIONS only.
    forwarded("GET /x HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n");
}

#[test]
fn hosts_that_are_missing_many_or_nonsense_are_refused() {
    for request in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n",
        "GET / HTTP/1.1\r\nhost: a/../b\r\n",
        "GET / HTTP/1.1\r\nhost: user@a\r\n",
    ] {
        assert_eq!(refused(request).status(), 400, "{request}");
    }
    // RFC 9112 3.2 wants one, which may be empty.
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nhost:\r\n\r\n");
    assert!(matches!(client.bodiless().status(), 200 | 400));
}

#[test]
fn tunnels_are_not_dug() {
    let head = refused("CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n");
    assert!((400..=501).contains(&head.status()), "{head:?}");
}

#[test]
fn versions_that_are_not_spoken_are_refused() {
    for (line, statuses) in [
        ("GET / HTTP/2.0", &[400, 505][..]),
        ("GET / HTTP/3.0", &[400, 505]),
        ("GET / HTTP/1.10", &[400, 505]),
        ("GET /", &[400]),
        ("GET  / HTTP/1.1", &[400]),
        ("G@T / HTTP/1.1\x07", &[400]),
    ] {
        let status = refused(&format!("{line}\r\nhost: a\r\n")).status();
        assert!(statuses.contains(&status), "{line}: {status}");
    }
}

#[test]
fn methods_nobody_knows_pass() {
    assert_eq!(
        forwarded("BREW /pot HTTP/1.1\r\nhost: a\r\n").method(),
        "BREW"
    );
}

#[test]
fn a_fragment_is_not_passed_on() {
    let upstream = Upstream::answering(|_| ok(b""));
    let gateway = Gateway::start(&upstream.url(), &[]);
    let mut client = gateway.client();
    client.send(get("/a#b"));
    let head = client.bodiless();
    let requests = upstream.requests();
    assert!(
        head.status() == 400 || requests[0].head.target() == "/a",
        "{requests:?}"
    );
}
