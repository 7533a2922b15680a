//! The programs among the examples, as children of the tests.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a program may take to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The example of this name, in the profile of the tests; built once if it is not up to date.
pub fn example(name: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    // A build that failed for one test fails for the others with its own message.
    let mut built = BUILT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let built = built.get_or_insert_default();
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    let own = std::env::current_exe().unwrap();
    let profile = own.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--features", "full", "--example", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("--target-dir")
        .arg(profile.parent().unwrap());
    match profile.file_name().and_then(OsStr::to_str).unwrap() {
        "debug" => {}
        other => {
            cargo.args(["--profile", other]);
        }
    }
    let output = cargo.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} does not build: {errors}");
    let path = profile.join("examples").join(name);
    built.insert(name.to_owned(), path.clone());
    path
}

/// A child process. It is killed on drop.
#[derive(Debug)]
pub struct Program {
    name: String,
    id: u32,
    child: Mutex<Child>,
    stdout: Mutex<Stdout>,
    stderr: Arc<Mutex<String>>,
}

#[derive(Debug)]
struct Stdout {
    lines: Receiver<String>,
    seen: Vec<String>,
}

// ===== impl Program =====

impl Program {
    pub fn start<A: AsRef<OsStr>>(
        path: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(path.as_ref());
        command.args(args);
        Self::spawn(&mut command)
    }

    /// The same, with an environment and a directory of its own.
    pub fn spawn(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Read on when nobody listens: a program must not fail for what it says.
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let kept = stderr.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..read]);
                kept.lock().unwrap().push_str(&text);
            }
        });
        Self {
            name,
            id: child.id(),
            child: Mutex::new(child),
            stdout: Mutex::new(Stdout {
                lines,
                seen: Vec::new(),
            }),
            stderr,
        }
    }

    /// Waits for the first line on stdout that begins with `prefix`; the rest of it.
    pub fn line(&self, prefix: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut stdout = self.stdout.lock().unwrap();
        loop {
            let found = stdout
                .seen
                .iter()
                .find_map(|line| line.strip_prefix(prefix));
            if let Some(rest) = found {
                return rest.to_owned();
            }
            let left = until.saturating_duration_since(Instant::now());
            match stdout.lines.recv_timeout(left) {
                Ok(line) => stdout.seen.push(line),
                Err(_) => panic!(
                    "{} does not say {prefix:?}, but {:?}; stderr: {}",
                    self.name,
                    stdout.seen,
                    self.stderr()
                ),
            }
        }
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let id = self.id.to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(sent.success(), "{} is gone already", self.name);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Whether it has ended by itself or by a signal.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    pub fn wait(&self, patience: Duration) -> ExitStatus {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < until,
                "{} still runs after {patience:?}; stderr: {}",
                self.name,
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, stderr: {}", self.name, self.stderr());
        }
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.kill();
        let _ = child.wait();
    }
}
