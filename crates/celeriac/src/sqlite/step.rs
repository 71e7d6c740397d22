//! What the statements of one commit share.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rusqlite::Connection;

use super::fault::Fault;
use super::{rows, sql};
use crate::id::{QueueName, TaskId, WorkerName};

/// What the writer remembers from commit to commit.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Numbers of queues. Rows of queues are never deleted, so an entry stays true unless its commit failed.
    queues: HashMap<QueueName, i64>,
    /// When each queue was last taken from, in turns of a counter: within a priority the one that waited longest goes
    /// first.
    served: HashMap<i64, u64>,
    turn: u64,
    /// The newest reservations made here: token, worker, since when. Whoever settles mostly reserved in the same process,
    /// and need not ask the file who ran the task. What a token stands for never changes, but its commit may fail.
    reservations: VecDeque<(i64, WorkerName, i64)>,
}

/// Reservations remembered; each may be of many messages. Those of older ones are looked up.
const RESERVATIONS_REMEMBERED_MAX: usize = 1_000;

/// Past so many queues the memory is emptied; it only saves look-ups, and turns start over.
const QUEUES_REMEMBERED_MAX: usize = 10_000;

impl Memory {
    /// Forgets what a failed commit may have taught.
    pub(super) fn rolled_back(&mut self) {
        self.queues.clear();
        self.reservations.clear();
    }

    /// Notes who holds the messages reserved under a new token.
    pub(super) fn reserved(&mut self, token: i64, worker: &WorkerName, since: i64) {
        if self.reservations.len() >= RESERVATIONS_REMEMBERED_MAX {
            self.reservations.pop_front();
        }
        self.reservations.push_back((token, worker.clone(), since));
    }

    /// Who reserved under a token, and when, if that was here and not long ago.
    pub(super) fn reservation(&self, token: i64) -> Option<(WorkerName, i64)> {
        let at = self.reservations.binary_search_by_key(&token, |(token, ..)| *token).ok()?;
        let (_, worker, since) = &self.reservations[at];
        Some((worker.clone(), *since))
    }

    /// Orders queues so that the one not taken from for longest comes first.
    pub(super) fn in_turn(&self, queues: &mut [i64]) {
        queues.sort_by_key(|queue| self.served.get(queue).copied().unwrap_or(0));
    }

    /// Notes that a message was taken from `queue`.
    pub(super) fn took_turn(&mut self, queue: i64) {
        if self.served.len() >= QUEUES_REMEMBERED_MAX {
            self.served.clear();
        }
        self.turn += 1;
        self.served.insert(queue, self.turn);
    }
}

/// What happened in a commit that somebody may wait for.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// A message waits that did not wait before, or the next due time moved.
    pub(super) ready: bool,
    /// A held message was revoked.
    pub(super) revoked: bool,
    /// A command was sent to workers.
    pub(super) commanded: bool,
    /// A worker answered one.
    pub(super) replied: bool,
    /// Tasks that reached a final state.
    pub(super) finished: Vec<TaskId>,
    /// Task logs that grew, and how far.
    pub(super) logged: Vec<(TaskId, u64)>,
    /// The newest number of the feed, when it grew.
    pub(super) fed: Option<u64>,
}

impl Events {
    /// Whether there is anything to tell.
    pub(super) fn any(&self) -> bool {
        self.ready
            || self.revoked
            || self.commanded
            || self.replied
            || !self.finished.is_empty()
            || !self.logged.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    position: i64,
    token: i64,
    number: i64,
}

/// What a look at a task found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) seq: i64,
    /// Its state was final before the present transaction.
    pub(super) finished: bool,
}

/// One commit in the making. Its methods live beside the tables that they write: `messages`, `lease`, `results` and so
/// on. None of them leaves a half-done effect behind a refusal: they look before they write, because what shares the
/// commit must not suffer.
pub(super) struct Step<'c> {
    pub(super) connection: &'c Connection,
    pub(super) memory: &'c mut Memory,
    /// The time of this commit, as a column.
    pub(super) now: i64,
    /// Records kept for each task's log.
    pub(super) log_bound: i64,
    pub(super) events: Events,
    /// Tasks looked up in the present transaction.
    pub(super) looked: HashMap<TaskId, Looked>,
    counters: Option<(Counters, Counters)>,
    waiting: BTreeMap<i64, (i64, i64)>,
}

