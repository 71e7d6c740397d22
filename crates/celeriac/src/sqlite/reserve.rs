//! Reserving: which messages a worker gets, and in what order.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::fault::Fault;
use super::messages::Spot;
use super::rows::{self, Tag};
use super::sql;
use super::step::Step;
use crate::broker::Delivery;
use crate::id::{QueueName, TaskId, WorkerName};
use crate::protocol::RawMessage;

/// What a worker asked for, as the writer needs it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) worker: WorkerName,
    pub(super) queues: Vec<QueueName>,
    pub(super) limit: usize,
    /// When the leases end, as a column.
    pub(super) expires: i64,
}

/// Messages that come due at once are moved by so many a call, so that one call never holds the file for long.
const DUE_MOVED_MAX: i64 = 1_000;

/// One reservation never takes more; a worker with more free slots asks again.
const RESERVED_MAX: usize = 1_000;

/// Whether a reservation would find anything to write. Looking takes no lock, so that idle workers, who look whenever
/// anything happens, never stand in the way of those who write.
pub(super) fn worth_it(connection: &Connection, queues: &[QueueName], now: i64) -> Result<bool, Fault> {
    if next_due(connection)?.is_some_and(|due| due <= now) {
        return Ok(true);
    }
    for queue in queues {
        if rows::first(connection, sql::READY_ANY, [queue.as_str()], |row| row.get(0))? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// When the next delayed message becomes due.
pub(super) fn next_due(connection: &Connection) -> Result<Option<i64>, Fault> {
    Ok(rows::first(connection, sql::DELAYED_NEXT, (), |row| row.get(0))?.flatten())
}

impl Step<'_> {
    /// Reserves what is due.
    pub(super) fn reserve(&mut self, wanted: &Wanted) -> Result<Vec<Delivery>, Fault> {
        self.move_due(DUE_MOVED_MAX)?;
        let mut queues = Vec::with_capacity(wanted.queues.len());
        let mut names = Vec::with_capacity(wanted.queues.len());
        for name in &wanted.queues {
            if let Some(queue) = self.queue(name)?
                && !queues.contains(&queue)
            {
                queues.push(queue);
                names.push((queue, name));
            }
        }
        self.memory.in_turn(&mut queues);
        let taken = self.choose(&queues, wanted.limit.min(RESERVED_MAX))?;
        if taken.is_empty() {
            return Ok(Vec::new());
        }
        let token = self.next_token()?;
        self.lease_heads(&taken, token, wanted)?;
        self.memory.reserved(token, &wanted.worker, self.now);
        taken
            .iter()
            .map(|spot| {
                let queue = names.iter().find(|(queue, _)| *queue == spot.queue);
                let (_, queue) = queue.expect("messages are taken from these queues only");
                self.delivery(spot, token, queue)
            })
            .collect()
    }

    /// Picks the next messages: the lowest priority number first across all queues, and within it the queues in turns.
    fn choose(&mut self, queues: &[i64], limit: usize) -> Result<Vec<Spot>, Fault> {
        let mut lines: Vec<VecDeque<Spot>> = Vec::with_capacity(queues.len());
        for &queue in queues {
            let line = rows::all(self.connection, sql::READY_PEEK, (queue, rows::limit(limit)), |row| {
                Ok(Spot {
                    queue,
                    priority: row.get(0)?,
                    position: row.get(1)?,
                    seq: row.get(2)?,
                    deliveries: row.get(3)?,
                    begun: row.get(4)?,
                    revoked: row.get(5)?,
                })
            })?;
            lines.push(line.into());
        }
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(priority) = lines.iter().filter_map(|line| line.front()).map(|spot| spot.priority).min()
            else {
                break;
            };
            for line in &mut lines {
                if taken.len() == limit {
                    break;
                }
                if line.front().is_some_and(|spot| spot.priority == priority) {
                    taken.extend(line.pop_front());
                }
            }
        }
        // The last one taken from waits longest for its next turn. Noting the last message of each queue is enough.
        for (at, spot) in taken.iter().enumerate() {
            if taken[at + 1..].iter().take(queues.len()).all(|later| later.queue != spot.queue) {
                self.memory.took_turn(spot.queue);
            }
        }
        Ok(taken)
    }

    /// Moves the chosen messages from their lines to the leases. What is chosen of one line and priority is always its
    /// head, so that two statements move all of it, however many there are.
    fn lease_heads(&mut self, taken: &[Spot], token: i64, wanted: &Wanted) -> Result<(), Fault> {
        let mut heads: Vec<(i64, i64, i64, i64)> = Vec::new();
        for spot in taken {
            match heads.iter_mut().find(|head| (head.0, head.1) == (spot.queue, spot.priority)) {
                Some(head) => {
                    head.2 = spot.position;
                    head.3 += 1;
                }
                None => heads.push((spot.queue, spot.priority, spot.position, 1)),
            }
        }
        for (queue, priority, last, chosen) in heads {
            let values = (token, wanted.worker.as_str(), wanted.expires, queue, priority, last, self.now);
            rows::execute(self.connection, sql::READY_LEASE, values)?;
            let cut = rows::execute(self.connection, sql::READY_CUT, [queue, priority, last])?;
            if rows::limit(cut) != chosen {
                return Err(Fault::Corrupt(format!("a line gave {cut} messages instead of {chosen}")));
            }
            self.count_waiting(queue, -chosen, 0);
        }
        Ok(())
    }

    /// The message of a spot just leased under `token`. Its delivery count is the one before the lease.
    pub(super) fn delivery(&self, spot: &Spot, token: i64, queue: &QueueName) -> Result<Delivery, Fault> {
        let message = rows::first(self.connection, sql::TASK_MESSAGE, [spot.seq], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?))
        })?;
        let (id, head, body) = message
            .ok_or_else(|| Fault::Corrupt(format!("the message of task number {} is gone", spot.seq)))?;
        Ok(Delivery {
            tag: Tag { seq: spot.seq, token }.into(),
            task_id: TaskId::from(id),
            queue: queue.clone(),
            priority: u8::try_from(spot.priority).unwrap_or(9),
            deliveries: rows::count(spot.deliveries + 1),
            begun: spot.begun,
            revoked: spot.revoked > 0,
            message: RawMessage { head: head.into(), body: body.into() },
        })
    }
}
