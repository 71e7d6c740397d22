//! The one thread of a process that writes.
//!
//! It takes every job that waits, runs them all in one transaction, commits once and answers all callers: at load the
//! price of a commit is shared by hundreds, and a lone job never waits for company.
//!
//! ```text
//!  take all that waits ─► peek ─► lock ─► BEGIN ─► run each ─► COMMIT ─► ring ─► unlock ─► answer, wake ─► checkpoint
//!        ▲                 │ nothing to write: answer                                                          │
//!        └─────────────────┴───────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::doorbell::Gate;
use super::fault::Fault;
use super::hub::Hub;
use super::rows::column_of;
use super::step::{Events, Memory, Step};
use crate::clock::SharedClock;

/// Jobs that may wait; past it callers wait for a place.
const JOBS_WAITING_MAX: usize = 4_096;

/// A commit takes jobs until together they weigh so much (about: tasks touched); one job is never split. Larger commits
/// gain nothing measurable, and make whoever comes next wait.
const COMMIT_WEIGHT_MAX: usize = 1_000;

/// Pages in the write-ahead log at which an idle writer folds them into the database.
const CHECKPOINT_IDLE_PAGES: i64 = 500;

/// Pages at which a busy one does. 8,000 pages are 32 MiB.
const CHECKPOINT_BUSY_PAGES: i64 = 8_000;

/// How long an idle writer sleeps before it looks after the write-ahead log.
const IDLE: Duration = Duration::from_millis(100);

/// How well a commit must be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// It survives a crash of the process; a loss of power may undo it, which only delivers messages once more.
    Relaxed,
    /// As the store is set to be.
    Full,
}

/// A piece of work for the writer.
pub(super) trait Job: Send {
    /// How well its commit must be kept.
    fn durability(&self) -> Durability;

    /// About how many tasks it touches.
    fn weight(&self) -> usize;

    /// Whether nobody waits for the answer any more; such a job is not begun.
    fn is_abandoned(&self) -> bool;

    /// Looks, without any lock, whether there is nothing to write, and if so has its answer.
    fn is_spared(&mut self, connection: &Connection, now: i64) -> Result<bool, Fault>;

    /// Does its work.
    fn run(&mut self, step: &mut Step<'_>) -> Result<(), Fault>;

    /// Answers the caller: with what the work gave, or with the fault that undid the commit.
    fn answer(self: Box<Self>, fault: Option<&Fault>);
}

type Peek<T> = Box<dyn FnMut(&Connection, i64) -> Result<Option<T>, Fault> + Send>;

/// A job made of closures.
pub(super) struct Work<T, F> {
    pub(super) durability: Durability,
    pub(super) weight: usize,
    pub(super) peek: Option<Peek<T>>,
    pub(super) run: Option<F>,
    pub(super) value: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, Fault>>,
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnOnce(&mut Step<'_>) -> Result<T, Fault> + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn is_spared(&mut self, connection: &Connection, now: i64) -> Result<bool, Fault> {
        if let Some(peek) = &mut self.peek {
            self.value = peek(connection, now)?;
        }
        Ok(self.value.is_some())
    }

    fn run(&mut self, step: &mut Step<'_>) -> Result<(), Fault> {
        if let Some(run) = self.run.take() {
            self.value = Some(run(step)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, fault: Option<&Fault>) {
        let answer = match (fault, self.value) {
            (Some(fault), _) => Err(fault.clone()),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Fault::Unavailable("the work was not begun".to_owned())),
        };
        // A caller who has gone away gets nothing; what must not be lost is guarded by the value's own `Drop`.
        let _ = self.reply.send(answer);
    }
}

/// Jobs on their way to the writer.
#[derive(Clone)]
pub(super) struct Jobs {
    line: Arc<Line>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Line {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(Box<dyn Job>, Option<OwnedSemaphorePermit>)>,
    closed: bool,
}

/// What the writer finds when it looks for work.
enum Found {
    Batch(Vec<Box<dyn Job>>),
    Idle,
    Closed,
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self { line: Arc::default(), room: Arc::new(Semaphore::new(JOBS_WAITING_MAX)) }
    }

    /// Hands a job to the writer once there is room for it; `false` when the writer is gone.
    pub(super) async fn send(&self, job: Box<dyn Job>) -> bool {
        match self.room.clone().acquire_owned().await {
            Ok(permit) => self.push(job, Some(permit)),
            Err(_) => false,
        }
    }

    /// Hands in a job at once, past the bound: for clean-up after callers, who had room before.
    pub(super) fn send_now(&self, job: Box<dyn Job>) {
        self.push(job, None);
    }

    fn push(&self, job: Box<dyn Job>, permit: Option<OwnedSemaphorePermit>) -> bool {
        let mut waiting = self.line.lock();
        if waiting.closed {
            return false;
        }
        waiting.jobs.push_back((job, permit));
        drop(waiting);
        self.line.arrived.notify_one();
        true
    }

    /// Tells the writer to finish what waits and end.
    pub(super) fn close(&self) {
        self.line.lock().closed = true;
        self.room.close();
        self.line.arrived.notify_all();
    }

