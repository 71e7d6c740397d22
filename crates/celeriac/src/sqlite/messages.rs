//! Messages: publishing them, where they stand, and moving them between the places in which they may stand.

use rusqlite::{Connection, Row};

use super::fault::Fault;
use super::rows::{self, column_of, count, time_of};
use super::sql;
use super::step::Step;
use crate::broker::{Place, QueueStatus, Routed};
use crate::id::{QueueName, TaskId, WorkerName};
use crate::state::{Phase, State};

/// A message in its place, without its bytes: what moves from place to place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) seq: i64,
    pub(super) queue: i64,
    pub(super) priority: i64,
    pub(super) position: i64,
    pub(super) deliveries: i64,
    pub(super) begun: bool,
    /// 0 no, 1 yes, 2 yes and to be stopped even though it runs.
    pub(super) revoked: i64,
}

/// What is known of one task.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) seq: i64,
    pub(super) place: Place,
    pub(super) has_message: bool,
    /// Its message still lies with those that wait for their time, which may have come: then its phase is
    /// [`Phase::Queued`] all the same.
    pub(super) in_delayed: bool,
    /// Where its message is, meaningful only while that lives.
    pub(super) spot: Spot,
}

impl Known {
    /// Whether the message waits, is held or lies dead.
    pub(super) fn is_live(&self) -> bool {
        self.place.phase != Phase::Settled
    }
}

/// A task whose message this transaction is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) seq: i64,
    /// As in [`Spot::revoked`].
    pub(super) revoked: i64,
}

/// What became of a message to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    New,
    /// Its settled task was given a new message.
    Again(i64),
    Duplicate,
}

impl Step<'_> {
    /// Publishes one message. `settled` is the task whose reservation this very transaction ended, if it did: to publish
    /// that one is a retry.
    pub(super) fn publish(&mut self, routed: &Routed, settled: Option<Settled>) -> Result<Published, Fault> {
        let queue = self.queue_or_new(&routed.queue)?;
        let priority = i64::from(routed.priority.min(9));
        let position = self.next_position()?;
        let message = &routed.message;
        let (id, name, now) = (routed.task_id.as_str(), &*routed.task, self.now);
        let values = (position, id, name, queue, priority, now, &*message.head, &*message.body);
        let (mut seq, mut revoked, mut published) = (position, 0, Published::New);
        if rows::execute(self.connection, sql::TASK_INSERT, values)? == 0 {
            let known = find(self.connection, &routed.task_id, now)?
                .ok_or_else(|| Fault::Corrupt(format!("the index of task ids is wrong about {id}")))?;
            let retried = settled.filter(|settled| settled.seq == known.seq);
            if known.is_live() || (routed.unique && retried.is_none()) {
                return Ok(Published::Duplicate);
            }
            seq = known.seq;
            // Who was asked to stop does not escape by trying again.
            revoked = retried.map_or(0, |settled| settled.revoked);
            published = Published::Again(seq);
            let values = (seq, name, queue, priority, position, now, &*message.head, &*message.body);
            rows::execute(self.connection, sql::TASK_AGAIN, values)?;
            rows::execute(self.connection, sql::RESULT_REOPEN, [seq])?;
            rows::execute(self.connection, sql::TAG_DROP, [seq])?;
        }
        for (tag, place) in routed.tags.iter().zip(0_i64..) {
            rows::execute(self.connection, sql::TAG_PUT, (seq, place, &**tag))?;
        }
        let spot = Spot { seq, queue, priority, position, deliveries: 0, begun: false, revoked };
        self.put(&spot, routed.due.map(column_of))?;
        Ok(published)
    }

    /// Puts a message in line, or aside until `due`.
    pub(super) fn put(&mut self, spot: &Spot, due: Option<i64>) -> Result<(), Fault> {
        let Spot { seq, queue, priority, position, deliveries, begun, revoked } = *spot;
        match due.filter(|due| *due > self.now) {
            Some(due) => {
                let values = (seq, due, queue, priority, position, deliveries, begun, revoked);
                rows::execute(self.connection, sql::DELAYED_PUT, values)?;
                self.count_waiting(queue, 0, 1);
            }
            None => {
                let values = (queue, priority, position, seq, deliveries, begun, revoked);
                rows::execute(self.connection, sql::READY_PUT, values)?;
                self.count_waiting(queue, 1, 0);
            }
        }
        self.events.ready = true;
        Ok(())
    }

    /// Takes a waiting message out of where it waits: with the delayed, or in line.
    pub(super) fn take_waiting(&mut self, spot: &Spot, in_delayed: bool) -> Result<(), Fault> {
        if in_delayed {
            rows::execute(self.connection, sql::DELAYED_TAKE, [spot.seq])?;
            self.count_waiting(spot.queue, 0, -1);
        } else {
            rows::execute(self.connection, sql::READY_TAKE, [spot.queue, spot.priority, spot.position])?;
            self.count_waiting(spot.queue, -1, 0);
        }
        Ok(())
    }

    /// Moves messages whose time has come into their lines, at most `limit`.
    pub(super) fn move_due(&mut self, limit: i64) -> Result<(), Fault> {
        let due = rows::all(self.connection, sql::DELAYED_DUE, [self.now, limit], |row| spot_at(row, 0))?;
        for spot in &due {
            self.take_waiting(spot, true)?;
            self.put(spot, None)?;
        }
        Ok(())
    }

    /// Lets nothing more be taken from a queue, or lets it be taken again.
    pub(super) fn pause(&mut self, name: &QueueName, paused: bool) -> Result<(), Fault> {
        let queue = if paused { Some(self.queue_or_new(name)?) } else { self.queue(name)? };
        if let Some(queue) = queue {
            rows::execute(self.connection, sql::QUEUE_PAUSE, (queue, paused))?;
            // What waits there can be taken once more.
            self.events.ready |= !paused;
        }
        Ok(())
    }

    /// Drops all that waits on a queue, and returns whose it was.
    pub(super) fn purge(&mut self, name: &QueueName) -> Result<Vec<TaskId>, Fault> {
        let Some(queue) = self.queue(name)? else { return Ok(Vec::new()) };
        let ids = rows::all(self.connection, sql::WAITING_IDS, [queue], |row| {
            Ok(TaskId::from(row.get::<_, String>(0)?))
        })?;
        rows::execute(self.connection, sql::WAITING_SETTLE, [queue, self.now])?;
        let ready = rows::execute(self.connection, sql::READY_CLEAR, [queue])?;
        let delayed = rows::execute(self.connection, sql::DELAYED_CLEAR, [queue])?;
        self.count_waiting(queue, -rows::limit(ready), -rows::limit(delayed));
        Ok(ids)
    }
}

