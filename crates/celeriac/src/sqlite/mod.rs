//! The embedded store: broker and result backend in one SQLite file, which any number of processes on one machine may
//! share.
//!
//! Every write goes through one thread per process, which groups all that waits into one commit (`writer`). Reads run
//! on a few connections of their own (`readers`). Those who wait are woken by the commit they wait for (`hub`), those in
//! other processes by way of the lock file (`doorbell`). The SQL stands in files of its own under `queries`, the layout
//! under `schema`; the other modules hold the statements that belong to one subject each.
//!
//! **Invariant:** a task's message is in exactly one of the tables `ready`, `delayed`, `lease` and `dead`, or settled.
//! **Invariant:** whatever is refused (a lost reservation, a chord not ready) is found before anything is written, so
//! that the transactions that share its commit are not disturbed.
//! **Absent on purpose:** retries on SQLITE_BUSY, triggers, the database's own idea of the time, and any other way to
//! open the file than through SQLite, which would drop SQLite's locks.

mod attempts;
mod backend;
mod bounds;
mod broker;
mod candidates;
mod catalog;
mod chords;
mod connect;
mod control;
mod dead;
mod doorbell;
mod fault;
mod hub;
mod lease;
mod logs;
mod messages;
mod ops;
mod readers;
mod reserve;
mod results;
mod rows;
mod schema;
mod sql;
mod step;
mod sweep;
mod transact;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

pub use ops::Stats;

use crate::clock::SharedClock;
use crate::store::{Error, Result};
use doorbell::{Doorbell, Gate};
use fault::Fault;
use hub::Hub;
use readers::Readers;
use rows::column_of;
use step::Step;
use writer::{Durability, Job, Jobs, Work, Writer};

/// The version of the SQLite in this program.
#[must_use]
pub fn version() -> &'static str {
    rusqlite::version()
}

/// How often an idle process looks for commits of others when nothing tells it of them (no watches left, or a file system
/// without events). A look reads one number from shared memory.
const POLL_WITHOUT_DOORBELL: Duration = Duration::from_millis(5);

/// Waits are cut to this length, since a timer cannot be set further off.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How a [`SqliteStore`] is set.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// What a commit survives. Default: [`Synchronous::Full`].
    pub synchronous: Synchronous,
    /// How long a write or a read waits for other processes before it fails as unavailable. Default: 5 s.
    pub busy_timeout: Duration,
    /// How often an idle process looks for commits of others by itself. They wake it at once through a file watch; this
    /// is the net beneath it. Where no watch can be had, it looks every 5 ms instead. Default: 1 s.
    pub poll_interval: Duration,
    /// Records kept in the log of each task; older ones are trimmed. At least 1. Default: 100,000.
    pub log_bound: u64,
    /// Files up to so many bytes are looked over for damage when opened; 0 for never. Default: 10 MiB, which takes a
    /// few milliseconds.
    pub quick_check_bytes_max: u64,
    /// The file may grow to so many bytes; then writes fail with [`Error::Full`]. `None`: to the end of the disk.
    pub file_bytes_max: Option<u64>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            busy_timeout: Duration::from_secs(5),
            poll_interval: Duration::from_secs(1),
            log_bound: 100_000,
            quick_check_bytes_max: 10 * 1024 * 1024,
            file_bytes_max: None,
        }
    }
}

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// A loss of power, as far as the disk tells the truth. Commits that only reserve, extend or give back are not
    /// flushed even so: losing one delivers its messages once more, and no more than that.
    #[default]
    Full,
    /// A crash of the process. A loss of power may undo the last commits.
    Normal,
}

