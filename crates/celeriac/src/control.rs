//! Which workers there are, and how they are told things: presence and remote control.
//!
//! Commands are a broadcast, as kombu's pidbox has it: each worker reads those that came after it joined and answers
//! those meant for it; whoever asked gathers the answers under a ticket. Nothing here is durable work: commands and
//! answers that are out of date are forgotten.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::clock::Timestamp;
use crate::id::{QueueName, TaskId, WorkerName};
use crate::protocol::event::Event;
use crate::protocol::{Json, LamportClock};
use crate::store::{Error, Result};

/// Knows the workers, and carries commands to them and answers back.
#[async_trait]
pub trait Control: fmt::Debug + Send + Sync + 'static {
    /// Says that a worker lives, with what there is to know of it, until `card.expires`.
    async fn beat(&self, card: &WorkerCard) -> Result<()>;

    /// Says that a worker is gone.
    async fn leave(&self, worker: &WorkerName) -> Result<()>;

    /// The workers whose cards have not expired, by name.
    async fn workers(&self) -> Result<Vec<WorkerCard>>;

    /// Sends a command. The newest [`COMMANDS_KEPT_MAX`] that are not out of date are kept.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for one past [`COMMAND_BYTES_MAX`]; otherwise as any write.
    async fn send(&self, command: &Command) -> Result<()>;

    /// The number of the newest command, where a worker that joins begins to read; 0 when there was none.
    async fn commands_end(&self) -> Result<u64>;

    /// The commands after number `after` that are meant for `worker` and not out of date, each with its number, in
    /// order, at most [`COMMANDS_MAX`]; waits at most `wait` for the first.
    async fn commands(&self, worker: &WorkerName, after: u64, wait: Duration) -> Result<Vec<(u64, Command)>>;

    /// Answers a command. The answer is kept for [`REPLY_KEPT`]; of several by one worker the first counts.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for one past [`REPLY_BYTES_MAX`]; otherwise as any write.
    async fn reply(&self, ticket: &str, reply: &Reply) -> Result<()>;

    /// The answers under a ticket so far, one for each worker, by its name; waits at most `wait` until there are `enough`.
    async fn replies(&self, ticket: &str, enough: usize, wait: Duration) -> Result<Vec<Reply>>;

    /// Notes that tasks are revoked which the store does not know, for workers to refuse when they meet them. The newest
    /// [`REVOKED_NOTED_MAX`] are kept for [`REVOKED_NOTED`]. Only stores on which others send tasks past this library,
    /// as Celery does on Redis, have such tasks; to others every task is known.
    async fn note_revoked(&self, _: &[TaskId]) -> Result<()> {
        Ok(())
    }

    /// The tasks so noted, oldest first.
    async fn noted_revoked(&self) -> Result<Vec<TaskId>> {
        Ok(Vec::new())
    }

    /// Where workers tell what happens, on stores where somebody may listen. `None`: nobody can.
    fn announcer(&self) -> Option<&dyn Announce> {
        None
    }
}

/// Tells what happens, in Celery's events, to whoever listens: monitors, and Celery's workers. Nothing of it is kept.
#[async_trait]
pub trait Announce: fmt::Debug + Send + Sync {
    /// Tells events, in order, each with the clock's next count.
    async fn announce(&self, events: Vec<Event>) -> Result<()>;

    /// The clock of this node, which goes past that of every worker heard.
    fn clock(&self) -> &LamportClock;

    /// Stands in the name of a worker wherever Celery's workers elect one among them, for as long as the answer lives.
    /// The events of the worker are made after `model`.
    fn stand(&self, model: Event) -> Candidacy;
}

/// What a worker is elected to do by the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elected {
    /// What kind of duty it is: `task`.
    pub topic: String,
    /// The duty: for `task` a signature to send.
    pub action: Json,
}

/// A worker that stands for election.
#[derive(Debug)]
pub struct Candidacy {
    duties: mpsc::Receiver<Elected>,
}

impl Candidacy {
    /// One whose duties come from here.
    #[must_use]
    pub fn new(duties: mpsc::Receiver<Elected>) -> Self {
        Self { duties }
    }

    /// Waits until the worker is elected; `None` when it never will be again.
    pub async fn elected(&mut self) -> Option<Elected> {
        self.duties.recv().await
    }
}

