//! Programs nobody here wrote, at either end: nginx, wrk, h2load, curl.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::Gateway;
use super::forward::noise;
use super::layers::established;
use super::upstream::eventually;
use crate::support::programs::Program;
use crate::support::{found, scratch};

/// An nginx that serves a directory, in one process.
struct Nginx {
    program: Program,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Nginx {
    fn start(listen: &str) -> Self {
        let dir = scratch("nginx");
        // Taken and given back: nginx does not tell which port it was given.
        let addr = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let at = dir.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; keepalive_requests 1000000; default_type application/octet-stream;
               client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
               uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
               server {{ listen {addr} {listen}; root {at}/www; location /ok {{ return 200 'fine'; }} }}
             }}"
        );
        std::fs::create_dir_all(dir.join("www")).unwrap();
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let program = Program::start(
            "nginx",
            [
                "-p".into(),
                dir.clone(),
                "-c".into(),
                dir.join("nginx.conf"),
            ],
        );
        eventually("nginx listens", || TcpStream::connect(addr).is_ok());
        Self { program, addr, dir }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

#[derive(Debug)]
struct Wrk {
    requests: u64,
    failures: Vec<String>,
}

/// wrk against the gateway for so many seconds.
fn wrk(gateway: &Gateway, seconds: u32, connections: u32) -> Wrk {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("{}/ok", gateway.url.trim_end_matches('/')))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok());
    let failed = |line: &&str| line.contains("Socket errors") || line.contains("Non-2xx");
    Wrk {
        requests: requests.unwrap_or_else(|| panic!("{text}")),
        failures: text.lines().filter(failed).map(str::to_owned).collect(),
    }
}

/// Runs `work`, and looks meanwhile how many connections there are to the port at most.
fn watching<T: Send>(port: u16, work: impl FnOnce() -> T + Send) -> (T, usize) {
    let done = AtomicBool::new(false);
    let peak = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                peak.fetch_max(established(&[port]), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = work();
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap();
        (result, peak.load(Ordering::SeqCst))
    })
}

#[test]
fn curl_gets_from_nginx_what_lies_there() {
    if !found("nginx") || !crate::support::found("curl") {
        return;
    }
    let nginx = Nginx::start("");
    let file = noise(5_000_000);
    std::fs::write(nginx.dir.join("www/file"), &file).unwrap();
    let plain = Gateway::start(&nginx.url(), &[]);
    let secure = Gateway::start(&nginx.url(), &["--tls-self-signed"]);
    for (gateway, options) in [
        (&plain, &["--http1.0"][..]),
        (&plain, &["--http1.1"]),
        (&plain, &["--http2-prior-knowledge"]),
        (&secure, &["--http1.1", "--tls-max", "1.2"]),
        (&secure, &["--http2", "--tls-max", "1.2"]),
        (&secure, &["--http1.1", "--tlsv1.3"]),
        (&secure, &["--http2", "--tlsv1.3"]),
        (&plain, &["--range", "1000-2000"]),
    ] {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--insecure",
                "--max-time",
                "20",
            ])
            .args(options)
            .arg(format!("{}/file", gateway.url.trim_end_matches('/')))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{options:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let whole = if options[0] == "--range" {
            &file[1000..=2000]
        } else {
            &file[..]
        };
        assert!(
            output.stdout == whole,
            "{options:?}: {} bytes",
            output.stdout.len()
        );
    }
}

#[test]
fn wrk_stays_within_the_cap() {
    if !found("nginx") || !found("wrk") {
        return;
    }
    let nginx = Nginx::start("");
    let gateway = Gateway::start(&nginx.url(), &["--max-connections", "5"]);
    let (wrk, peak) = watching(nginx.addr.port(), || wrk(&gateway, 2, 64));
    assert!(wrk.failures.is_empty() && wrk.requests > 100, "{wrk:?}");
    assert!((1..=5).contains(&peak), "{peak}");
}

#[test]
fn h2load_with_many_streams_stays_within_the_cap() {
    if !found("nginx") || !crate::support::found("h2load") {
        return;
    }
    for (listen, scheme) in [("", "http"), ("http2", "h2c")] {
        let nginx = Nginx::start(listen);
        let gateway = Gateway::start(
            &format!("{scheme}://{}", nginx.addr),
            &["--max-connections", "3"],
        );
        let url = format!("{}/ok", gateway.url.trim_end_matches('/'));
        let (output, peak) = watching(nginx.addr.port(), || {
            Command::new("h2load")
                .args(["-n", "3000", "-c", "4", "-m", "50", &url])
                .output()
                .unwrap()
        });
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("3000 succeeded, 0 failed, 0 errored, 0 timeout"),
            "{scheme}: {text}"
        );
        assert!(text.contains("3000 2xx"), "{scheme}: {text}");
        assert!((1..=3).contains(&peak), "{scheme}: {peak}");
    }
}

#[test]
fn wrk_loses_nothing_when_one_of_two_nginx_is_killed() {
    if !found("nginx") || !found("wrk") {
        return;
    }
    let (staying, dying) = (Nginx::start(""), Nginx::start(""));
    let gateway = Gateway::before(&[&staying.url(), &dying.url()], &[]);
    let wrk = std::thread::scope(|scope| {
        let running = scope.spawn(|| wrk(&gateway, 3, 16));
        eventually("both are used", || established(&[dying.addr.port()]) > 0);
        std::thread::sleep(Duration::from_millis(800));
        dying.program.kill();
        running.join().unwrap()
    });
    assert!(wrk.failures.is_empty() && wrk.requests > 100, "{wrk:?}");
}

#[test]
fn h2load_sees_no_failure_across_sigterm() {
    if !found("nginx") || !crate::support::found("h2load") {
        return;
    }
    let nginx = Nginx::start("");
    // The one that goes and the one that takes over share a port by turns, as in a rolling restart behind a balancer:
    // what the first has accepted it must finish.
    let gateway = Gateway::start(&nginx.url(), &[]);
    let url = format!("{}/ok", gateway.url.trim_end_matches('/'));
    let child = Command::new("h2load")
        .args(["-n", "2000000", "-c", "4", "-m", "20", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("there is traffic", || established(&[nginx.addr.port()]) > 0);
    std::thread::sleep(Duration::from_millis(500));
    gateway.program.terminate();
    let status = gateway.program.wait(Duration::from_secs(10));
    let output = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", gateway.program.stderr());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // What was never accepted counts as failed there: streams above the GOAWAY's. But no answer is anything but 200.
    assert!(text.contains("0 3xx, 0 4xx, 0 5xx"), "{text}");
}
