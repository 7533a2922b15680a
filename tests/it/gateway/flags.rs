//! What is said at the start, and to those who ask for nonsense.

use std::io::Write;
use std::process::{Command, Stdio};

use super::upstream::Upstream;
use super::{Gateway, address, get};
use crate::support::programs::example;
use crate::support::{found, scratch};

#[test]
fn flags_that_make_no_sense_end_it_with_2_and_a_sentence() {
    let up = ["--upstream", "http://127.0.0.1:1"];
    let with = |more: &[&'static str]| [&up[..], more].concat();
    for (args, told) in [
        (vec![], "--upstream"),
        (vec!["--upstream", "ftp://127.0.0.1:1"], "--upstream"),
        (vec!["--upstream", "127.0.0.1:1"], "--upstream"),
        (vec!["--upstream", ""], "--upstream"),
        (vec!["--upstream", "http://"], "--upstream"),
        (with(&["--listen", "nowhere"]), "--listen"),
        (with(&["--listen", "127.0.0.1:99999"]), "--listen"),
        (with(&["--admin", "x"]), "--admin"),
        (with(&["--timeout", "5 parsecs"]), "--timeout"),
        (with(&["--timeout", "5"]), "--timeout"),
        (with(&["--timeout=-1s"]), "--timeout"),
        (with(&["--timeout", "0s"]), "--timeout"),
        (with(&["--timeout", "infs"]), "--timeout"),
        (with(&["--grace", ""]), "--grace"),
        (with(&["--acquire-timeout", "ms"]), "--acquire-timeout"),
        (with(&["--max-connections", "0"]), "--max-connections"),
        (with(&["--max-connections", "many"]), "--max-connections"),
        (
            with(&["--max-connections-per-host=-1"]),
            "--max-connections-per-host",
        ),
        (with(&["--shed", "--limit", "0"]), "--limit"),
        (with(&["--shed", "--limit", "all"]), "--limit"),
        (with(&["--shed", "--queue=-1"]), "--queue"),
        (
            with(&["--shed", "--priority-header", "not a name"]),
            "--priority-header",
        ),
        (with(&["--limit", "5"]), "--shed"),
        (with(&["--tls-cert", "x.pem"]), "--tls-key"),
        (with(&["--tls-key", "x.pem"]), "--tls-cert"),
        (with(&["--descriptor-set", "x.fds"]), "--grpc-metrics"),
        (with(&["--no-such-flag"]), "--no-such-flag"),
        (with(&["stray"]), "stray"),
    ] {
        let output = Command::new(example("gateway"))
            .args(&args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(errors.contains(told), "{args:?}: {errors}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn files_and_addresses_that_cannot_be_had_end_it_with_a_sentence() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let dir = scratch("gateway-flags");
    let nonsense = dir.join("nonsense.pem");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let nonsense = nonsense.to_str().unwrap();
    for (args, told) in [
        (vec!["--listen", &*taken], &*taken),
        (vec!["--listen", "127.0.0.1:0", "--admin", &taken], &taken),
        (
            vec![
                "--tls-cert",
                "/nowhere/x.pem",
                "--tls-key",
                "/nowhere/x.pem",
            ],
            "/nowhere/x.pem",
        ),
        (
            vec!["--tls-cert", nonsense, "--tls-key", nonsense],
            nonsense,
        ),
        (vec!["--upstream-ca", nonsense], nonsense),
        (
            vec!["--grpc-metrics", "--descriptor-set", nonsense],
            nonsense,
        ),
    ] {
        let mut command = Command::new(example("gateway"));
        command
            .args(["--upstream", "http://127.0.0.1:1"])
            .args(&args);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            errors.contains(told) && !errors.contains("panicked"),
            "{args:?}: {errors}"
        );
    }
}

#[test]
fn help_tells_of_every_flag() {
    let output = Command::new(example("gateway"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in [
        "listen",
        "upstream",
        "admin",
        "tls-cert",
        "tls-key",
        "tls-self-signed",
        "max-connections",
        "max-connections-per-host",
        "acquire-timeout",
        "coalesce",
        "shed",
        "limit",
        "queue",
        "priority-header",
        "throttle",
        "grpc-metrics",
        "descriptor-set",
        "timeout",
        "grace",
    ] {
        assert!(help.contains(&format!("--{flag}")), "--{flag}: {help}");
    }
}

#[test]
fn the_first_lines_say_where_it_is() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&upstream.url(), &["--admin", "127.0.0.1:0"]);
    assert!(
        gateway.url.starts_with("http://127.0.0.1:"),
        "{}",
        gateway.url
    );
    assert_ne!(gateway.addr.port(), 0);
    let admin = gateway.program.line("admin on ");
    assert!(admin.starts_with("http://127.0.0.1:"), "{admin}");
    assert_ne!(address(&admin), gateway.addr);
    let gateway = Gateway::start(&upstream.url(), &["--tls-self-signed"]);
    assert!(gateway.url.starts_with("https://"), "{}", gateway.url);
}

/// What `path` of the live endpoint says.
pub fn page(gateway: &Gateway, path: &str) -> String {
    let mut conn = super::raw::Conn::open(gateway.admin());
    conn.send(format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n",
        gateway.admin()
    ));
    let (head, body) = conn.response();
    assert_eq!(head.status(), 200, "{path}");
    String::from_utf8(body.data).unwrap()
}

#[test]
fn metrics_of_all_layers_are_in_order() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(
        &upstream.url(),
        &[
            "--admin",
            "127.0.0.1:0",
            "--coalesce",
            "--shed",
            "--throttle",
            "--grpc-metrics",
            "--max-connections",
            "9",
        ],
    );
    for _ in 0..5 {
        assert_eq!(gateway.ask(get("/")).0.status(), 200);
    }
    let metrics = page(&gateway, "/metrics");
    for layer in ["shed", "coalesce", "throttle", "pool"] {
        assert!(
            metrics.contains(&format!("\ntower_flow_{layer}_")),
            "{layer}: {metrics}"
        );
    }
    assert!(serde_json::from_str::<serde_json::Value>(&page(&gateway, "/snapshot.json")).is_ok());
    if !found("promtool") {
        return;
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
