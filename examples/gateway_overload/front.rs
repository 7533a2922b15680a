//! What stands between the clients and the backend: the gateway, or nginx.

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tower_flow::BoxError;

/// Who decides what is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// `gateway --shed`, told nothing.
    Shed,
    /// `gateway --shed --limit 2C`.
    Limit,
    /// `limit_conn` of nginx, told 2C.
    Nginx,
    /// `gateway`, which refuses nothing.
    Open,
}

/// A front that runs, until dropped.
pub(crate) struct Running {
    child: Child,
    addr: SocketAddr,
    /// Nobody reads on, and a program that says more must not fail for it.
    _stdout: Option<BufReader<ChildStdout>>,
    dir: Option<PathBuf>,
}

// ===== impl Front =====

impl Front {
    pub(crate) const ALL: [Self; 4] = [Self::Shed, Self::Limit, Self::Nginx, Self::Open];

    /// What `--rows` calls it.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Shed => "shed",
            Self::Limit => "limit",
            Self::Nginx => "nginx",
            Self::Open => "open",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shed => "gateway --shed",
            Self::Limit => "gateway --shed --limit 2C",
            Self::Nginx => "nginx limit_conn 2C",
            Self::Open => "gateway, no shedding",
        }
    }

    /// Whether it can run on this machine.
    pub(crate) fn found(self) -> bool {
        let probe = || {
            Command::new("nginx")
                .arg("-v")
                .stderr(Stdio::null())
                .status()
        };
        self != Self::Nginx || probe().is_ok()
    }

    /// Starts it in front of a backend with so many slots.
    pub(crate) fn start(
        self,
        program: &Path,
        slots: usize,
        backend: SocketAddr,
        critical: bool,
    ) -> Result<Running, BoxError> {
        let limit = (2 * slots).to_string();
        let mut flags = match self {
            Self::Nginx => return nginx(&limit, backend),
            Self::Open => vec![],
            Self::Shed => vec!["--shed"],
            Self::Limit => vec!["--shed", "--limit", &limit],
        };
        if critical && self != Self::Open {
            flags.extend(["--priority-header", "x-priority"]);
        }
        gateway(program, &flags, backend)
    }
}

/// The gateway beside this program; built if it is not there.
pub(crate) fn build() -> Result<PathBuf, BoxError> {
    let own = std::env::current_exe()?;
    let dir = own.parent().ok_or("this program is in no directory")?;
    let path = dir.join(format!("gateway{}", std::env::consts::EXE_SUFFIX));
    if path.exists() {
        return Ok(path);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--features", "full", "--example", "gateway"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::null())
        .status();
    match built {
        Ok(status) if status.success() && path.exists() => Ok(path),
        _ => Err(format!(
            "there is no {}; build it with cargo build --features full --example gateway",
            path.display()
        )
        .into()),
    }
}

fn gateway(program: &Path, flags: &[&str], backend: SocketAddr) -> Result<Running, BoxError> {
    let mut command = Command::new(program);
    command
        .args(["--listen", "127.0.0.1:0", "--upstream"])
        .arg(format!("http://{backend}"))
        .args(flags);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().ok_or("its output is piped")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    let addr = line
        .trim()
        .strip_prefix("listening on http://")
        .and_then(|addr| addr.trim_end_matches('/').parse().ok());
    let Some(addr) = addr else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("the gateway does not say where it listens, but {line:?}").into());
    };
    Ok(Running {
        child,
        addr,
        _stdout: Some(stdout),
        dir: None,
    })
}

fn nginx(limit: &str, backend: SocketAddr) -> Result<Running, BoxError> {
    // Taken and given back: nginx does not tell which port it was given.
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let dir = std::env::temp_dir().join(format!(
        "gateway_overload-{}-{}",
        std::process::id(),
        addr.port()
    ));
    std::fs::create_dir_all(&dir)?;
    let at = dir.display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log /dev/null;
         worker_rlimit_nofile 65536;
         events {{ worker_connections 65536; }}
         http {{
           access_log off; keepalive_requests 100000000; tcp_nodelay on;
           client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
           uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
           limit_conn_zone $server_addr zone=all:1m; limit_conn_status 503;
           upstream backend {{ server {backend}; keepalive 1024; keepalive_requests 100000000; }}
           server {{
             listen {addr} backlog=65535;
             location / {{
               limit_conn all {limit};
               proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection '';
             }}
           }}
         }}"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let child = Command::new("nginx")
        .arg("-p")
        .arg(&dir)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut running = Running {
        child,
        addr,
        _stdout: None,
        dir: Some(dir),
    };
    let patience = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(addr).is_err() {
        if Instant::now() > patience || running.child.try_wait()?.is_some() {
            return Err("nginx does not start".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(running)
}

// ===== impl Running =====

impl Running {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The CPU time of all its threads so far, where the kernel tells it to the nanosecond.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let mut sum = 0;
        for task in tasks {
            let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            sum += stat.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(sum))
    }

    /// Whether it still runs.
    pub(crate) fn alive(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already, which a cell reports.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}
