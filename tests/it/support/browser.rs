//! A headless Chromium, for pages that have to be seen to be believed.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use fantoccini::{Client, ClientBuilder, Locator};
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{found, scratch};
use crate::http::send;

/// How long a page may take to become what [`Browser::until`] waits for.
const PATIENCE_MS: u32 = 10_000;

/// One browser with one tab.
#[derive(Debug)]
pub struct Browser {
    pub client: Client,
    /// Where chromedriver takes the commands of this session, its own ones among them.
    session: String,
    driver: Driver,
}

/// Chromedriver and all it starts, which end with it.
#[derive(Debug)]
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Browser {
    /// Starts it; `None` where it is not installed.
    pub async fn start() -> Option<Self> {
        if !found("chromedriver") || !found("chromium") {
            return None;
        }
        let dir = scratch("chromium");
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", &dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let driver = Driver(child);
        let webdriver = format!("http://127.0.0.1:{}", port(stdout).await);
        let args = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // Nothing leaves the machine, whatever a page or the browser itself wants.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            "--window-size=1400,900",
            format!("--user-data-dir={}", dir.join("profile").display()),
        ]);
        let capabilities = json!({
            "browserName": "chrome",
            "timeouts": {"script": PATIENCE_MS + 2000},
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().unwrap().clone())
            .connect(&webdriver)
            .await
            .unwrap();
        let id = client.session_id().await.unwrap().unwrap();
        Some(Self {
            client,
            session: format!("{webdriver}/session/{id}"),
            driver,
        })
    }

    /// A command of chromedriver's own.
    async fn command(&self, path: &str, body: Value) -> Value {
        let req = Request::post(format!("{}/{path}", self.session))
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        let answer = send::<Full<Bytes>>(req).await;
        let mut said: Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(answer.status().is_success(), "{path}: {said}");
        said["value"].take()
    }

    /// A command of the DevTools.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        let body = json!({"cmd": command, "params": params});
        self.command("goog/cdp/execute", body).await
    }

    /// What was logged since the last time: by the page (`browser`) or about its network (`performance`).
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        match self.command("se/log", json!({"type": kind})).await {
            Value::Array(entries) => entries,
            other => panic!("no log: {other}"),
        }
    }

    /// The value of an expression in the page.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.client.execute(&script, Vec::new()).await.unwrap()
    }

    /// The value of an expression in the page, once it has one that counts as true. It is asked after every change of
    /// the page.
    pub async fn until(&self, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0];
             const value = () => ({expression});
             const first = value();
             if (first) return done(first);
             const observer = new MutationObserver(() => {{
                 const now = value();
                 if (now) stop(now);
             }});
             const stop = (found) => {{
                 observer.disconnect();
                 clearTimeout(timer);
                 done(found);
             }};
             const timer = setTimeout(stop, {PATIENCE_MS}, null);
             observer.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});"
        );
        let found = self
            .client
            .execute_async(&script, Vec::new())
            .await
            .unwrap();
        if found.is_null() {
            self.screenshot("failed").await;
            panic!("never, see target/page/failed.png: {expression}");
        }
        found
    }

    /// Presses a key, wherever the focus is.
    pub async fn press(&self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let params =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.devtools("Input.dispatchKeyEvent", params).await;
        }
    }

    /// Types into what `selector` finds, in place of what is there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.client.find(Locator::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Clicks on what `selector` finds.
    pub async fn click(&self, selector: &str) {
        let found = self.client.find(Locator::Css(selector)).await.unwrap();
        found.click().await.unwrap();
    }

    /// Makes the screen so large, and of such a kind.
    pub async fn screen(&self, width: u32, height: u32, phone: bool, dark: bool) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": if phone { 2 } else { 1 }, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", params)
            .await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
    }

    /// Writes what is seen to `target/page/NAME.png`, for somebody to look at.
    pub async fn screenshot(&self, name: &str) {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let dir = target.parent().unwrap().join("page");
        std::fs::create_dir_all(&dir).unwrap();
        // Two frames: what was asked to be drawn is drawn.
        let frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))";
        self.client.execute_async(frames, Vec::new()).await.unwrap();
        let png = self.client.screenshot().await.unwrap();
        std::fs::write(dir.join(format!("{name}.png")), png).unwrap();
    }

    /// Ends it in good order.
    pub async fn close(self) {
        self.client.close().await.unwrap();
        drop(self.driver);
    }
}

/// The port chromedriver says it took.
async fn port(stdout: std::process::ChildStdout) -> u16 {
    let stdout = tokio::process::ChildStdout::from_std(stdout).unwrap();
    let mut lines = BufReader::new(stdout).lines();
    let said = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let port = line
                .split_once("on port ")
                .and_then(|(_, port)| port.trim_end_matches('.').parse().ok())
                // Its first line says which one it was asked for.
                .filter(|port| *port != 0);
            if let Some(port) = port {
                return port;
            }
        }
        panic!("chromedriver ended before it had a port");
    };
    let port = tokio::time::timeout(std::time::Duration::from_secs(10), said)
        .await
        .unwrap();
    // It may go on talking, and should not fail at it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    port
}