/// Reads a [`Spot`] from the columns (seq, queue, priority, position, deliveries, begun, revoked) from `at` on.
pub(super) fn spot_at(row: &Row<'_>, at: usize) -> rusqlite::Result<Spot> {
    Ok(Spot {
        seq: row.get(at)?,
        queue: row.get(at + 1)?,
        priority: row.get(at + 2)?,
        position: row.get(at + 3)?,
        deliveries: row.get(at + 4)?,
        begun: row.get(at + 5)?,
        revoked: row.get(at + 6)?,
    })
}

/// What is known of a task at the time `now`.
pub(super) fn find(connection: &Connection, id: &TaskId, now: i64) -> Result<Option<Known>, Fault> {
    rows::first(connection, sql::PLACE, [id.as_str()], |row| known_at(row, now))
}

/// Reads the columns of `place.sql`.
pub(super) fn known_at(row: &Row<'_>, now: i64) -> rusqlite::Result<Known> {
    let in_delayed = row.get(10)?;
    let due = row.get::<_, Option<i64>>(13)?.filter(|due| *due > now);
    let phase = if row.get(11)? {
        Phase::Reserved
    } else if row.get(9)? {
        Phase::Queued
    } else if in_delayed {
        if due.is_some() { Phase::Delayed } else { Phase::Queued }
    } else if row.get(12)? {
        Phase::Dead
    } else {
        Phase::Settled
    };
    let (seq, revoked): (i64, i64) = (row.get(0)?, row.get(17)?);
    let deliveries = row.get(15)?;
    let spot = Spot {
        seq,
        queue: row.get::<_, Option<i64>>(2)?.unwrap_or(0),
        priority: row.get(4)?,
        position: row.get(5)?,
        deliveries,
        begun: row.get(16)?,
        revoked,
    };
    let place = Place {
        phase,
        task: row.get::<_, String>(1)?.into(),
        queue: QueueName::from(row.get::<_, Option<String>>(3)?.unwrap_or_default()),
        state: row.get::<_, Option<String>>(8)?.map_or(State::Pending, State::from),
        published: time_of(row.get(6)?),
        due: due.map(time_of),
        worker: row.get::<_, Option<String>>(14)?.map(WorkerName::from),
        deliveries: count(deliveries),
        revoked: revoked > 0,
    };
    Ok(Known { seq, place, has_message: row.get(7)?, in_delayed, spot })
}

/// How every queue that holds a message stands at the time `now`.
pub(super) fn queues(connection: &Connection, now: i64) -> Result<Vec<QueueStatus>, Fault> {
    // Both looks are to see the same moment.
    let transaction = connection.unchecked_transaction()?;
    let mut queues = rows::all(&transaction, sql::QUEUE_STATUS, (), |row| {
        Ok(QueueStatus {
            queue: QueueName::from(row.get::<_, String>(0)?),
            ready: rows::unsigned(row.get(1)?),
            delayed: rows::unsigned(row.get(2)?),
            reserved: rows::unsigned(row.get(3)?),
            oldest: row.get::<_, Option<i64>>(4)?.map(time_of),
            paused: row.get(5)?,
        })
    })?;
    let overdue: Vec<(String, i64, i64)> = rows::all(&transaction, sql::DELAYED_OVERDUE, [now], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    transaction.finish()?;
    for (name, count, published) in overdue {
        if let Some(status) = queues.iter_mut().find(|status| status.queue.as_str() == name) {
            let (count, published) = (rows::unsigned(count), time_of(published));
            status.ready += count;
            status.delayed = status.delayed.saturating_sub(count);
            status.oldest = Some(status.oldest.map_or(published, |oldest| oldest.min(published)));
        }
    }
    Ok(queues)
}
