//! Sending a task again that is over.

use crate::app::Celeriac;
use crate::error::Result;
use crate::id::{TaskId, WorkerName};
use crate::protocol::Message;
use crate::state::Phase;
use crate::store::Transaction;

/// What [`Celeriac::run_again`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// It was finished, and waits again under its id.
    Sent,
    /// It was a dead letter, and waits again under its id.
    Revived,
    /// Nothing: it waits.
    Waiting,
    /// Nothing: a worker runs it.
    Running {
        /// The worker; `None` when that is not known.
        worker: Option<WorkerName>,
    },
    /// Nothing: it is finished, and its message is not kept or cannot be read.
    NoMessage {
        /// What is wrong with the message.
        why: String,
    },
    /// No store knows the id.
    Unknown,
}

impl Celeriac {
    /// Sends a task again that is finished or dead, under its id, with the arguments, queue, priority and limits it had.
    /// Its retries are counted from zero; its eta and its time to expire are past and do not hold. Durable steps that it
    /// finished are not run again, and its log goes on, where broker and backend are one store. What followed it follows
    /// it again.
    ///
    /// # Errors
    /// When the store fails. After an error the task may or may not wait again; asking again is safe.
    pub async fn run_again(&self, task_id: &TaskId) -> Result<Again> {
        let Some(record) = self.store().catalog.task(task_id).await? else { return Ok(Again::Unknown) };
        let place = record.listed.place;
        match place.phase {
            Phase::Delayed | Phase::Queued => Ok(Again::Waiting),
            Phase::Reserved => Ok(Again::Running { worker: place.worker }),
            Phase::Dead => {
                self.forget_apart(task_id).await?;
                let revived = self.store().broker.revive(std::slice::from_ref(task_id)).await?;
                Ok(if revived.is_empty() { Again::Waiting } else { Again::Revived })
            }
            Phase::Settled => {
                let Some(message) = record.message else {
                    return Ok(Again::NoMessage { why: "its message is not kept any more".to_owned() });
                };
                let message = match Message::decode(&message) {
                    Ok(message) => message,
                    Err(why) => return Ok(Again::NoMessage { why: why.to_string() }),
                };
                let routed = crate::canvas::again(message, &self.planner())?;
                self.forget_apart(task_id).await?;
                let duplicates = self.send(Transaction::publish(vec![routed])).await?;
                // Somebody else was faster.
                Ok(if duplicates.is_empty() { Again::Sent } else { Again::Waiting })
            }
        }
    }

    /// A backend apart from the broker does not know of the new life, and keeps the old end until it is forgotten, log and
    /// steps with it.
    async fn forget_apart(&self, task_id: &TaskId) -> Result<()> {
        if !self.store().transact.is_atomic() {
            self.store().backend.forget(std::slice::from_ref(task_id)).await?;
        }
        Ok(())
    }
}
