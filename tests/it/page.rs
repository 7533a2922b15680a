//! The live page, looked at with a real browser.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tower::util::BoxCloneService;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_flow::profile::{CpuUsage, ProfileLayer, SchedulerUsage};
use tower_flow::shed::{Queue, ShedHandle, ShedLayer};
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow};

use crate::support::browser::Browser;

/// A route whose name would like to be more than a name.
const HOSTILE: &str =
    "<script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">";
const TOKEN: &str = "open-sesame-says-the-test";
/// Who calls at a time, each all the time; one of them takes its time with a call.
const CALLERS: usize = 16;
const CALL: Duration = Duration::from_millis(20);

/// A call, by its route.
struct Call(&'static str);

/// Where the page of a program is.
async fn serve(flow: &Flow) -> SocketAddr {
    let server = flow
        .admin()
        .token(TOKEN)
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let addr = server.local_addr();
    tokio::spawn(server.run());
    addr
}

/// A little traffic of its own, which fails while it is told to.
fn work(flow: &Flow) -> Arc<AtomicBool> {
    let fails = Arc::new(AtomicBool::new(false));
    let told = fails.clone();
    let mut service = ServiceBuilder::new()
        .layer(TimingLayer::new("worker").attach(flow))
        .service(service_fn(move |_: Call| {
            let fails = told.load(Ordering::Relaxed);
            async move {
                tokio::time::sleep(CALL).await;
                if fails {
                    Err(BoxError::from("told to"))
                } else {
                    Ok(())
                }
            }
        }));
    tokio::spawn(async move {
        loop {
            let ready = service.ready().await.unwrap();
            let _ = ready.call(Call("/work")).await;
        }
    });
    fails
}

/// A service that gives way to load, and the load.
fn program(flow: &Flow) -> ShedHandle {
    let timing = TimingLayer::new("api")
        .route_by(|call: &Call| call.0)
        .attach(flow);
    let shed = ShedLayer::fixed(64)
        .name("api")
        .queue(Queue::none())
        .attach(flow);
    let profile = ProfileLayer::new("handlers")
        .route_by(|call: &Call| call.0)
        .attach(flow);
    let _cpu = CpuUsage::new().attach(flow);
    let _scheduler = SchedulerUsage::new("main").attach(flow);
    let handle = shed.handle();
    let service = ServiceBuilder::new()
        .layer(timing)
        .layer(shed)
        .layer(profile)
        .service(service_fn(async |_: Call| {
            tokio::time::sleep(CALL).await;
            Ok::<_, BoxError>(())
        }));
    let service = BoxCloneService::new(service);
    for caller in 0..CALLERS {
        let mut service = service.clone();
        let routes = ["/orders", "/orders/{id}", HOSTILE, "/customers"];
        let route = routes[caller % routes.len()];
        tokio::spawn(async move {
            loop {
                let ready = service.ready().await.unwrap();
                if ready.call(Call(route)).await.is_err() {
                    tokio::time::sleep(CALL).await;
                }
            }
        });
    }
    handle
}

/// The share of refusals in what comes within half a second.
async fn refused(shed: &ShedHandle) -> f64 {
    let counts = || {
        let now = shed.snapshot();
        let refused: u64 = now.refused.iter().map(|(_, _, count)| count).sum();
        (refused as f64, now.admitted.iter().sum::<u64>() as f64)
    };
    let before = counts();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = counts();
    let refused = after.0 - before.0;
    refused / (refused + after.1 - before.1)
}

/// The text of what `selector` finds.
fn text(selector: &str) -> String {
    format!("(document.querySelector('{selector}')?.textContent ?? '')")
}

/// The figure of a tile, as a number.
fn tile(key: &str) -> String {
    let figure = text(&format!("[data-key={key}] .figure b"));
    format!("Number({figure}.replace(',', ''))")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_and_turns_what_runs() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let flow = Flow::new("orders");
    let here = format!("http://{}/", serve(&flow).await);
    browser.screen(1400, 900, false, true).await;
    browser.client.goto(&here).await.unwrap();

    it_waits_for_a_layer(&browser).await;
    let shed = program(&flow);
    let fails = work(&flow);
    numbers_move(&browser).await;
    names_stay_names(&browser).await;
    trouble_comes_first(&browser, &fails).await;
    knobs_turn(&browser, &shed).await;
    keys_reach_all(&browser).await;
    every_screen_has_room(&browser).await;
    a_link_unlocks(&browser, &here).await;
    nothing_else_was_asked(&browser, &here).await;
    browser.close().await;
}

async fn it_waits_for_a_layer(browser: &Browser) {
    browser
        .until("document.body.dataset.connection === 'live'")
        .await;
    let shown = browser
        .eval("[...document.querySelectorAll('main > *')].filter((part) => part.offsetHeight).map((part) => part.id)")
        .await;
    assert_eq!(shown, json!(["empty"]));
    browser.screenshot("empty").await;
}

async fn numbers_move(browser: &Browser) {
    let requests = tile("requests");
    // 16 callers with 50 calls a second each.
    let first = browser
        .until(&format!("{requests} > 100 && {requests}"))
        .await;
    browser
        .until(&format!("{requests} > 100 && {requests} !== {first}"))
        .await;
    let p50 = browser.eval(&text("[data-key=p99]")).await;
    assert!(p50.as_str().unwrap().contains("ms"), "{p50}");
    assert_eq!(browser.eval("document.title").await, "orders · tower-flow");
    // What is in flight is less than the limit, and nothing is refused.
    browser
        .until(&format!(
            "{} === 'of 64'",
            text("[data-key=in_flight] .unit")
        ))
        .await;
    assert_eq!(browser.eval(&tile("shed")).await, json!(0));
}

async fn names_stay_names(browser: &Browser) {
    let shown = format!(
        "[...document.querySelectorAll('td.text')].some((cell) => cell.textContent === {})",
        json!(HOSTILE)
    );
    browser.until(&shown).await;
    assert_eq!(
        browser
            .eval("document.querySelectorAll('img, script:not([src])').length")
            .await,
        json!(0)
    );
    assert_eq!(browser.eval("document.title").await, "orders · tower-flow");
}

/// A tile is about the layer with the most traffic, but one about trouble is about the layer that has it.
async fn trouble_comes_first(browser: &Browser, fails: &AtomicBool) {
    let layer =
        |key| format!("document.querySelector('[data-key={key}] select').selectedOptions[0].text");
    let level = "document.querySelector('[data-key=errors]').dataset.level";
    fails.store(true, Ordering::Relaxed);
    browser.until(&format!("{level} === 'bad'")).await;
    let shown = format!("[{}, {}]", layer("errors"), layer("requests"));
    assert_eq!(
        browser.eval(&shown).await,
        json!(["worker (worst of 2)", "api (busiest of 2)"])
    );
    browser.screenshot("trouble").await;
    fails.store(false, Ordering::Relaxed);
    browser.until(&format!("{level} === undefined")).await;
}

async fn knobs_turn(browser: &Browser, shed: &ShedHandle) {
    let knob = "[data-knob=\"api/limit\"]";
    let input = format!("{knob} input");
    assert_eq!(
        browser
            .eval(&format!("document.querySelector('{input}').disabled"))
            .await,
        json!(true)
    );
    browser.click("#lock").await;
    browser.fill("#token", &format!("{TOKEN}\n")).await;
    browser
        .until(&format!("!document.querySelector('{input}').disabled"))
        .await;
    assert_eq!(
        browser.eval("document.getElementById('unlock').open").await,
        json!(false)
    );

    // What the layer refuses, the page says, and nothing changes.
    browser.fill(&input, "0\n").await;
    browser
        .until(&format!(
            "{}.includes('1 or more')",
            text(&format!("{knob} .fault"))
        ))
        .await;
    assert_eq!(shed.snapshot().limit_manual, None);
    assert_eq!(refused(shed).await, 0.0);

    browser.fill(&input, "4\n").await;
    browser.until(&text(&format!("{knob} .done"))).await;
    assert_eq!(shed.snapshot().limit_manual, Some(4));
    // 4 of 16 find room.
    let share = refused(shed).await;
    assert!((0.5..0.9).contains(&share), "{share}");
    browser.screenshot("knobs").await;
    // Tiles that are out of sight rest.
    browser.eval("scrollTo(0, 0)").await;
    browser.until(&format!("{} > 50", tile("shed"))).await;
    browser
        .until(&format!(
            "{} === 'of 4'",
            text("[data-key=in_flight] .unit")
        ))
        .await;
    browser
        .until("document.querySelector('[data-key=shed]').dataset.level === 'bad'")
        .await;
}

async fn keys_reach_all(browser: &Browser) {
    // From the top on: the first key leads to the link that skips the head.
    browser.eval("(document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute('tabindex'))").await;
    let mut seen = Vec::new();
    for _ in 0..150 {
        browser.press("Tab", 9).await;
        let at = browser
            .eval("document.activeElement.className || document.activeElement.tagName")
            .await;
        seen.push(at);
        if browser
            .eval("document.activeElement.closest('[data-knob]') !== null")
            .await
            == json!(true)
        {
            break;
        }
    }
    assert_eq!(seen[0], "skip", "{seen:?}");
    assert!(seen.len() < 150, "{seen:?}");
    // A chart tells its values to the arrow keys.
    browser
        .eval("document.querySelector('[data-chart=requests] .plot').focus()")
        .await;
    browser.press("ArrowLeft", 37).await;
    let said = browser
        .until("document.activeElement.getAttribute('aria-valuetext')")
        .await;
    assert!(said.as_str().unwrap().contains("requests"), "{said}");
    browser.screenshot("cursor").await;
    browser.press("Escape", 27).await;
    browser.eval("document.activeElement.blur()").await;
}

async fn every_screen_has_room(browser: &Browser) {
    for (name, width, height, phone, dark) in [
        ("desktop-dark", 1400, 900, false, true),
        ("desktop-light", 1400, 900, false, false),
        ("phone-dark", 390, 844, true, true),
        ("phone-light", 320, 640, true, false),
    ] {
        browser.screen(width, height, phone, dark).await;
        for section in ["overview", "series", "stack", "hot", "tables"] {
            browser
                .eval(&format!(
                    "document.getElementById('{section}').scrollIntoView()"
                ))
                .await;
            browser.screenshot(&format!("{name}-{section}")).await;
            // A page that is too wide makes the window of a phone wider.
            let root = "document.documentElement";
            let widths = format!("[{root}.scrollWidth - {root}.clientWidth, innerWidth]");
            assert_eq!(browser.eval(&widths).await, json!([0, width]), "{section}");
        }
    }
}

async fn a_link_unlocks(browser: &Browser, here: &str) {
    let locked = "document.querySelector('[data-knob=\"api/limit\"] input')?.disabled";
    browser
        .eval("document.getElementById('lock').click()")
        .await;
    browser.until(&format!("{locked} === true")).await;
    // Another page between, so that this one is loaded with it.
    browser.client.goto("about:blank").await.unwrap();
    let link = format!("{here}#token={TOKEN}");
    browser.client.goto(&link).await.unwrap();
    browser.until(&format!("{locked} === false")).await;
    assert_eq!(browser.eval("location.href").await, here);
}

async fn nothing_else_was_asked(browser: &Browser, here: &str) {
    let loaded = browser
        .eval("performance.getEntriesByType('resource').map((entry) => entry.name)")
        .await;
    let mut asked: Vec<_> = loaded
        .as_array()
        .unwrap()
        .iter()
        .map(|url| url.as_str().unwrap().to_owned())
        .collect();
    for entry in browser.log("performance").await {
        let entry: serde_json::Value =
            serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let message = &entry["message"];
        // The tab's first page is the browser's own.
        let own = message["params"]["documentURL"].as_str();
        let own = own.is_some_and(|url| url.starts_with("chrome://"));
        if message["method"] == "Network.requestWillBeSent" && !own {
            asked.push(
                message["params"]["request"]["url"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    for wanted in ["page.css", "page.js", "events", "session"] {
        assert!(
            asked.contains(&format!("{here}{wanted}")),
            "{wanted}: {asked:?}"
        );
    }
    for url in asked {
        assert!(url.starts_with(here) || url.starts_with("data:"), "{url}");
    }
    // The one refusal that was asked for is logged; and that is all.
    let logged = browser.log("browser").await;
    let logged: Vec<_> = logged
        .iter()
        .map(|entry| entry["message"].as_str().unwrap())
        .filter(|message| !message.contains("/knobs/"))
        .collect();
    assert!(logged.is_empty(), "{logged:?}");
}
