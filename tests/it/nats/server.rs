//! Starts, kills, freezes and restarts a `nats-server` of its own.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::StreamExt;

use crate::support::{found, scratch};

/// How long anything may take that is to happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// A server with JetStream. It is killed when this is dropped, and its store removed.
pub struct Server {
    child: Option<Child>,
    port: u16,
    dir: PathBuf,
    /// Lines of its configuration.
    pub config: String,
}

impl Server {
    /// A server on a port of its own; `None` where there is no such program.
    pub fn start(config: &str) -> Option<Self> {
        let mut server = Self::prepare(config)?;
        server.up();
        Some(server)
    }

    /// The same, not started yet.
    pub fn prepare(config: &str) -> Option<Self> {
        if !found("nats-server") {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        Some(Self {
            child: None,
            port,
            dir: scratch(&format!("nats-{port}")),
            config: config.to_owned(),
        })
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it on the same port and store, and waits until it is ready.
    pub fn up(&mut self) {
        assert!(self.child.is_none(), "it is up");
        let path = self.dir.join("server.conf");
        std::fs::create_dir_all(&self.dir).unwrap();
        let store = self.dir.join("store");
        let config = format!(
            "host: 127.0.0.1\nport: {}\njetstream {{ store_dir: {store:?} }}\n{}\n",
            self.port, self.config
        );
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(&path).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, ready) = mpsc::channel();
        // Reads to the end, so that the server never waits for its own log.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        self.child = Some(child);
        let mut seen = Vec::new();
        while !seen
            .last()
            .is_some_and(|line: &String| line.contains("Server is ready"))
        {
            match ready.recv_timeout(SOON) {
                Ok(line) => seen.push(line),
                Err(_) => panic!("nats-server did not start: {seen:#?}"),
            }
        }
    }

    /// Kills it at once, as a crash does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it is up");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops it from doing anything, or lets it go on.
    #[cfg(target_os = "linux")]
    pub fn freeze(&self, freeze: bool) {
        use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
        let id = self.child.as_ref().expect("it is up").id();
        let id = Pid::from_raw(id as i32).unwrap();
        let signal = if freeze { Signal::STOP } else { Signal::CONT };
        kill_process(id, signal).unwrap();
        if freeze {
            // Until the last of its threads has stopped.
            waitpid(Some(id), WaitOptions::UNTRACED).unwrap();
        }
    }

    /// A client that looks for its server every 20 ms when it lost it.
    pub async fn client(&self) -> Client {
        let options = eager();
        options.connect(self.url()).await.unwrap()
    }

    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn eager() -> ConnectOptions {
    ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(20))
}

/// A stream called `ITEMS` of all below `items`.
pub async fn items(context: &jetstream::Context) -> stream::Stream {
    let config = stream::Config {
        name: "ITEMS".into(),
        subjects: vec!["items.>".into()],
        ..stream::Config::default()
    };
    soon(context.get_or_create_stream(config)).await.unwrap()
}

/// A durable pull consumer called `workers`.
pub async fn workers(stream: &stream::Stream, max_ack_pending: i64) -> consumer::PullConsumer {
    let config = consumer::pull::Config {
        durable_name: Some("workers".into()),
        max_ack_pending,
        ..consumer::pull::Config::default()
    };
    let created = stream.get_or_create_consumer("workers", config);
    soon(created).await.unwrap()
}

/// Listens on `subject`, from now on: a flush does not tell what the server has read.
pub async fn listen(client: &Client, subject: &str) -> Subscriber {
    let subscriber = client.subscribe(subject.to_owned()).await.unwrap();
    let inbox = client.new_inbox();
    let mut own = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    soon(own.next()).await.unwrap();
    subscriber
}

/// Whatever it is, it does not hang.
pub async fn soon<F: IntoFuture>(future: F) -> F::Output {
    let future = tokio::time::timeout(SOON, future.into_future());
    future.await.expect("it happens soon")
}

/// Waits until `done`: for what nobody can be told of.
pub async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