impl Synchronous {
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

/// A store in one SQLite file: broker, result backend, and the atomic step over both.
pub struct SqliteStore {
    path: PathBuf,
    options: SqliteOptions,
    clock: SharedClock,
    jobs: Jobs,
    hub: Arc<Hub>,
    readers: Arc<Readers>,
    /// Where the next sweep goes on: the number of a task.
    swept: AtomicI64,
    doorbell: Option<Doorbell>,
    writer: Option<JoinHandle<()>>,
    looker: Option<JoinHandle<()>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store in the file at `path`, making the file if need be (but not its directory). Other processes may
    /// have it open. Blocks for as long as the disk takes, and may wait for another process that is just opening it.
    ///
    /// # Errors
    /// [`Error::Open`] when the file cannot or should not be opened, with what to do about it; [`Error::Newer`] for one
    /// with a newer layout; [`Error::Corrupt`] for a damaged one. A file refused is not changed.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions, clock: SharedClock) -> Result<Arc<Self>> {
        let connect::Opened { path, writer, lock, lock_path } = connect::open(path.as_ref(), &options)?;
        let fault = |fault: Fault| fault.into_error("open", &path);
        let looker = connect::reader(&path, options.busy_timeout).map_err(fault)?;
        let gate = Gate::new(lock, options.busy_timeout);
        let hub = Hub::new();
        let doorbell = match Doorbell::listen(&lock_path, gate.ringer(), hub.clone()) {
            Ok(doorbell) => Some(doorbell),
            Err(error) => {
                tracing::warn!(%error, "no file watch: commits of other processes are looked for by polling");
                None
            }
        };
        let jobs = Jobs::new();
        let work = Writer {
            connection: writer,
            jobs: jobs.clone(),
            gate,
            hub: hub.clone(),
            clock: clock.clone(),
            synchronous: options.synchronous.as_str(),
            log_bound: rows::bound(options.log_bound.max(1)),
            poll: if doorbell.is_some() { options.poll_interval } else { POLL_WITHOUT_DOORBELL },
        };
        let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let error = |error| Error::unavailable(format!("open {}: start a thread", path.display()), error);
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(error)
        };
        let writer = thread("celeriac-writer", Box::new(move || work.run()))?;
        let looking = hub.clone();
        let looker = thread("celeriac-looker", Box::new(move || looking.look(&looker)));
        if looker.is_err() {
            jobs.close();
        }
        Ok(Arc::new(Self {
            readers: Arc::new(Readers::new(path.clone(), options.busy_timeout)),
            looker: Some(looker?),
            path,
            options,
            clock,
            jobs,
            hub,
            swept: AtomicI64::new(0),
            doorbell,
            writer: Some(writer),
        }))
    }

    /// The file, with links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the store is set.
    #[must_use]
    pub fn options(&self) -> &SqliteOptions {
        &self.options
    }

    /// Has the writer run `run` in its next commit; `what` names it in errors.
    async fn write<T, F>(&self, what: &str, durability: Durability, weight: usize, run: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Step<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work = Work { durability, weight, peek: None, run: Some(run), value: None, reply };
        self.submit(what, Box::new(work), answer).await
    }

    /// The same, for work that `peek` may find to be needless, and answer, without taking any lock.
    async fn write_if<T, P, F>(&self, what: &str, weight: usize, peek: P, run: F) -> Result<T>
    where
        T: Send + 'static,
        P: FnMut(&Connection, i64) -> Result<Option<T>, Fault> + Send + 'static,
        F: FnOnce(&mut Step<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let peek = Some(Box::new(peek) as _);
        let work = Work { durability: Durability::Relaxed, weight, peek, run: Some(run), value: None, reply };
        self.submit(what, Box::new(work), answer).await
    }

    async fn submit<T>(
        &self,
        what: &str,
        job: Box<dyn Job>,
        answer: oneshot::Receiver<Result<T, Fault>>,
    ) -> Result<T> {
        if !self.jobs.send(job).await {
            return Err(Error::unavailable(what, "the store is closed"));
        }
        match answer.await {
            Ok(answer) => answer.map_err(|fault| fault.into_error(what, &self.path)),
            // Only a panic loses a reply. It may have come after the commit.
            Err(_) => Err(Error::unavailable(what, "the writer lost the reply")),
        }
    }

    /// Looks until what is found is `enough` or `wait` is over, anew whenever `bell` changes; returns what the last look
    /// found.
    async fn look_until<T, L>(
        &self,
        what: &str,
        mut bell: watch::Receiver<u64>,
        wait: Duration,
        look: L,
        enough: impl Fn(&T) -> bool + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        L: Fn(&Connection, i64) -> Result<T, Fault> + Clone + Send + 'static,
    {
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        loop {
            bell.mark_unchanged();
            let (look, now) = (look.clone(), column_of(self.clock.now()));
            let found = self.read(what, move |connection| look(connection, now)).await?;
            if enough(&found) || Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::select! {
                changed = bell.changed() => {
                    if changed.is_err() {
                        return Ok(found);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    async fn read<T, F>(&self, what: &str, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        self.readers.read(read).await.map_err(|fault| fault.into_error(what, &self.path))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        drop(self.doorbell.take());
        self.hub.close();
        self.readers.close();
        self.jobs.close();
        for thread in [self.looker.take(), self.writer.take()].into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("a thread of the store had panicked");
            }
        }
    }
}
