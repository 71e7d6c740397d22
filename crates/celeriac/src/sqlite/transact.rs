//! Transactions: everything that belongs to one atomic step, in its order.

use std::sync::Arc;

use async_trait::async_trait;

use super::fault::Fault;
use super::lease::Passed;
use super::messages::{Published, Settled};
use super::step::Step;
use super::writer::Durability;
use super::{SqliteStore, bounds};
use crate::backend::Record;
use crate::catalog::AttemptOutcome;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta};
use crate::state::State;
use crate::store::{Fence, Outcome, Result, Transact, Transaction};

#[async_trait]
impl Transact for SqliteStore {
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        if transactions.is_empty() {
            return Ok(Vec::new());
        }
        for transaction in &transactions {
            bounds::check_messages(&transaction.publish)?;
            bounds::check_record(&transaction.record)?;
        }
        let weight = transactions.len();
        let transactions: Arc<[Transaction]> = transactions.into();
        self.write("commit", Durability::Full, weight, move |step| {
            transactions.iter().map(|transaction| step.apply(transaction)).collect()
        })
        .await
    }
}

/// Why a task asks to be tried again, as stored.
fn retry_error<'r>(record: &'r Record, task_id: &TaskId) -> Option<&'r Json> {
    let retry = |meta: &&ResultMeta| meta.state == State::Retry && meta.task_id == *task_id;
    record.results.iter().find(retry).map(|meta| &meta.result)
}

impl Step<'_> {
    /// Carries out a transaction wholly, or refuses it with nothing written.
    pub(super) fn apply(&mut self, transaction: &Transaction) -> Result<Outcome, Fault> {
        let Transaction { fence, publish, record } = transaction;
        self.begin();
        let fired = match &record.fire {
            None => None,
            Some(group) => {
                // Both conditions are looked at before either has an effect.
                if let Some(Fence { tag, .. }) = fence
                    && !self.holds(tag)?
                {
                    return Ok(Outcome::Lost);
                }
                let Some(chord) = self.may_fire(group)? else { return Ok(Outcome::NotReady) };
                Some(chord)
            }
        };
        let mut passed = Passed::default();
        if let Some(Fence { tag, then }) = fence {
            match self.pass_fence(tag, then, !publish.is_empty())? {
                None => return Ok(Outcome::Lost),
                Some(fence) => passed = fence,
            }
        }
        let Passed { mut settled, run } = passed;
        if let Some(chord) = fired {
            self.drop_chord(chord)?;
        }
        let mut written = Vec::with_capacity(record.results.len());
        for meta in &record.results {
            written.push(self.put_result(meta, run.as_ref())?);
        }
        let mut duplicates = Vec::new();
        for routed in publish {
            match self.publish(routed, settled)? {
                Published::New => {}
                Published::Again(seq) => {
                    self.reopened(seq);
                    if settled.take_if(|settled| settled.seq == seq).is_some()
                        && let Some(run) = &run
                    {
                        let error = retry_error(record, &routed.task_id);
                        self.note_attempt(run, self.now, AttemptOutcome::Retried, error)?;
                    }
                }
                Published::Duplicate => duplicates.push(routed.task_id.clone()),
            }
        }
        if let Some(Settled { seq, .. }) = settled
            && !written.contains(&seq)
        {
            self.note_settled(seq, run.as_ref())?;
        }
        let ready = self.keep(record)?;
        Ok(Outcome::Committed { ready, duplicates })
    }

    /// Publishes messages without a condition; returns the duplicates.
    pub(super) fn publish_all(&mut self, messages: &[crate::broker::Routed]) -> Result<Vec<TaskId>, Fault> {
        let mut duplicates = Vec::new();
        for routed in messages {
            if self.publish(routed, None)? == Published::Duplicate {
                duplicates.push(routed.task_id.clone());
            }
        }
        Ok(duplicates)
    }

    /// Writes chords, parts, steps and log records, in this order; returns the chords completed by that.
    fn keep(&mut self, record: &Record) -> Result<Vec<GroupId>, Fault> {
        let mut ready = Vec::new();
        for new in &record.chords {
            if self.open_chord(new)? {
                ready.push(new.group_id.clone());
            }
        }
        for part in &record.parts {
            if self.end_part(part)? {
                ready.push(part.group_id.clone());
            }
        }
        for step in &record.steps {
            self.put_step(step)?;
        }
        for log in &record.log {
            self.append(log)?;
        }
        Ok(ready)
    }
}