impl<'c> Step<'c> {
    pub(super) fn new(connection: &'c Connection, memory: &'c mut Memory, now: i64, log_bound: i64) -> Self {
        Self {
            connection,
            memory,
            now,
            log_bound,
            events: Events::default(),
            looked: HashMap::new(),
            counters: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Writes what was gathered for the commit as a whole; returns what to tell once it is done.
    pub(super) fn finish(self) -> Result<Events, Fault> {
        for (queue, (ready, delayed)) in &self.waiting {
            if (*ready, *delayed) != (0, 0) {
                rows::execute(self.connection, sql::QUEUE_COUNT, (queue, ready, delayed))?;
            }
        }
        if let Some((before, after)) = self.counters
            && before != after
        {
            rows::execute(self.connection, sql::COUNTER_STORE, (after.position, after.token, after.number))?;
        }
        Ok(self.events)
    }

    /// Begins a transaction: one of those that share this commit.
    pub(super) fn begin(&mut self) {
        self.looked.clear();
    }

    /// Notes that a task runs again.
    pub(super) fn reopened(&mut self, seq: i64) {
        for looked in self.looked.values_mut() {
            looked.finished &= looked.seq != seq;
        }
    }

    /// The next place in line, which is the next task number too.
    pub(super) fn next_position(&mut self) -> Result<i64, Fault> {
        let counters = self.counters()?;
        counters.position += 1;
        Ok(counters.position)
    }

    /// The next token of a reservation.
    pub(super) fn next_token(&mut self) -> Result<i64, Fault> {
        let counters = self.counters()?;
        counters.token += 1;
        Ok(counters.token)
    }

    /// The next number of the feed.
    pub(super) fn next_number(&mut self) -> Result<i64, Fault> {
        let counters = self.counters()?;
        counters.number += 1;
        Ok(counters.number)
    }

    fn counters(&mut self) -> Result<&mut Counters, Fault> {
        if self.counters.is_none() {
            let read = |row: &rusqlite::Row<'_>| {
                Ok(Counters { position: row.get(0)?, token: row.get(1)?, number: row.get(2)? })
            };
            let now = rows::first(self.connection, sql::COUNTER_LOAD, (), read)?
                .ok_or_else(|| Fault::Corrupt("the row of counters is gone".to_owned()))?;
            self.counters = Some((now, now));
        }
        let (_, after) = self.counters.as_mut().expect("set above");
        Ok(after)
    }

    /// The number of a queue, if it is known.
    pub(super) fn queue(&mut self, name: &QueueName) -> Result<Option<i64>, Fault> {
        if let Some(&id) = self.memory.queues.get(name) {
            return Ok(Some(id));
        }
        let id = rows::first(self.connection, sql::QUEUE_FIND, [name.as_str()], |row| row.get(0))?;
        if let Some(id) = id {
            self.remember(name, id);
        }
        Ok(id)
    }

    /// The number of a queue, given to it now if need be.
    pub(super) fn queue_or_new(&mut self, name: &QueueName) -> Result<i64, Fault> {
        if let Some(id) = self.queue(name)? {
            return Ok(id);
        }
        rows::execute(self.connection, sql::QUEUE_ADD, [name.as_str()])?;
        let id = self.connection.last_insert_rowid();
        self.remember(name, id);
        Ok(id)
    }

    fn remember(&mut self, name: &QueueName, id: i64) {
        if self.memory.queues.len() >= QUEUES_REMEMBERED_MAX {
            self.memory.queues.clear();
        }
        self.memory.queues.insert(name.clone(), id);
    }

    /// Counts messages that came to wait on a queue (or, below zero, left it): ready and delayed.
    pub(super) fn count_waiting(&mut self, queue: i64, ready: i64, delayed: i64) {
        let sums = self.waiting.entry(queue).or_default();
        sums.0 += ready;
        sums.1 += delayed;
    }
}
