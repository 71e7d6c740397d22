//! Runs: who ran a task and since when, and those runs that did not end theirs.

use rusqlite::Row;

use super::fault::Fault;
use super::step::Step;
use super::{rows, sql};
use crate::catalog::{AttemptOutcome, TaskRecord};
use crate::id::WorkerName;
use crate::protocol::Json;

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) seq: i64,
    pub(super) worker: WorkerName,
    /// When its message was reserved.
    pub(super) since: i64,
}

impl Run {
    /// Reads the columns (worker, since) from `at` on; `None` for a reservation that was not to be run.
    pub(super) fn at(row: &Row<'_>, seq: i64, at: usize) -> rusqlite::Result<Option<Self>> {
        let Some(since) = row.get(at + 1)? else { return Ok(None) };
        let worker = WorkerName::from(row.get_ref(at)?.as_str()?);
        Ok(Some(Self { seq, worker, since }))
    }
}

impl Step<'_> {
    /// Notes a run that did not end its task, and forgets the oldest past [`TaskRecord::ATTEMPTS_MAX`].
    pub(super) fn note_attempt(
        &mut self,
        run: &Run,
        ended: i64,
        outcome: AttemptOutcome,
        error: Option<&Json>,
    ) -> Result<(), Fault> {
        let Run { seq, worker, since } = run;
        let values = (seq, worker.as_str(), since, ended, outcome.as_str(), error.map(Json::as_str));
        let number: i64 =
            rows::first(self.connection, sql::ATTEMPT_PUT, values, |row| row.get(0))?.unwrap_or_default();
        let forgotten = number - rows::limit(TaskRecord::ATTEMPTS_MAX);
        if forgotten > 0 {
            rows::execute(self.connection, sql::ATTEMPT_TRIM, [*seq, forgotten])?;
        }
        Ok(())
    }
}
