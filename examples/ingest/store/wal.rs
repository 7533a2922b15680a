//! The write-ahead file: what is stored outlives the process.
//!
//! # Invariants
//!
//! - A batch is appended with one write and is stored when one `fdatasync` after it has succeeded; nobody is told before.
//! - What was processed is appended at once and synced with the next batch: a process that is killed loses none of it, a
//!   machine that loses power may.
//! - The file is whole up to a point and torn behind it. On opening, what is torn is cut, and kept as `FILE.torn`.
//! - The file is replaced by renaming, when the new one is synced: there is always one that is whole.
//! - `end` and `live` belong to who holds the lock. A sync runs outside of it, so that workers do not wait for the disk.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::Bytes;

use super::record::{MAGIC, Record};

/// What is to be written of an item.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: Arc<str>,
    pub(super) payload: Bytes,
}

#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    /// It is written anew when it is longer, and four times as long as what is in it.
    most: u64,
    tail: Mutex<Tail>,
}

#[derive(Debug)]
struct Tail {
    file: Arc<File>,
    /// How long the file is.
    end: u64,
    /// What is not processed.
    live: BTreeMap<u64, Entry>,
    live_bytes: u64,
    /// After a sync that failed nobody knows what is on the disk.
    broken: Option<String>,
}

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) live: BTreeMap<u64, Entry>,
    /// Ids, oldest first.
    pub(super) seen: Vec<Arc<str>>,
    /// Bytes behind the last whole record.
    pub(super) torn: usize,
}

// ===== impl Wal =====

impl Wal {
    /// Opens the file at `path`, or makes it.
    pub(super) fn open(path: &Path, most: u64) -> io::Result<(Self, Found)> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let found = Found::of(&bytes)?;
        if found.torn > 0 {
            fs::write(beside(path, "torn"), &bytes[bytes.len() - found.torn..])?;
        }
        let tail = Tail::write(path, found.live.clone(), &found.seen)?;
        let wal = Self {
            path: path.to_owned(),
            most,
            tail: Mutex::new(tail),
        };
        Ok((wal, found))
    }

    /// Stores `items`. Blocks until they are on the disk. `seen` tells the ids to remember when the file is written anew.
    pub(super) fn append(
        &self,
        items: Vec<(u64, Entry)>,
        seen: impl FnOnce() -> Vec<Arc<str>>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (seq, entry) in &items {
            entry.record(*seq).encode(&mut bytes);
        }
        let file = {
            let mut tail = self.lock();
            if let Some(why) = &tail.broken {
                return Err(io::Error::other(format!("{why}; start anew")));
            }
            if tail.end > self.most && tail.end / 4 > tail.live_bytes {
                *tail = Tail::write(&self.path, std::mem::take(&mut tail.live), &seen())
                    .inspect_err(|error| tail.broken = Some(error.to_string()))?;
            }
            tail.append(&bytes)?;
            tail.live_bytes += bytes.len() as u64;
            tail.live.extend(items);
            tail.file.clone()
        };
        file.sync_data()
            .inspect_err(|error| self.lock().broken = Some(error.to_string()))
    }

    /// Notes that an item was processed. Blocks only when the file is being written anew; none if that is so.
    pub(super) fn try_done(&self, seq: u64) -> Option<io::Result<()>> {
        match self.tail.try_lock() {
            Ok(mut tail) => Some(tail.done(seq)),
            Err(TryLockError::Poisoned(tail)) => Some(tail.into_inner().done(seq)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Notes that an item was processed.
    pub(super) fn done(&self, seq: u64) -> io::Result<()> {
        self.lock().done(seq)
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ===== impl Tail =====

impl Tail {
    /// Puts a file that holds only this in the place of the one at `path`.
    fn write(path: &Path, live: BTreeMap<u64, Entry>, seen: &[Arc<str>]) -> io::Result<Self> {
        let mut bytes = MAGIC.to_vec();
        for id in seen {
            Record::Seen { id }.encode(&mut bytes);
        }
        let start = bytes.len();
        for (seq, entry) in &live {
            entry.record(*seq).encode(&mut bytes);
        }
        let new = beside(path, "new");
        // Made to be appended to, since records of workers and batches follow each other.
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&new)?;
        (&file).write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&new, path)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()?;
        Ok(Self {
            file: Arc::new(file),
            end: bytes.len() as u64,
            live,
            live_bytes: (bytes.len() - start) as u64,
            broken: None,
        })
    }

    /// All of `bytes` or none.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = (&*self.file).write_all(bytes) {
            // A part may be there, behind which nothing would be found again.
            if let Err(error) = self.file.set_len(self.end) {
                self.broken = Some(error.to_string());
            }
            return Err(error);
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn done(&mut self, seq: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(32);
        Record::Done { seq }.encode(&mut bytes);
        self.append(&bytes)?;
        if let Some(entry) = self.live.remove(&seq) {
            let length = entry.length();
            self.live_bytes = self.live_bytes.saturating_sub(length);
        }
        Ok(())
    }
}

// ===== impl Entry =====

impl Entry {
    fn record(&self, seq: u64) -> Record<'_> {
        Record::Item {
            seq,
            id: &self.id,
            payload: &self.payload,
        }
    }

    /// How long its record is.
    fn length(&self) -> u64 {
        (8 + 1 + 8 + 2 + self.id.len() + self.payload.len()) as u64
    }
}

// ===== impl Found =====

impl Found {
    fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut found = Self::default();
        if MAGIC.starts_with(bytes) {
            // Nothing, or its maker was killed at the first write.
            return Ok(found);
        }
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
            let wrong = "it does not begin as a write-ahead file does; name another with --wal";
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        };
        while let Some((record, length)) = Record::decode(rest) {
            rest = &rest[length..];
            match record {
                Record::Item { seq, id, payload } => {
                    let (id, payload): (Arc<str>, _) = (id.into(), Bytes::copy_from_slice(payload));
                    found.seen.push(id.clone());
                    found.live.insert(seq, Entry { id, payload });
                }
                Record::Done { seq } => drop(found.live.remove(&seq)),
                Record::Seen { id } => found.seen.push(id.into()),
            }
        }
        found.torn = rest.len();
        Ok(found)
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}
