//! How processes on one file take turns and wake each other: the lock file beside it.
//!
//! Its lock makes writers queue up fairly, where SQLite's own busy handler sleeps and lets the quick starve the slow.
//! Its content is the doorbell: who commits something that others may wait for writes its name there, and a file watch
//! tells them. Both are courtesies: SQLite's locks keep the data right without the one, a slow poll finds what the
//! other has missed. The database file itself is never opened here, since closing any handle of it would drop the locks
//! that SQLite holds on it in this process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use notify::{EventKind, RecursiveMode, Watcher};

use super::fault::Fault;
use super::hub::Hub;

/// Who rang: a number of its own for each open store.
type Ringer = [u8; 16];

/// The lock file that belongs to a database.
pub(super) fn path_beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-lock");
    PathBuf::from(path)
}

/// Opens the lock file, making it if need be.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The turnstile of writers.
pub(super) struct Gate {
    file: Arc<File>,
    me: Ringer,
    patience: Duration,
    /// A thread that waits for the lock when it is not free at once, so that the writer can give up waiting: a process
    /// stopped in the midst of a commit must make callers here fail, not hang. Started when first needed.
    usher: Option<Usher>,
}

struct Usher {
    ask: SyncSender<()>,
    granted: Receiver<std::io::Result<()>>,
    /// The lock was asked for and is still to come.
    pending: bool,
}

impl Gate {
    /// Waits at most `patience` for the lock.
    pub(super) fn new(file: File, patience: Duration) -> Self {
        Self { file: Arc::new(file), me: *uuid::Uuid::new_v4().as_bytes(), patience, usher: None }
    }

    /// The name under which this store rings.
    pub(super) fn ringer(&self) -> Ringer {
        self.me
    }

    /// Waits for this process's turn to write.
    pub(super) fn lock(&mut self) -> Result<(), Fault> {
        if !self.is_pending() {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(Fault::Unavailable(error.to_string())),
            }
        }
        let patience = self.patience;
        let usher = self.usher()?;
        if !usher.pending {
            match usher.ask.try_send(()) {
                Ok(()) => usher.pending = true,
                Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => return Err(gone()),
            }
        }
        match usher.granted.recv_timeout(patience) {
            Ok(granted) => {
                usher.pending = false;
                granted.map_err(|error| Fault::Unavailable(error.to_string()))
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(Fault::Unavailable(format!("another process has kept the write lock for {patience:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    fn usher(&mut self) -> Result<&mut Usher, Fault> {
        if self.usher.is_none() {
            let (ask, asked) = sync_channel(1);
            let (grant, granted) = sync_channel(1);
            let file = self.file.clone();
            let wait = move || {
                while asked.recv().is_ok() && grant.send(file.lock()).is_ok() {}
            };
            std::thread::Builder::new().name("celeriac-usher".to_owned()).spawn(wait).map_err(|error| {
                Fault::Unavailable(format!("no thread to wait for the write lock: {error}"))
            })?;
            self.usher = Some(Usher { ask, granted, pending: false });
        }
        self.usher.as_mut().ok_or_else(gone)
    }

    /// Whether a lock asked for in vain may still be granted.
    pub(super) fn is_pending(&self) -> bool {
        self.usher.as_ref().is_some_and(|usher| usher.pending)
    }

    /// Gives back a lock that was granted after the writer had given up waiting for it; to be called now and then by a
    /// writer without work, who would keep the others out otherwise.
    pub(super) fn release_late(&mut self) {
        if let Some(usher) = self.usher.as_mut().filter(|usher| usher.pending)
            && let Ok(granted) = usher.granted.try_recv()
        {
            usher.pending = false;
            if granted.is_ok() {
                self.unlock();
            }
        }
    }

    /// Lets the next process write.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "the write lock was not released");
        }
    }

    /// Wakes the other processes; to be called with the lock held, so that who rang last is also who wrote last.
    pub(super) fn ring(&self) {
        let mut file = &*self.file;
        let rung = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&self.me));
        if let Err(error) = rung {
            // The slow poll of the others finds the commit.
            tracing::debug!(%error, "the doorbell was not rung");
        }
    }
}

fn gone() -> Fault {
    Fault::Unavailable("the thread that waits for the write lock has ended".to_owned())
}

/// Listens for other processes until dropped.
pub(super) struct Doorbell {
    _watcher: notify::RecommendedWatcher,
}

impl Doorbell {
    /// Watches the lock file; rings of `me` are of no interest.
    pub(super) fn listen(path: &Path, me: Ringer, hub: Arc<Hub>) -> notify::Result<Self> {
        let mut file = open(path)?;
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let rung =
                event.map_or(true, |event| matches!(event.kind, EventKind::Modify(_) | EventKind::Any));
            if rung && last_ringer(&mut file).is_none_or(|last| last != me) {
                hub.tell_foreign();
            }
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher })
    }
}

fn last_ringer(file: &mut File) -> Option<Ringer> {
    let mut last = Ringer::default();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_exact(&mut last).ok()?;
    Some(last)
}
