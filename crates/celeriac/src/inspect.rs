//! Asking workers, and telling them: which there are, how they stand, and remote control in Celery's words.

use std::time::Duration;

use crate::app::Celeriac;
use crate::clock::after;
use crate::control::{Command, Reply, WorkerCard};
use crate::error::{Error, Result};
use crate::protocol::JsonMap;

/// How long Celery's tools wait for answers unless told otherwise.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

impl Celeriac {
    /// The workers that live, by name. One that was killed is listed until its last heartbeat has expired.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn workers(&self) -> Result<Vec<WorkerCard>> {
        Ok(self.store().control.workers().await?)
    }

    /// Tells workers to do something and gathers what they answer: `ping`, `stats`, `active`, `pool_grow` … with Celery's
    /// arguments. `destination` names the workers, by node or incarnation; `None` means all. Returns once as many have
    /// answered as there are, or when `wait` is over; at once and with nothing when no worker that lives is meant.
    ///
    /// What a worker could not do it answers with `{"error": …}`, which is an answer like any other. A worker that does
    /// not answer may yet do what it was told, but does not begin it after `wait`.
    ///
    /// # Errors
    /// When `method` is empty, or the store cannot be read or written.
    pub async fn control(
        &self,
        method: &str,
        arguments: JsonMap,
        destination: Option<Vec<Box<str>>>,
        wait: Duration,
    ) -> Result<Vec<Reply>> {
        if method.is_empty() {
            return Err(Error::invalid("method", "name a command, for example ping"));
        }
        let command = Command {
            ticket: uuid::Uuid::new_v4().hyphenated().to_string().into(),
            method: method.into(),
            arguments: arguments.to_json(),
            destination,
            expires: after(self.clock().now(), wait),
        };
        let control = &self.store().control;
        let meant = control.workers().await?.iter().filter(|card| command.is_for(&card.worker)).count();
        if meant == 0 {
            return Ok(Vec::new());
        }
        control.send(&command).await?;
        Ok(control.replies(&command.ticket, meant, wait).await?)
    }
}
