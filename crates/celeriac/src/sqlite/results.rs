//! States and results, durable steps, and forgetting both.

use rusqlite::Connection;

use super::attempts::Run;
use super::fault::Fault;
use super::rows::{self, column_of, time_of};
use super::sql;
use super::step::{Looked, Step};
use crate::backend::StepRecord;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta};
use crate::state::State;

/// What is stored under an id.
pub(super) fn fetch(connection: &Connection, id: &TaskId) -> Result<Option<ResultMeta>, Fault> {
    type Columns = (String, Option<String>, Option<String>, Option<String>, Option<i64>, [Option<String>; 3]);
    let columns: Option<Columns> = rows::first(connection, sql::RESULT_FETCH, [id.as_str()], |row| {
        let rest = [row.get(5)?, row.get(6)?, row.get(7)?];
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, rest))
    })?;
    let Some((state, result, traceback, children, date_done, [group, parent, extended])) = columns else {
        return Ok(None);
    };
    Ok(Some(ResultMeta {
        task_id: id.clone(),
        state: State::from(state),
        result: result.as_deref().map_or_else(|| Ok(Json::null()), rows::json)?,
        traceback,
        children: children.as_deref().map(rows::children_of).transpose()?,
        date_done: date_done.map(time_of),
        group_id: group.map(GroupId::from),
        parent_id: parent.map(TaskId::from),
        extended: extended.as_deref().map(rows::extended_of).transpose()?,
    }))
}

/// Whether a task has a final state.
pub(super) fn is_finished(connection: &Connection, id: &TaskId) -> Result<bool, Fault> {
    Ok(rows::first(connection, sql::RESULT_FINISHED, [id.as_str()], |_| Ok(()))?.is_some())
}

/// The value of a finished durable step.
pub(super) fn step(connection: &Connection, id: &TaskId, name: &str) -> Result<Option<Json>, Fault> {
    let value: Option<String> =
        rows::first(connection, sql::STEP_FIND, [id.as_str(), name], |row| row.get(0))?;
    value.as_deref().map(rows::json).transpose()
}

impl Step<'_> {
    /// The number of a task, if it is known.
    pub(super) fn seq(&self, id: &TaskId) -> Result<Option<i64>, Fault> {
        rows::first(self.connection, sql::TASK_SEQ, [id.as_str()], |row| row.get(0))
    }

    /// The number of a task and whether it was finished before this transaction; `None` for an unknown one. Results and
    /// log records of one transaction mostly belong to one task, which is looked up once.
    pub(super) fn look(&mut self, id: &TaskId) -> Result<Option<Looked>, Fault> {
        if let Some(looked) = self.looked.get(id) {
            return Ok(Some(*looked));
        }
        let looked = rows::first(self.connection, sql::TASK_LOOK, [id.as_str()], |row| {
            Ok(Looked { seq: row.get(0)?, finished: row.get(1)? })
        })?;
        if let Some(looked) = looked {
            self.looked.insert(id.clone(), looked);
        }
        Ok(looked)
    }

    fn look_or_bare(&mut self, id: &TaskId, name: &str) -> Result<(i64, bool), Fault> {
        if let Some(looked) = self.look(id)? {
            return Ok((looked.seq, false));
        }
        let seq = self.next_position()?;
        rows::execute(self.connection, sql::TASK_BARE, (seq, id.as_str(), name, self.now))?;
        self.looked.insert(id.clone(), Looked { seq, finished: false });
        Ok((seq, true))
    }

    /// Stores a result, unless a different final state is stored; returns the task's number. `run` is the run that this
    /// transaction ends, if it does.
    pub(super) fn put_result(&mut self, meta: &ResultMeta, run: Option<&Run>) -> Result<i64, Fault> {
        let name = meta.extended.as_ref().map_or("", |extended| &extended.name);
        let (seq, _) = self.look_or_bare(&meta.task_id, name)?;
        let children = meta.children.as_deref().map(rows::children_column);
        let extended = meta.extended.as_ref().map(rows::extended_column).transpose()?;
        // Most results are null and carry nothing else.
        let result = Some(meta.result.as_str()).filter(|text| *text != "null");
        let run = run.filter(|run| run.seq == seq && meta.state.is_ready());
        let values = rusqlite::params![
            seq,
            meta.state.as_str(),
            self.now,
            result,
            meta.traceback,
            children,
            meta.date_done.map(column_of),
            meta.group_id.as_ref().map(GroupId::as_str),
            meta.parent_id.as_ref().map(TaskId::as_str),
            extended,
            run.map(|run| run.worker.as_str()),
            run.map(|run| run.since),
        ];
        let stored = rows::execute(self.connection, sql::RESULT_PUT, values)? == 1;
        if stored && meta.state.is_ready() {
            self.events.finished.push(meta.task_id.clone());
        }
        Ok(seq)
    }

    /// Notes that a message is settled, for a task of which this commit stores no result, and by which run.
    pub(super) fn note_settled(&mut self, seq: i64, run: Option<&Run>) -> Result<(), Fault> {
        let values = (seq, self.now, run.map(|run| run.worker.as_str()), run.map(|run| run.since));
        rows::execute(self.connection, sql::RESULT_SETTLE, values)?;
        Ok(())
    }

    /// Keeps the value of a durable step. It is kept for an unknown task too: nobody is to pay for it twice.
    pub(super) fn put_step(&mut self, record: &StepRecord) -> Result<(), Fault> {
        let (seq, bare) = self.look_or_bare(&record.task_id, "")?;
        if bare {
            self.note_settled(seq, None)?;
        }
        rows::execute(self.connection, sql::STEP_PUT, (seq, &*record.name, record.value.as_str()))?;
        Ok(())
    }

    /// Whether the message of a task lives, and whether it has one.
    pub(super) fn live(&self, seq: i64) -> Result<Option<(bool, bool)>, Fault> {
        rows::first(self.connection, sql::LIVE, [seq], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// The stored state of a task.
    pub(super) fn state(&self, seq: i64) -> Result<State, Fault> {
        let state: Option<String> = rows::first(self.connection, sql::RESULT_STATE, [seq], |row| row.get(0))?;
        Ok(state.map_or(State::Pending, State::from))
    }

    /// Forgets the result, the log and the steps of a task that is finished; the task itself too, unless its message
    /// still lives (a dead letter does). Says whether it was finished.
    pub(super) fn forget(&mut self, seq: i64) -> Result<bool, Fault> {
        let Some((live, has_message)) = self.live(seq)? else { return Ok(false) };
        let settled = has_message && !live;
        if !settled && !self.state(seq)?.is_ready() {
            return Ok(false);
        }
        self.erase(seq, live)?;
        Ok(true)
    }

    /// Forgets all there is of a task, or all but the task and its message when that is `live`.
    pub(super) fn erase(&mut self, seq: i64, live: bool) -> Result<(), Fault> {
        rows::execute(self.connection, sql::RESULT_DROP, [seq])?;
        rows::execute(self.connection, sql::LOG_DROP, [seq])?;
        rows::execute(self.connection, sql::STEP_DROP, [seq])?;
        if !live {
            rows::execute(self.connection, sql::ATTEMPT_DROP, [seq])?;
            rows::execute(self.connection, sql::TAG_DROP, [seq])?;
            rows::execute(self.connection, sql::TASK_DROP, [seq])?;
        }
        Ok(())
    }
}