    /// Takes all that waits, or waits at most `wait` for something.
    fn take(&self, wait: Duration) -> Found {
        let mut waiting = self.line.lock();
        if waiting.jobs.is_empty() && !waiting.closed {
            let woken = self.line.arrived.wait_timeout(waiting, wait);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if waiting.jobs.is_empty() {
            return if waiting.closed { Found::Closed } else { Found::Idle };
        }
        let mut batch = Vec::with_capacity(waiting.jobs.len());
        let mut weight = 0;
        while weight < COMMIT_WEIGHT_MAX
            && let Some((job, permit)) = waiting.jobs.pop_front()
        {
            weight += job.weight();
            batch.push(job);
            drop(permit);
        }
        Found::Batch(batch)
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the writer thread owns.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) jobs: Jobs,
    pub(super) gate: Gate,
    pub(super) hub: Arc<Hub>,
    pub(super) clock: SharedClock,
    /// How durable a commit of [`Durability::Full`] is.
    pub(super) synchronous: &'static str,
    pub(super) log_bound: i64,
    /// How often to look for commits of other processes when idle.
    pub(super) poll: Duration,
}

impl Writer {
    /// Works until the store is closed and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut memory = Memory::default();
        let mut checkpointed = true;
        let mut version = self.data_version().unwrap_or(0);
        let mut in_force = "";
        let mut idle = Duration::ZERO;
        loop {
            let rest = checkpointed && !self.gate.is_pending();
            let wait = if rest { self.poll } else { IDLE.min(self.poll) };
            match self.jobs.take(wait) {
                Found::Closed => break,
                Found::Idle => {
                    self.gate.release_late();
                    self.listen(&mut version);
                    idle += wait;
                    if !checkpointed && idle >= IDLE {
                        self.checkpoint(CHECKPOINT_IDLE_PAGES);
                        checkpointed = true;
                    }
                }
                Found::Batch(batch) => {
                    idle = Duration::ZERO;
                    checkpointed = false;
                    let work = || self.batch(batch, &mut memory, &mut version, &mut in_force);
                    if catch_unwind(AssertUnwindSafe(work)).is_err() {
                        // The callers of this batch learn of it by their lost reply. What the batch did is undone, so
                        // that the next one starts from a sound state.
                        tracing::error!("a panic undid a commit of the store");
                        self.undo(&mut memory);
                        self.gate.unlock();
                    }
                    self.checkpoint(CHECKPOINT_BUSY_PAGES);
                }
            }
        }
    }

    fn batch(
        &mut self,
        mut jobs: Vec<Box<dyn Job>>,
        memory: &mut Memory,
        version: &mut i64,
        in_force: &mut &'static str,
    ) {
        jobs.retain(|job| !job.is_abandoned());
        let now = column_of(self.clock.now());
        let mut needed = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            match job.is_spared(&self.connection, now) {
                Ok(true) => job.answer(None),
                Ok(false) => needed.push(job),
                Err(fault) => job.answer(Some(&fault)),
            }
        }
        if needed.is_empty() {
            return;
        }
        let done = match self.gate.lock() {
            Err(fault) => Err(fault),
            Ok(()) => {
                let done = self.commit(&mut needed, memory, version, in_force);
                if done.is_err() {
                    self.undo(memory);
                }
                if done.as_ref().is_ok_and(Events::any) {
                    self.gate.ring();
                }
                self.gate.unlock();
                done
            }
        };
        match done {
            Ok(events) => {
                for job in needed {
                    job.answer(None);
                }
                self.hub.tell(events);
            }
            Err(fault) => {
                for job in needed {
                    job.answer(Some(&fault));
                }
            }
        }
    }

    fn commit(
        &mut self,
        jobs: &mut [Box<dyn Job>],
        memory: &mut Memory,
        version: &mut i64,
        in_force: &mut &'static str,
    ) -> Result<Events, Fault> {
        let relaxed = jobs.iter().all(|job| job.durability() == Durability::Relaxed);
        let synchronous = if relaxed { "NORMAL" } else { self.synchronous };
        if *in_force != synchronous {
            self.connection.pragma_update(None, "synchronous", synchronous)?;
            *in_force = synchronous;
        }
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        self.listen(version);
        let now = column_of(self.clock.now());
        let mut step = Step::new(&self.connection, memory, now, self.log_bound);
        for job in jobs {
            job.run(&mut step)?;
        }
        let events = step.finish()?;
        self.connection.prepare_cached("COMMIT")?.execute(())?;
        Ok(events)
    }

    fn undo(&self, memory: &mut Memory) {
        memory.rolled_back();
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, "rollback failed");
        }
    }

    /// Tells those who wait if another process has committed since the last look. A ring of the doorbell may be lost
    /// under one of ours; it cannot be lost here, because a commit of ours always looks first.
    fn listen(&self, version: &mut i64) {
        if let Some(now) = self.data_version()
            && now != *version
        {
            *version = now;
            self.hub.tell_foreign();
        }
    }

    /// A number that changes when, and only when, another connection has committed.
    fn data_version(&self) -> Option<i64> {
        let mut statement = self.connection.prepare_cached("PRAGMA data_version").ok()?;
        statement.query_row((), |row| row.get(0)).ok()
    }

    /// Folds the write-ahead log into the database once it has `pages`. It belongs to the writer because only between
    /// its commits can the log be folded wholly, which is when it starts over instead of growing.
    fn checkpoint(&self, pages: i64) {
        let run = |sql| -> rusqlite::Result<(i64, i64)> {
            self.connection.prepare_cached(sql)?.query_row((), |row| Ok((row.get(1)?, row.get(2)?)))
        };
        let outcome = run("PRAGMA wal_checkpoint(NOOP)").and_then(|(log, folded)| {
            if log - folded < pages { Ok((log, folded)) } else { run("PRAGMA wal_checkpoint(PASSIVE)") }
        });
        if let Err(error) = outcome {
            // Nothing is lost: the write-ahead log stays valid, and the next try may find room or rest.
            tracing::warn!(%error, "checkpoint failed");
        }
    }
}
