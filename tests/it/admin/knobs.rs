//! Who may turn what.

use tower_flow::Flow;
use tower_flow::shed::{ShedHandle, ShedLayer};
use tower_flow::timing::TimingLayer;

use super::{Served, TOKEN, serve};

async fn shed() -> (Served, ShedHandle) {
    let flow = Flow::new("orders");
    let _timing = TimingLayer::new("stock").attach(&flow);
    let layer = ShedLayer::fixed(8).name("api").attach(&flow);
    (serve(flow.admin().token(TOKEN)).await, layer.handle())
}

#[tokio::test]
async fn a_turned_knob_changes_the_layer() {
    let (served, handle) = shed().await;
    for (body, limit) in [("64", Some(64)), ("null", None), (" 3\n", Some(3))] {
        let done = served.put("/knobs/1/limit", body).await;
        assert_eq!((done.status, &*done.body), (204, ""), "{body}");
        assert_eq!(handle.snapshot().limit_manual, limit);
    }
    assert_eq!(served.put("/knobs/1/dry_run", "true").await.status, 204);
    assert_eq!(served.put("/knobs/1/%64ry_run", "true").await.status, 204);
    assert!(handle.snapshot().dry_run);
    let snapshot = served.get("/snapshot.json").await.json();
    assert_eq!(snapshot["layers"][1]["knobs"][0]["value"], 3);
}

#[tokio::test]
async fn refused_turns_change_nothing_and_say_why() {
    let (served, handle) = shed().await;
    for (path, body, status) in [
        ("/knobs/1/limit", "0", 422),
        ("/knobs/1/limit", "-1", 422),
        ("/knobs/1/limit", "1.5", 422),
        ("/knobs/1/limit", "1e999", 400),
        ("/knobs/1/limit", "\"<script>\"", 422),
        ("/knobs/1/limit", "true", 422),
        ("/knobs/1/dry_run", "1", 422),
        ("/knobs/1/limit", "", 400),
        ("/knobs/1/limit", "[3]", 400),
        ("/knobs/1/limit", "{\"limit\":3}", 400),
        ("/knobs/1/limit", "3 4", 400),
        ("/knobs/1/limit", "limit=3", 400),
        ("/knobs/0/limit", "3", 404),
        ("/knobs/2/limit", "3", 404),
        ("/knobs/+1/limit", "3", 404),
        ("/knobs/-1/limit", "3", 404),
        ("/knobs/99999999999999999999/limit", "3", 404),
        ("/knobs//limit", "3", 404),
        ("/knobs/1/", "3", 404),
        ("/knobs/1", "3", 404),
        ("/knobs/", "3", 404),
        ("/knobs/1/Limit", "3", 404),
        ("/knobs/1/limit/", "3", 404),
        ("/knobs/1/%ff", "3", 404),
    ] {
        let refused = served.put(path, body).await;
        assert_eq!(refused.status, status, "{path} {body}");
        assert!(
            refused.body.lines().count() == 1 && refused.body.len() < 310,
            "{}",
            refused.body
        );
        assert_eq!(refused.headers["content-type"], "text/plain; charset=utf-8");
        assert!(!refused.body.contains("passwd"));
    }
    let long = format!("\"{}\"", "x".repeat(4000));
    assert!(served.put("/knobs/1/limit", &long).await.body.len() < 310);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.limit_manual, snapshot.dry_run), (None, false));
}

#[tokio::test]
async fn only_json_is_taken() {
    let (served, handle) = shed().await;
    let bearer = format!("Bearer {TOKEN}");
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "",
    ] {
        let headers = [("authorization", &*bearer), ("content-type", kind)];
        let refused = served.ask("PUT /knobs/1/limit", &headers, "3").await;
        assert_eq!(refused.status, 415, "{kind}");
    }
    let none = served
        .ask("PUT /knobs/1/limit", &[("authorization", &bearer)], "3")
        .await;
    assert_eq!(none.status, 415);
    assert_eq!(handle.snapshot().limit_manual, None);
    let headers = [
        ("authorization", &*bearer),
        ("content-type", "Application/JSON; charset=utf-8"),
    ];
    assert_eq!(
        served.ask("PUT /knobs/1/limit", &headers, "3").await.status,
        204
    );
}

