//! Workers that live, what is said to them, and what they answer.
//!
//! None of it outlives its use, so no commit here is flushed: a loss of power takes the workers along with their cards.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::rows::{self, column_of, time_of, unsigned};
use super::step::Step;
use super::writer::Durability;
use super::{SqliteStore, sql};
use crate::control::{
    COMMANDS_KEPT_MAX, COMMANDS_MAX, Command, Control, REPLY_KEPT, Reply, Report, WorkerCard,
};
use crate::id::{QueueName, WorkerName};
use crate::store::Result;

#[async_trait]
impl Control for SqliteStore {
    async fn beat(&self, card: &WorkerCard) -> Result<()> {
        let (name, expires) = (card.worker.clone(), column_of(card.expires));
        let card = card_column(card).map_err(|fault| fault.into_error("heartbeat", &self.path))?;
        self.write("heartbeat", Durability::Relaxed, 1, move |step| {
            step.expire_control()?;
            rows::execute(step.connection, sql::WORKER_BEAT, (name.as_str(), expires, card))?;
            Ok(())
        })
        .await
    }

    async fn leave(&self, worker: &WorkerName) -> Result<()> {
        let name = worker.clone();
        self.write("leave", Durability::Relaxed, 1, move |step| {
            rows::execute(step.connection, sql::WORKER_LEAVE, [name.as_str()])?;
            Ok(())
        })
        .await
    }

    async fn workers(&self) -> Result<Vec<WorkerCard>> {
        let now = column_of(self.clock.now());
        self.read("workers", move |connection| workers(connection, now)).await
    }

    async fn send(&self, command: &Command) -> Result<()> {
        command.check_size()?;
        let command = command.clone();
        self.write("send command", Durability::Relaxed, 1, move |step| step.send(&command)).await
    }

    async fn commands_end(&self) -> Result<u64> {
        self.read("commands", |connection| Ok(unsigned(news(connection)?.command))).await
    }

    async fn commands(&self, worker: &WorkerName, after: u64, wait: Duration) -> Result<Vec<(u64, Command)>> {
        let (worker, after) = (worker.clone(), rows::bound(after));
        let look = move |connection: &Connection, now| commands(connection, &worker, after, now);
        self.look_until("commands", self.hub.commands(), wait, look, |found| !found.is_empty()).await
    }

    async fn reply(&self, ticket: &str, reply: &Reply) -> Result<()> {
        reply.check_size()?;
        let (ticket, reply) = (Box::<str>::from(ticket), reply.clone());
        self.write("reply", Durability::Relaxed, 1, move |step| step.reply(&ticket, &reply)).await
    }

    async fn replies(&self, ticket: &str, enough: usize, wait: Duration) -> Result<Vec<Reply>> {
        let ticket = Box::<str>::from(ticket);
        let look = move |connection: &Connection, now| replies(connection, &ticket, now);
        self.look_until("replies", self.hub.replies(), wait, look, |found| found.len() >= enough).await
    }
}

impl Step<'_> {
    fn send(&mut self, command: &Command) -> Result<(), Fault> {
        let number: i64 = rows::first(self.connection, sql::COMMAND_NUMBER, (), |row| row.get(0))?
            .ok_or_else(no_counter)?;
        let oldest_kept = number.saturating_sub(rows::bound(COMMANDS_KEPT_MAX));
        rows::execute(self.connection, sql::COMMANDS_EXPIRE, [self.now, oldest_kept])?;
        let Command { ticket, method, arguments, destination, expires } = command;
        let destination = destination.as_ref().map(|names| serde_json::json!(names).to_string());
        let values =
            (number, column_of(*expires), &**ticket, &**method, arguments.as_str(), destination.as_deref());
        rows::execute(self.connection, sql::COMMAND_PUT, values)?;
        self.events.commanded = true;
        Ok(())
    }

    fn reply(&mut self, ticket: &str, reply: &Reply) -> Result<(), Fault> {
        rows::execute(self.connection, sql::REPLIES_EXPIRE, [replies_since(self.now)])?;
        let values = (ticket, reply.worker.as_str(), self.now, reply.content.as_str());
        if rows::execute(self.connection, sql::REPLY_PUT, values)? > 0 {
            rows::execute(self.connection, sql::REPLY_COUNT, ())?;
            self.events.replied = true;
        }
        Ok(())
    }

    /// Forgets what is out of date.
    pub(super) fn expire_control(&self) -> Result<(), Fault> {
        rows::execute(self.connection, sql::WORKERS_EXPIRE, [self.now])?;
        rows::execute(self.connection, sql::COMMANDS_EXPIRE, [self.now, 0])?;
        rows::execute(self.connection, sql::REPLIES_EXPIRE, [replies_since(self.now)])?;
        Ok(())
    }
}

/// By which those who wait for commands or answers see whether there are new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    pub(super) command: i64,
    pub(super) reply: i64,
}

