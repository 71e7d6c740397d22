//! Live workers and remote control, ours and Python's as one.
//!
//! A command stands in a log of its own, from which our workers take it by number; and it is a broadcast on kombu's
//! pidbox, which Python's workers hear. What others broadcast there comes into the log as well (`pidbox`), so that a worker
//! knows one source of commands. Answers of ours lie in a hash, those of Python's workers come to a queue as kombu has it;
//! whoever asked reads both.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::logged::LoggedCommand;
use super::pidbox::Mailbox;
use super::value::{self, items};
use crate::clock::{Timestamp, after};
use crate::control::{
    Announce, COMMANDS_MAX, Command, Control, REPLY_KEPT, REVOKED_NOTED, REVOKED_NOTED_MAX, Reply, WorkerCard,
};
use crate::id::{TaskId, WorkerName};
use crate::protocol::Json;
use crate::store::Result;

/// How long Redis keeps answers, by its own clock: longer than they count by ours.
const REPLIES_TTL: Duration = Duration::from_secs(10 * 60);

/// So many tasks are noted by one command.
const NOTED_AT_ONCE: usize = 1_000;

#[async_trait]
impl Control for RedisStore {
    async fn beat(&self, card: &WorkerCard) -> Result<()> {
        self.mailbox.beat(card).await
    }

    async fn leave(&self, worker: &WorkerName) -> Result<()> {
        self.mailbox.leave(worker).await
    }

    async fn workers(&self) -> Result<Vec<WorkerCard>> {
        let mut cards = self.mailbox.cards().await?;
        cards.extend(self.mailbox.python_workers().await);
        cards.sort_by(|one, other| one.worker.cmp(&other.worker));
        Ok(cards)
    }

    async fn send(&self, command: &Command) -> Result<()> {
        command.check_size()?;
        self.mailbox.send(command).await
    }

    async fn commands_end(&self) -> Result<u64> {
        self.mailbox.listen().await?;
        let mut get = redis::cmd("GET");
        get.arg(self.mailbox.counter_key());
        Ok(value::count(&self.link.read("the end of the commands", &get).await?))
    }

    async fn commands(&self, worker: &WorkerName, after: u64, wait: Duration) -> Result<Vec<(u64, Command)>> {
        self.mailbox.listen().await?;
        let look = || self.mailbox.commands_for(worker, after).boxed();
        self.look_until(vec![self.mailbox.log_key()], wait, look, |found| !found.is_empty()).await
    }

    async fn reply(&self, ticket: &str, reply: &Reply) -> Result<()> {
        reply.check_size()?;
        // Nobody wants to know.
        if ticket.is_empty() {
            return Ok(());
        }
        if self.mailbox.reply_to_python(ticket, reply).await? {
            return Ok(());
        }
        let kept = KeptReply { at: value::micros(self.now()), content: reply.content.clone() };
        let key = self.mailbox.replies_key(ticket);
        let mut answer = redis::pipe();
        answer.cmd("HSETNX").arg(&key).arg(reply.worker.as_str()).arg(kept.to_text());
        answer.cmd("PEXPIRE").arg(&key).arg(millis(REPLIES_TTL));
        self.link.pipeline("answer a command", &answer).await?;
        Ok(())
    }

    async fn replies(&self, ticket: &str, enough: usize, wait: Duration) -> Result<Vec<Reply>> {
        let keys = vec![self.mailbox.replies_key(ticket), self.mailbox.python_replies_key(ticket)];
        let look = || self.all_replies(ticket).boxed();
        let found = self.look_until(keys, wait, look, |found| found.len() >= enough).await?;
        if !wait.is_zero() {
            // Whoever answers from here on is too late.
            self.mailbox.unbind(ticket).await?;
        }
        Ok(found)
    }

