//! The backend's half.

use std::time::Duration;

use async_trait::async_trait;

use super::step::Step;
use super::writer::Durability;
use super::{SqliteStore, bounds, chords, logs, results};
use crate::backend::{Backend, Check, FeedRecord, LogPage, ReadyChord, Record, Recorded, Watch};
use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta};
use crate::store::{Error, Outcome, Result, Transaction};

#[async_trait]
impl Backend for SqliteStore {
    async fn record(&self, records: Vec<Record>) -> Result<Vec<Recorded>> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        for record in &records {
            bounds::check_record(record)?;
        }
        let weight = records.len();
        self.write("record", Durability::Full, weight, move |step| {
            let outcome = |record| {
                let transaction = Transaction { record, ..Transaction::default() };
                Ok(match step.apply(&transaction)? {
                    Outcome::Committed { ready, .. } => Recorded::Written { ready },
                    Outcome::Lost | Outcome::NotReady => Recorded::NotReady,
                })
            };
            records.into_iter().map(outcome).collect()
        })
        .await
    }

    async fn fetch(&self, ids: &[TaskId]) -> Result<Vec<Option<ResultMeta>>> {
        let ids = ids.to_vec();
        self.read("fetch", move |connection| ids.iter().map(|id| results::fetch(connection, id)).collect())
            .await
    }

    async fn wait(&self, watch: &Watch, wait: Duration) -> Result<bool> {
        let mut ticket = self.hub.enter(watch.clone());
        // The first look is not counted against the wait: what is there already is never missed.
        let closed = || Error::unavailable("wait", "the store is closed");
        match (&mut ticket.looked).await {
            Ok(looked) => looked.map_err(|fault| fault.into_error("wait", &self.path))?,
            Err(_) => return Err(closed()),
        }
        match ticket.there.try_recv() {
            Ok(()) => return Ok(true),
            Err(tokio::sync::oneshot::error::TryRecvError::Closed) => return Err(closed()),
            Err(tokio::sync::oneshot::error::TryRecvError::Empty) => {}
        }
        match tokio::time::timeout(wait, &mut ticket.there).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Ok(false),
        }
    }

    async fn forget(&self, ids: &[TaskId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids = ids.to_vec();
        self.write("forget", Durability::Full, ids.len(), move |step: &mut Step<'_>| {
            for id in &ids {
                if let Some(seq) = step.seq(id)? {
                    step.forget(seq)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn sweep(&self, done_before: Timestamp, limit: usize) -> Result<u64> {
        self.sweep_once(done_before, limit).await
    }

    async fn log(&self, task_id: &TaskId, after: u64, limit: usize) -> Result<Option<LogPage>> {
        let id = task_id.clone();
        self.read("log", move |connection| logs::page(connection, &id, after, limit)).await
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedRecord>> {
        self.read("feed", move |connection| logs::feed(connection, after, limit)).await
    }

    async fn feed_end(&self) -> Result<u64> {
        self.read("feed", logs::feed_end).await
    }

    async fn step(&self, task_id: &TaskId, name: &str) -> Result<Option<Json>> {
        let (id, name) = (task_id.clone(), name.to_owned());
        self.read("step", move |connection| results::step(connection, &id, &name)).await
    }

    async fn chord(&self, group_id: &GroupId) -> Result<Option<ReadyChord>> {
        let id = group_id.clone();
        self.read("chord", move |connection| chords::find(connection, &id)).await
    }

    async fn ready_chords(&self, limit: usize) -> Result<Vec<GroupId>> {
        self.read("chords", move |connection| chords::ready(connection, limit)).await
    }

    async fn save_group(&self, group_id: &GroupId, tuple: &Json) -> Result<()> {
        let (id, tuple) = (group_id.clone(), tuple.clone());
        self.write("save group", Durability::Full, 1, move |step| step.save_group(&id, &tuple)).await
    }

    async fn group(&self, group_id: &GroupId) -> Result<Option<Json>> {
        let id = group_id.clone();
        self.read("group", move |connection| chords::group(connection, &id)).await
    }

    async fn delete_group(&self, group_id: &GroupId) -> Result<()> {
        let id = group_id.clone();
        self.write("delete group", Durability::Full, 1, move |step| step.delete_group(&id)).await
    }

    async fn check(&self) -> Result<Vec<Check>> {
        let problems = SqliteStore::check(self).await?;
        let stats = self.stats().await?;
        let library = Check { what: "SQLite", well: true, text: rusqlite::version().to_owned() };
        let integrity = Check {
            what: "integrity",
            well: problems.is_empty(),
            text: match &problems[..] {
                [] => "every page, and every promise of the layout, holds".to_owned(),
                [first, rest @ ..] => {
                    let more = rest.len();
                    format!(
                        "{first} (and {more} more); stop the workers and restore a backup, or start with a fresh file"
                    )
                }
            },
        };
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let size = Check {
            what: "size",
            well: true,
            text: format!(
                "{} tasks and {} log records in {} MiB, {} MiB of them free; write-ahead log {} MiB",
                stats.tasks,
                stats.log_records,
                mebibytes(stats.pages * stats.page_bytes),
                mebibytes(stats.free_pages * stats.page_bytes),
                mebibytes(stats.wal_bytes),
            ),
        };
        Ok(vec![library, integrity, size])
    }
}