/// What workers of this library call themselves in events and answers, as Celery's are `py-celery`.
pub const IDENT: &str = "celeriac";
/// So many commands one call of [`Control::commands`] returns at most.
pub const COMMANDS_MAX: usize = 100;
/// So many commands are kept; when there are more the oldest are forgotten, be they out of date or not.
pub const COMMANDS_KEPT_MAX: u64 = 1_000;
/// The bound on a command's arguments.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// The bound on an answer.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// So many tasks are noted as revoked, Celery's `REVOKES_MAX`.
pub const REVOKED_NOTED_MAX: usize = 50_000;
/// For so long, Celery's `REVOKE_EXPIRES`: three hours.
pub const REVOKED_NOTED: Duration = Duration::from_secs(10_800);
/// How long an answer is kept for who asked.
pub const REPLY_KEPT: Duration = Duration::from_secs(60);

/// What is known of a worker that lives.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerCard {
    /// The incarnation.
    pub worker: WorkerName,
    /// The node name, which the next incarnation may have too.
    pub node: Box<str>,
    /// The machine.
    pub hostname: Box<str>,
    /// The process.
    pub pid: u32,
    /// The version of celeriac, or of what else it is.
    pub version: Box<str>,
    /// The queues it consumes from.
    pub queues: Vec<QueueName>,
    /// The tasks it knows.
    pub tasks: Vec<Box<str>>,
    /// How many tasks it runs at once.
    pub concurrency: u32,
    /// How many it runs now.
    pub running: u32,
    /// When it started.
    pub started: Timestamp,
    /// When it last said that it lives.
    pub beat: Timestamp,
    /// Until when that holds.
    pub expires: Timestamp,
    /// It is shutting down and takes nothing more.
    pub stopping: bool,
    /// What it did so far.
    pub totals: Report,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Runs that ended in SUCCESS.
    pub succeeded: u64,
    /// Runs that ended in FAILURE.
    pub failed: u64,
    /// Runs to be tried again.
    pub retried: u64,
    /// Tasks that ended in REVOKED here.
    pub revoked: u64,
    /// Messages handed back, at shutdown or for another worker.
    pub handed_back: u64,
    /// Runs whose end could not be stored since the lease had passed.
    pub lost: u64,
}

/// A command to workers, in the words of kombu's pidbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Under what the answers are gathered.
    pub ticket: Box<str>,
    /// What to do: `ping`, `stats`, `shutdown` …
    pub method: Box<str>,
    /// With what: a JSON object.
    pub arguments: Json,
    /// The workers it is meant for, by node name or incarnation; `None`: all.
    pub destination: Option<Vec<Box<str>>>,
    /// After this it is not to be done any more.
    pub expires: Timestamp,
}

impl Command {
    /// Whether it is meant for `worker`.
    #[must_use]
    pub fn is_for(&self, worker: &WorkerName) -> bool {
        let worker = worker.as_str();
        let node = worker.split_once('/').map_or(worker, |(node, _)| node);
        self.destination
            .as_ref()
            .is_none_or(|names| names.iter().any(|name| **name == *worker || **name == *node))
    }

    /// Refuses one that is too large, in the name of a store.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn check_size(&self) -> Result<()> {
        check_size(|| format!("the arguments of command {}", self.method), &self.arguments, COMMAND_BYTES_MAX)
    }
}

/// What a worker answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who.
    pub worker: WorkerName,
    /// What: as Celery's, `{"ok": …}` or `{"error": …}`, or the command's own form.
    pub content: Json,
}

impl Reply {
    /// Refuses one that is too large, in the name of a store.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn check_size(&self) -> Result<()> {
        check_size(|| format!("the answer of worker {}", self.worker), &self.content, REPLY_BYTES_MAX)
    }
}

fn check_size(what: impl FnOnce() -> String, json: &Json, bytes_max: usize) -> Result<()> {
    if json.as_str().len() <= bytes_max {
        return Ok(());
    }
    Err(Error::TooLarge { what: what(), bound: format!("{} MiB", bytes_max >> 20) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_for_a_node_or_an_incarnation() {
        let command = |destination: Option<&[&str]>| Command {
            ticket: "t".into(),
            method: "ping".into(),
            arguments: Json::null(),
            destination: destination.map(|names| names.iter().map(|name| Box::from(*name)).collect()),
            expires: Timestamp::MAX,
        };
        let worker = WorkerName::from("celeriac@host/1f");
        for (destination, meant) in [
            (None, true),
            (Some(&[] as &[&str]), false),
            (Some(&["celeriac@host"]), true),
            (Some(&["other", "celeriac@host/1f"]), true),
            (Some(&["celeriac@host/2e", "celeriac", "celeriac@host/"]), false),
        ] {
            assert_eq!(command(destination).is_for(&worker), meant, "{destination:?}");
        }
    }
}