#[tokio::test]
async fn without_the_token_nobody_turns_anything() {
    let (served, handle) = shed().await;
    let cookie = |token: &str| format!("a=b; tower_flow_{}={token}", served.addr.port());
    let wrong = "0123456789abcdef0124";
    for header in [
        ("x-none", String::new()),
        ("authorization", format!("Bearer {wrong}")),
        ("authorization", format!("Bearer {TOKEN}0")),
        ("authorization", format!("Bearer {}", &TOKEN[..19])),
        ("authorization", format!("Basic {TOKEN}")),
        ("authorization", TOKEN.to_owned()),
        ("cookie", cookie(wrong)),
        ("cookie", cookie("")),
        ("cookie", format!("tower_flow_1={TOKEN}")),
    ] {
        let headers = [("content-type", "application/json"), (header.0, &header.1)];
        let refused = served.ask("PUT /knobs/1/limit", &headers, "3").await;
        assert_eq!(refused.status, 401, "{header:?}");
        assert!(refused.headers["www-authenticate"].starts_with("Bearer"));
        assert!(!refused.body.contains("0123"));
    }
    assert_eq!(handle.snapshot().limit_manual, None);
    let headers = [
        ("content-type", "application/json"),
        ("cookie", &cookie(TOKEN)),
        ("sec-fetch-site", "same-origin"),
    ];
    assert_eq!(
        served.ask("PUT /knobs/1/limit", &headers, "3").await.status,
        204
    );
    assert_eq!(handle.snapshot().limit_manual, Some(3));

    // No token, no knobs; and whatever is offered is none.
    let flow = Flow::new("orders");
    let layer = ShedLayer::fixed(8).attach(&flow);
    let open = serve(flow.admin()).await;
    assert_eq!(open.put("/knobs/0/limit", "3").await.status, 403);
    assert_eq!(open.ask("POST /session", &[], "").await.status, 403);
    assert_eq!(layer.handle().snapshot().limit_manual, None);
}

#[tokio::test]
async fn a_session_is_a_cookie_for_the_token() {
    let (served, handle) = shed().await;
    for wrong in ["", "0123456789abcdef012", "0123456789abcdef01234", "null"] {
        let refused = served.ask("POST /session", &[], wrong).await;
        assert_eq!(refused.status, 401, "{wrong}");
        assert!(!refused.headers.contains_key("set-cookie"));
    }
    let opened = served
        .ask(
            "POST /session",
            &[("content-type", "text/plain")],
            &format!("{TOKEN}\n"),
        )
        .await;
    assert_eq!(opened.status, 204);
    let cookie = &opened.headers["set-cookie"];
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    let referer = format!("http://{}/", served.addr);
    let headers = [
        ("content-type", "application/json"),
        ("cookie", cookie),
        ("referer", &referer),
    ];
    assert_eq!(
        served.ask("PUT /knobs/1/limit", &headers, "3").await.status,
        204
    );
    assert_eq!(handle.snapshot().limit_manual, Some(3));
    let closed = served.ask("DELETE /session", &[], "").await;
    assert_eq!(closed.status, 204);
    assert!(closed.headers["set-cookie"].contains("Max-Age=0"));
}

#[test]
#[should_panic(expected = "16 to 512 characters, not 5")]
fn a_short_token_is_refused() {
    let _ = Flow::new("orders").admin().token("short");
}

#[test]
fn no_token_is_printed() {
    let admin = Flow::new("orders").admin().token(TOKEN).private();
    let shown = format!("{admin:?} {:?}", admin.service());
    assert!(
        shown.contains("Token(..)") && !shown.contains(TOKEN),
        "{shown}"
    );
}