/// Reads one row.
pub(super) fn news(connection: &Connection) -> Result<News, Fault> {
    let read = |row: &rusqlite::Row<'_>| Ok(News { command: row.get(0)?, reply: row.get(1)? });
    rows::first(connection, sql::CONTROL_NEWS, (), read)?.ok_or_else(no_counter)
}

fn no_counter() -> Fault {
    Fault::Corrupt("the row of counters is gone".to_owned())
}

/// Answers up to this time were kept long enough.
fn replies_since(now: i64) -> i64 {
    now.saturating_sub(i64::try_from(REPLY_KEPT.as_nanos()).unwrap_or(i64::MAX))
}

type CommandColumns = (i64, i64, String, String, String, Option<String>);

fn commands(
    connection: &Connection,
    worker: &WorkerName,
    after: i64,
    now: i64,
) -> Result<Vec<(u64, Command)>, Fault> {
    let mut statement = connection.prepare_cached(sql::COMMANDS_AFTER)?;
    let mut found = statement.query([after, now])?;
    let mut commands = Vec::new();
    while commands.len() < COMMANDS_MAX
        && let Some(row) = found.next()?
    {
        let (number, expires, ticket, method, arguments, destination): CommandColumns =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
        let destination = destination.map(|names| serde_json::from_str(&names)).transpose();
        let command = Command {
            ticket: ticket.into(),
            method: method.into(),
            arguments: rows::json(&arguments)?,
            destination: destination.map_err(|why| Fault::Corrupt(format!("command {number}: {why}")))?,
            expires: time_of(expires),
        };
        if command.is_for(worker) {
            commands.push((unsigned(number), command));
        }
    }
    Ok(commands)
}

fn replies(connection: &Connection, ticket: &str, now: i64) -> Result<Vec<Reply>, Fault> {
    let found: Vec<(String, String)> =
        rows::all(connection, sql::REPLIES_OF, (ticket, replies_since(now)), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let reply = |(worker, content): (String, String)| {
        Ok(Reply { worker: WorkerName::from(worker), content: rows::json(&content)? })
    };
    found.into_iter().map(reply).collect()
}

fn workers(connection: &Connection, now: i64) -> Result<Vec<WorkerCard>, Fault> {
    let found: Vec<(String, i64, String)> =
        rows::all(connection, sql::WORKERS_LIVE, [now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let card = |(name, expires, column): (String, i64, String)| match serde_json::from_str(&column) {
        Ok(column) => Some(card_of(&name, expires, column)),
        Err(why) => {
            // Another version wrote it. It is gone when that worker is, and must not hide the others meanwhile.
            tracing::warn!(worker = %name, %why, "what this worker says of itself cannot be read");
            None
        }
    };
    Ok(found.into_iter().filter_map(card).collect())
}

/// How a [`WorkerCard`] lies in its column, but for what has columns of its own. Times are nanoseconds since 1970.
#[derive(Serialize, Deserialize)]
struct CardColumn {
    node: Box<str>,
    hostname: Box<str>,
    pid: u32,
    version: Box<str>,
    queues: Vec<QueueName>,
    tasks: Vec<Box<str>>,
    concurrency: u32,
    running: u32,
    started: i64,
    beat: i64,
    stopping: bool,
    totals: TotalsColumn,
}

#[derive(Serialize, Deserialize)]
struct TotalsColumn {
    succeeded: u64,
    failed: u64,
    retried: u64,
    revoked: u64,
    handed_back: u64,
    lost: u64,
}

fn card_column(card: &WorkerCard) -> Result<String, Fault> {
    let WorkerCard {
        worker: _,
        node,
        hostname,
        pid,
        version,
        queues,
        tasks,
        concurrency,
        running,
        started,
        beat,
        expires: _,
        stopping,
        totals,
    } = card.clone();
    let Report { succeeded, failed, retried, revoked, handed_back, lost } = totals;
    let totals = TotalsColumn { succeeded, failed, retried, revoked, handed_back, lost };
    let (started, beat) = (column_of(started), column_of(beat));
    let column = CardColumn {
        node,
        hostname,
        pid,
        version,
        queues,
        tasks,
        concurrency,
        running,
        started,
        beat,
        stopping,
        totals,
    };
    serde_json::to_string(&column)
        .map_err(|why| Fault::Unavailable(format!("a card cannot be written: {why}")))
}

fn card_of(name: &str, expires: i64, column: CardColumn) -> WorkerCard {
    let CardColumn {
        node,
        hostname,
        pid,
        version,
        queues,
        tasks,
        concurrency,
        running,
        started,
        beat,
        stopping,
        totals,
    } = column;
    let TotalsColumn { succeeded, failed, retried, revoked, handed_back, lost } = totals;
    WorkerCard {
        worker: WorkerName::from(name),
        node,
        hostname,
        pid,
        version,
        queues,
        tasks,
        concurrency,
        running,
        started: time_of(started),
        beat: time_of(beat),
        expires: time_of(expires),
        stopping,
        totals: Report { succeeded, failed, retried, revoked, handed_back, lost },
    }
}
