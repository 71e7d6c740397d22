//! What a run in another runtime reports through its [`Context`]: the same records and steps, in the pieces in which they
//! come over a socket.

use std::sync::PoisonError;

use super::context::{Context, JournalAnswer, StepError};
use super::error::{CancelReason, Cancelled};
use crate::backend::Record;
use crate::envelopes::Envelopes;
use crate::error::Error;
use crate::protocol::{Json, Message};

/// A durable step that is about to be taken.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundStep {
    /// Its name with the count of its uses in this run, under which its value is kept.
    pub key: String,
    /// Its value, when it was taken before.
    pub value: Option<Json>,
}

impl Context {
    /// As [`emit`](Self::emit), of several records at once and in order: they are written in one step.
    pub async fn emit_all(&self, records: &[(String, Json)]) {
        let found: Vec<_> = records.iter().filter_map(|(event, data)| self.record(event, data)).collect();
        if found.is_empty() {
            return;
        }
        let log = self.announce().into_iter().chain(found).collect();
        // As with one: nobody is left to tell.
        let _ = self.write(Record { log, ..Record::default() }).await;
    }

    /// Publishes and stores what a runtime without a store of its own hands over in the midst of a run. States, results
    /// and parts are written under the run's lease. A message of the run's own id is its next life, and goes with its end.
    ///
    /// # Errors
    /// The lease is lost, or the messages cannot be stored.
    pub async fn hand_over(&self, mut envelopes: Envelopes) -> Result<(), StepError> {
        let own = self.task_id().clone();
        let (again, messages) =
            std::mem::take(&mut envelopes.messages).into_iter().partition(|sent| sent.task_id == own);
        let (results, parts) = (std::mem::take(&mut envelopes.results), std::mem::take(&mut envelopes.parts));
        envelopes.messages = messages;
        for sent in &mut envelopes.messages {
            // Delivered again, a task sends what follows it under the same ids; once is enough.
            let head = Message::decode_head(&sent.message).ok().flatten();
            sent.unique |= head.and_then(|head| head.headers.parent_id).as_deref() == Some(own.as_str());
        }
        self.hand_over_late(Envelopes { messages: again, ..Envelopes::default() });
        if !envelopes.messages.is_empty() || !envelopes.chords.is_empty() {
            self.app().send_envelopes(envelopes).await.map_err(|error| match error {
                Error::Store(error) => StepError::Store(error),
                other => StepError::Failed(other.into()),
            })?;
        }
        if results.is_empty() && parts.is_empty() {
            return Ok(());
        }
        match self.write(Record { results, parts, ..Record::default() }).await {
            JournalAnswer::Written => Ok(()),
            JournalAnswer::Lost => Err(StepError::Cancelled(Cancelled(CancelReason::LeaseLost))),
        }
    }

    /// The same of what belongs to the run's end: it is written with that, in one step, or not at all.
    pub fn hand_over_late(&self, envelopes: Envelopes) {
        self.late().lock().unwrap_or_else(PoisonError::into_inner).push(envelopes);
    }

    pub(crate) fn take_late(&self) -> Vec<Envelopes> {
        std::mem::take(&mut *self.late().lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until everything that was reported is written.
    pub async fn write_out(&self) {
        self.flush().await;
    }

    /// The first half of [`step`](Self::step): what is known of it.
    ///
    /// # Errors
    /// The reason to stop, or why the store cannot be asked.
    pub async fn find_step(&self, name: &str) -> Result<FoundStep, StepError> {
        let key = self.step_name(name);
        let value = self.finished_step(&key).await?;
        Ok(FoundStep { key, value })
    }

    /// The second half: keeps what it has returned.
    ///
    /// # Errors
    /// The lease is lost, and with it the right to write.
    pub async fn store_step(&self, key: &str, value: &Json) -> Result<(), StepError> {
        self.finish_step(key, value).await
    }
}
