//! Dead letters: messages put aside for a person.

use rusqlite::Connection;

use super::fault::Fault;
use super::messages::{Spot, find};
use super::rows::{self, count, time_of, unsigned};
use super::sql;
use super::step::Step;
use crate::broker::DeadLetter;
use crate::id::{QueueName, TaskId};
use crate::protocol::RawMessage;
use crate::state::Phase;

/// A page of dead letters, oldest first.
pub(super) fn page(connection: &Connection, after: u64, limit: usize) -> Result<Vec<DeadLetter>, Fault> {
    rows::all(connection, sql::DEAD_PAGE, (rows::bound(after), rows::limit(limit)), |row| {
        Ok(DeadLetter {
            number: unsigned(row.get(0)?),
            task_id: TaskId::from(row.get::<_, String>(1)?),
            task: row.get::<_, String>(2)?.into(),
            queue: QueueName::from(row.get::<_, Option<String>>(3)?.unwrap_or_default()),
            reason: row.get(4)?,
            died: time_of(row.get(5)?),
            deliveries: count(row.get(6)?),
            message: RawMessage {
                head: row.get::<_, String>(7)?.into(),
                body: row.get::<_, Vec<u8>>(8)?.into(),
            },
        })
    })
}

impl Step<'_> {
    /// Sends dead letters back to their lines; returns which were dead.
    pub(super) fn revive(&mut self, ids: &[TaskId]) -> Result<Vec<TaskId>, Fault> {
        let mut revived = Vec::new();
        for id in ids {
            let Some(known) =
                find(self.connection, id, self.now)?.filter(|known| known.place.phase == Phase::Dead)
            else {
                continue;
            };
            rows::execute(self.connection, sql::DEAD_TAKE, [known.seq])?;
            // It will run again, and the end of that run must find a state that may still change.
            rows::execute(self.connection, sql::RESULT_REOPEN, [known.seq])?;
            // A person sends it: nothing of its former life holds it up, and it waits behind what waits already.
            let position = self.next_position()?;
            rows::execute(self.connection, sql::TASK_MOVE, [known.seq, position])?;
            let spot = Spot { position, deliveries: 0, begun: false, revoked: 0, ..known.spot };
            self.put(&spot, None)?;
            revived.push(id.clone());
        }
        Ok(revived)
    }

    /// Forgets dead letters; returns which were dead.
    pub(super) fn drop_dead(&mut self, ids: &[TaskId]) -> Result<Vec<TaskId>, Fault> {
        let mut dropped = Vec::new();
        for id in ids {
            let Some(known) =
                find(self.connection, id, self.now)?.filter(|known| known.place.phase == Phase::Dead)
            else {
                continue;
            };
            rows::execute(self.connection, sql::DEAD_TAKE, [known.seq])?;
            self.note_settled(known.seq, None)?;
            dropped.push(id.clone());
        }
        Ok(dropped)
    }
}
