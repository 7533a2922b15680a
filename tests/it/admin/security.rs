//! Who pretends to be somebody else, and what browsers are told.

use tower_flow::Flow;
use tower_flow::shed::ShedLayer;

use super::{TOKEN, serve};

#[tokio::test]
async fn a_name_that_is_not_ours_gets_nothing() {
    let flow = Flow::new("orders");
    let served = serve(flow.admin().host("orders.internal").token(TOKEN)).await;
    let port = served.addr.port();
    for host in [
        "localhost",
        "LOCALHOST:1",
        "a.localhost",
        "127.0.0.1",
        "10.0.0.7:80",
        "[::1]:9",
        "orders.internal",
        "Orders.Internal:80",
    ] {
        assert_eq!(
            served
                .ask("GET /snapshot.json", &[("host", host)], "")
                .await
                .status,
            200,
            "{host}"
        );
    }
    let evil = format!("evil.example:{port}");
    for path in [
        "GET /",
        "GET /page.js",
        "GET /events",
        "GET /metrics",
        "GET /snapshot.json",
        "GET /debug/hot",
        "GET /debug/profile",
        "GET /hdr/x.log",
        "PUT /knobs/0/limit",
        "POST /session",
        "GET /healthz",
        "GET /nowhere",
        "DELETE /",
    ] {
        let bearer = format!("Bearer {TOKEN}");
        let refused = served
            .ask(path, &[("host", &evil), ("authorization", &bearer)], "")
            .await;
        assert_eq!(refused.status, 421, "{path}");
        assert!(
            refused.body.contains("Admin::host") && !refused.body.contains("evil"),
            "{}",
            refused.body
        );
    }
    for host in [
        "",
        "a b",
        "localhost/x",
        "user@localhost",
        "localhost:1:1",
        "localhost:x",
        "<script>",
        "[::1",
        &"a".repeat(300),
    ] {
        let refused = served.ask("GET /metrics", &[("host", host)], "").await;
        assert_eq!(refused.status, 400, "{host}");
        assert!(refused.body.len() < 80 && !refused.body.contains('<'));
    }
    for (hosts, status) in [
        (&[][..], 400),
        (&["localhost", "localhost"], 400),
        (&["localhost", "evil.example"], 400),
    ] {
        let lines: String = hosts
            .iter()
            .map(|host| format!("host: {host}\r\n"))
            .collect();
        let answer = crate::http::raw(
            served.addr,
            format!("GET /metrics HTTP/1.1\r\n{lines}\r\n").as_bytes(),
        )
        .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{hosts:?}: {answer}"
        );
    }
    // The target's own name counts as well.
    let target = "GET http://evil.example/metrics";
    assert_eq!(
        served
            .ask(target, &[("host", "localhost")], "")
            .await
            .status,
        421
    );
    assert_eq!(
        served
            .ask("GET http://localhost/metrics", &[("host", "localhost")], "")
            .await
            .status,
        200
    );
    let old = crate::http::raw(served.addr, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(
        old.starts_with("HTTP/1.0 200") || old.starts_with("HTTP/1.1 200"),
        "{old}"
    );
}

