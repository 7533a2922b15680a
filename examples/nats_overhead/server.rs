//! A `nats-server` for as long as the study takes.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tower_flow::BoxError;

/// Killed when it is dropped.
pub struct Server {
    pub url: String,
    child: Child,
}

impl Server {
    pub fn start() -> Result<Self, BoxError> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        let started = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = started.map_err(|error| {
            format!("nats-server does not start: {error}; install it, or name a server with --server nats://HOST:4222")
        })?;
        let log = child.stderr.take();
        let server = Self {
            url: format!("nats://127.0.0.1:{port}"),
            child,
        };
        let mut log = BufReader::new(log.ok_or("nats-server has no log")?).lines();
        let ready = log.any(|line| line.is_ok_and(|line| line.contains("Server is ready")));
        // The rest is read to its end, so that the server never waits for its own log.
        std::thread::spawn(move || log.for_each(drop));
        match ready {
            true => Ok(server),
            false => Err("nats-server ended before it was ready; see `nats-server -p 0`".into()),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