    async fn note_revoked(&self, ids: &[TaskId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let (key, now) = (self.link.keys().own("revoked"), self.now());
        let mut note = redis::pipe();
        for ids in ids.chunks(NOTED_AT_ONCE) {
            let add = note.cmd("ZADD").arg(&key);
            for id in ids {
                add.arg(value::micros(now)).arg(id.as_str());
            }
        }
        note.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(value::micros(noted_since(now)));
        let beyond = -(REVOKED_NOTED_MAX as i64) - 1;
        note.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(beyond);
        note.cmd("PEXPIRE").arg(&key).arg(millis(REVOKED_NOTED));
        self.link.pipeline("note that tasks are revoked", &note).await?;
        Ok(())
    }

    async fn noted_revoked(&self) -> Result<Vec<TaskId>> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(self.link.keys().own("revoked"));
        range.arg(format!("({}", value::micros(noted_since(self.now())))).arg("+inf");
        let answer = self.link.read("revoked tasks", &range).await?;
        Ok(items(&answer).iter().filter_map(value::text).map(TaskId::from).collect())
    }

    fn announcer(&self) -> Option<&dyn Announce> {
        Some(&*self.mailbox)
    }
}

/// Revocations noted before this are out of date.
fn noted_since(now: Timestamp) -> Timestamp {
    let age = jiff::SignedDuration::try_from(REVOKED_NOTED).unwrap_or(jiff::SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// An answer of a worker of ours.
#[derive(Serialize, Deserialize)]
struct KeptReply {
    at: i64,
    content: Json,
}

impl KeptReply {
    fn to_text(&self) -> String {
        // Of values that are JSON already.
        Json::from_value(self).unwrap_or_default().as_str().to_owned()
    }
}

impl RedisStore {
    /// The answers to a ticket, one for each worker.
    async fn all_replies(&self, ticket: &str) -> Result<Vec<Reply>> {
        let mut found = self.kept_replies(ticket).await?;
        found.extend(self.mailbox.python_replies(ticket).await?.into_iter().map(|reply| Reply {
            worker: WorkerName::from(reply.worker.unwrap_or(reply.node)),
            content: reply.content,
        }));
        // Stable, so that the first answer of a worker stays the first.
        found.sort_by(|one, other| one.worker.cmp(&other.worker));
        found.dedup_by(|later, first| later.worker == first.worker);
        Ok(found)
    }

    async fn kept_replies(&self, ticket: &str) -> Result<Vec<Reply>> {
        let mut get = redis::cmd("HGETALL");
        get.arg(self.mailbox.replies_key(ticket));
        let answer = self.link.read("answers", &get).await?;
        let now = self.now();
        let reply = |(worker, kept): (&Value, &Value)| {
            let kept: KeptReply = Json::parse(value::text(kept)?).ok()?.to().ok()?;
            let at = Timestamp::from_microsecond(kept.at).ok()?;
            (after(at, REPLY_KEPT) > now).then(|| {
                Some(Reply { worker: WorkerName::from(value::text(worker)?), content: kept.content })
            })?
        };
        Ok(value::pairs(&answer).into_iter().filter_map(reply).collect())
    }
}

impl Mailbox {
    /// The commands in the log after `after` that are meant for a worker.
    async fn commands_for(&self, worker: &WorkerName, after: u64) -> Result<Vec<(u64, Command)>> {
        let now = self.now();
        let mut from = after;
        loop {
            let mut range = redis::cmd("XRANGE");
            range.arg(self.log_key()).arg(format!("({from}-0")).arg("+").arg("COUNT").arg(COMMANDS_MAX);
            let answer = self.link().read("commands", &range).await?;
            let page = items(&answer);
            let mut found = Vec::new();
            for entry in page {
                let [number, fields] = items(entry) else { continue };
                let number = value::lossy(number);
                let Some(number) = number.split('-').next().and_then(|number| number.parse().ok()) else {
                    continue;
                };
                from = number;
                let logged =
                    value::pairs(fields).first().and_then(|(_, command)| LoggedCommand::read(command));
                let Some(logged) = logged else { continue };
                let meant = logged.is_for(worker);
                let command = logged.into_command();
                if meant && command.expires > now {
                    found.push((number, command));
                }
            }
            if !found.is_empty() || page.len() < COMMANDS_MAX {
                return Ok(found);
            }
        }
    }
}

/// A time span as Redis takes it.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
