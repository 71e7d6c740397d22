//! Workers that live, what is said to them, and what they answer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;

use super::{Found, MemoryStore};
use crate::clock::{Timestamp, after};
use crate::control::{COMMANDS_KEPT_MAX, COMMANDS_MAX, Command, Control, REPLY_KEPT, Reply, WorkerCard};
use crate::id::WorkerName;
use crate::store::Result;

/// Everything about workers.
#[derive(Debug, Default)]
pub(super) struct Panel {
    cards: BTreeMap<WorkerName, WorkerCard>,
    commands: VecDeque<(u64, Command)>,
    /// The number of the newest command, forgotten or not.
    newest: u64,
    replies: HashMap<Box<str>, BTreeMap<WorkerName, (Timestamp, Reply)>>,
}

impl Panel {
    /// Forgets what is out of date.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.cards.retain(|_, card| card.expires > now);
        self.commands.retain(|(_, command)| command.expires > now);
        self.replies.retain(|_, replies| {
            replies.retain(|_, (at, _)| after(*at, REPLY_KEPT) > now);
            !replies.is_empty()
        });
    }

    fn send(&mut self, command: &Command) {
        self.newest += 1;
        self.commands.push_back((self.newest, command.clone()));
        while self.commands.len() as u64 > COMMANDS_KEPT_MAX {
            self.commands.pop_front();
        }
    }

    fn commands(&self, worker: &WorkerName, after: u64, now: Timestamp) -> Vec<(u64, Command)> {
        let later = self.commands.iter().skip_while(|(number, _)| *number <= after);
        let meant = later.filter(|(_, command)| command.expires > now && command.is_for(worker));
        meant.take(COMMANDS_MAX).cloned().collect()
    }

    fn replies(&self, ticket: &str, now: Timestamp) -> Vec<Reply> {
        let replies = self.replies.get(ticket).into_iter().flat_map(BTreeMap::values);
        let kept = replies.filter(|(at, _)| after(*at, REPLY_KEPT) > now);
        kept.map(|(_, reply)| reply.clone()).collect()
    }
}

#[async_trait]
impl Control for MemoryStore {
    async fn beat(&self, card: &WorkerCard) -> Result<()> {
        self.write(|contents, now| {
            contents.panel.expire(now);
            contents.panel.cards.insert(card.worker.clone(), card.clone());
        });
        Ok(())
    }

    async fn leave(&self, worker: &WorkerName) -> Result<()> {
        self.write(|contents, _| contents.panel.cards.remove(worker));
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<WorkerCard>> {
        Ok(self.read(|contents, now| {
            contents.panel.cards.values().filter(|card| card.expires > now).cloned().collect()
        }))
    }

    async fn send(&self, command: &Command) -> Result<()> {
        command.check_size()?;
        self.write(|contents, now| {
            contents.panel.expire(now);
            contents.panel.send(command);
        });
        Ok(())
    }

    async fn commands_end(&self) -> Result<u64> {
        Ok(self.read(|contents, _| contents.panel.newest))
    }

    async fn commands(&self, worker: &WorkerName, after: u64, wait: Duration) -> Result<Vec<(u64, Command)>> {
        let look = |contents: &mut super::Contents, now| {
            let found = contents.panel.commands(worker, after, now);
            if found.is_empty() { Found::Not { due: None } } else { Found::Yes(found) }
        };
        Ok(self.wait_for(wait, look).await.unwrap_or_default())
    }

    async fn reply(&self, ticket: &str, reply: &Reply) -> Result<()> {
        reply.check_size()?;
        self.write(|contents, now| {
            contents.panel.expire(now);
            let replies = contents.panel.replies.entry(ticket.into()).or_default();
            replies.entry(reply.worker.clone()).or_insert_with(|| (now, reply.clone()));
        });
        Ok(())
    }

    async fn replies(&self, ticket: &str, enough: usize, wait: Duration) -> Result<Vec<Reply>> {
        let look = |contents: &mut super::Contents, now| {
            let found = contents.panel.replies(ticket, now);
            if found.len() < enough { Found::Not { due: None } } else { Found::Yes(found) }
        };
        let found = self.wait_for(wait, look).await;
        Ok(found.unwrap_or_else(|| self.read(|contents, now| contents.panel.replies(ticket, now))))
    }
}