#[tokio::test]
async fn pages_of_other_sites_do_nothing_here() {
    let flow = Flow::new("orders");
    let layer = ShedLayer::fixed(8).attach(&flow);
    let served = serve(flow.admin().token(TOKEN)).await;
    let own = format!("http://{}", served.addr);
    let cookie = format!("tower_flow={TOKEN}");
    let json = ("content-type", "application/json");
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1"),
        ("origin", "http://127.0.0.1:1"),
        ("origin", "file://"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "<script>"),
        ("referer", "http://evil.example/"),
    ] {
        // A browser sends the cookie along, if it has to.
        for line in [
            "PUT /knobs/0/limit",
            "POST /session",
            "DELETE /session",
            "GET /events",
            "GET /debug/profile",
        ] {
            let headers = [(name, value), ("cookie", &cookie), json];
            let refused = served.ask(line, &headers, "3").await;
            assert_eq!(refused.status, 403, "{line} {value}");
            assert!(!refused.headers.contains_key("set-cookie"));
        }
        let read = served.ask("GET /healthz", &[(name, value)], "").await;
        assert_eq!(read.headers["cross-origin-resource-policy"], "same-origin");
        assert!(!read.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(layer.handle().snapshot().limit_manual, None);
    let headers = [
        ("origin", &*own),
        ("sec-fetch-site", "same-origin"),
        ("cookie", &cookie),
        json,
    ];
    assert_eq!(
        served.ask("PUT /knobs/0/limit", &headers, "3").await.status,
        204
    );
    assert_eq!(layer.handle().snapshot().limit_manual, Some(3));
}

#[tokio::test]
async fn what_a_browser_keeps_silent_about_is_not_its_own() {
    // As for requests that only read from a host without TLS.
    let flow = Flow::new("orders");
    let served = serve(flow.admin().token(TOKEN).private()).await;
    let cookie = format!("tower_flow={TOKEN}");
    let own = format!("http://{}/", served.addr);
    let profile = "GET /debug/profile?seconds=0";
    let known = ("cookie", &*cookie);
    let headers = [known, ("referer", &own)];
    assert_eq!(served.ask(profile, &headers, "").await.status, 400);
    let headers = [known, ("referer", "http://evil.example/")];
    assert_eq!(served.ask(profile, &headers, "").await.status, 401);
    for line in [profile, "GET /events", "PUT /knobs/0/limit"] {
        assert_eq!(served.ask(line, &[known], "").await.status, 401, "{line}");
    }
    // What does nothing may be opened from anywhere; only who opens it reads it.
    let read = served.ask("GET /snapshot.json", &[known], "").await;
    assert_eq!(read.status, 200);

    let open = serve(flow.admin()).await;
    assert_eq!(open.get("/debug/profile?seconds=0").await.status, 400);
    let any = ("cookie", "theme=dark");
    let own = format!("http://{}/", open.addr);
    assert_eq!(open.ask(profile, &[any], "").await.status, 403);
    let headers = [any, ("referer", &own)];
    assert_eq!(open.ask(profile, &headers, "").await.status, 400);
    let headers = [("referer", "http://evil.example/")];
    assert_eq!(open.ask(profile, &headers, "").await.status, 403);
}

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let flow = Flow::new("orders");
    let served = serve(flow.admin().token(TOKEN)).await;
    for line in [
        "GET /",
        "GET /page.css",
        "GET /page.js",
        "GET /metrics",
        "GET /snapshot.json",
        "GET /debug/hot",
        "GET /debug/profile",
        "GET /hdr/x.log",
        "GET /healthz",
        "GET /nowhere",
        "PUT /knobs/0/limit",
        "POST /session",
        "DELETE /session",
        "POST /metrics",
        "HEAD /metrics",
    ] {
        let answer = served.ask(line, &[], "").await;
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "same-origin"),
            ("x-frame-options", "DENY"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.headers[name], value, "{line}");
        }
        let policy = &answer.headers["content-security-policy"];
        assert!(
            policy.contains("default-src 'none'") && !policy.contains("unsafe"),
            "{line}: {policy}"
        );
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{line}: {policy}"
        );
    }
    let forged = served.ask("GET /", &[("host", "evil.example")], "").await;
    assert_eq!(forged.headers["x-content-type-options"], "nosniff");
    // The page has nothing that its own policy would stop.
    let page = served.get("/").await.body.to_lowercase();
    for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    for script in page.split("<script").skip(1) {
        assert!(
            script.split('>').next().unwrap().contains(" src="),
            "{script}"
        );
    }
}

#[tokio::test]
async fn a_private_endpoint_shows_nothing_without_the_token() {
    let flow = Flow::new("orders");
    let served = serve(flow.admin().private().token(TOKEN)).await;
    let bearer = format!("Bearer {TOKEN}");
    for path in [
        "/events",
        "/metrics",
        "/snapshot.json",
        "/debug/hot",
        "/debug/profile",
        "/hdr/x.log",
    ] {
        let line = format!("GET {path}");
        let refused = served.get(path).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(!refused.body.contains("orders"));
        if path != "/events" {
            let shown = served.ask(&line, &[("authorization", &bearer)], "").await;
            assert_ne!(shown.status, 401, "{path}");
        }
    }
    assert_eq!(served.ask("PUT /knobs/0/x", &[], "1").await.status, 401);
    for path in ["/healthz", "/", "/page.css", "/page.js"] {
        let shown = served.get(path).await;
        assert!(
            shown.status == 200 && !shown.body.contains("orders"),
            "{path}"
        );
    }
    // Private without a token is for nobody.
    let closed = serve(flow.admin().private()).await;
    let refused = closed
        .ask("GET /metrics", &[("authorization", &bearer)], "")
        .await;
    assert_eq!(refused.status, 401);
}

#[tokio::test]
async fn profiles_are_for_who_has_the_token() {
    let flow = Flow::new("orders");
    let served = serve(flow.admin().token(TOKEN)).await;
    assert_eq!(served.get("/debug/profile?seconds=1").await.status, 401);
    assert_eq!(served.get("/debug/profile?seconds=0").await.status, 401);
    let bearer = format!("Bearer {TOKEN}");
    let asked = served
        .ask(
            "GET /debug/profile?seconds=0",
            &[("authorization", &bearer)],
            "",
        )
        .await;
    assert_eq!(asked.status, 400);
    // This machine's own, but anybody's could reach it.
    let open = flow
        .admin()
        .allow_remote()
        .bind("0.0.0.0:0".parse().unwrap())
        .await
        .unwrap();
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], open.local_addr().port()));
    let running = tokio::spawn(open.run());
    let open = super::Served { addr, running };
    assert_eq!(open.get("/debug/profile?seconds=1").await.status, 403);
}
