//! What people ask: lists of tasks, and all that is known of one.
//!
//! A page is made of one stream of task numbers, newest first (`candidates` chooses it), whose rows are fetched one by one
//! and held against the query as every store does. All of it is one read transaction, short by the bound on what a page
//! looks at.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use super::candidates::Candidates;
use super::fault::Fault;
use super::messages::{Known, known_at};
use super::rows::{self, column_of, time_of, unsigned};
use super::{SqliteStore, logs, sql};
use crate::catalog::{Attempt, AttemptOutcome, Catalog, Listed, TaskPage, TaskQuery, TaskRecord};
use crate::id::{TaskId, WorkerName};
use crate::protocol::RawMessage;
use crate::state::Phase;
use crate::store::Result;

/// Numbers are in the order of acceptance, and times nearly so: clocks are set back, and processes that share a file may
/// commit in another order than they looked at the clock. Lists bounded by time look so much further.
const CLOCK_SLACK: Duration = Duration::from_secs(600);

#[async_trait]
impl Catalog for SqliteStore {
    async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage> {
        let (query, now) = (query.clone(), column_of(self.clock.now()));
        self.read("list tasks", move |connection| {
            let transaction = connection.unchecked_transaction()?;
            let page = page(&transaction, &query, now)?;
            transaction.finish()?;
            Ok(page)
        })
        .await
    }

    async fn task(&self, task_id: &TaskId) -> Result<Option<TaskRecord>> {
        let (id, now) = (task_id.clone(), column_of(self.clock.now()));
        self.read("look at a task", move |connection| {
            let transaction = connection.unchecked_transaction()?;
            let record = record(&transaction, &id, now)?;
            transaction.finish()?;
            Ok(record)
        })
        .await
    }
}

fn page(connection: &Connection, query: &TaskQuery, now: i64) -> Result<TaskPage, Fault> {
    let slack = i64::try_from(CLOCK_SLACK.as_nanos()).unwrap_or(i64::MAX);
    let mut before = query.before.map_or(i64::MAX, rows::bound);
    if let Some(until) = query.until
        && let Some(later) = first_accepted(connection, column_of(until).saturating_add(slack))?
    {
        before = before.min(later);
    }
    let oldest = query.since.map(|since| column_of(since).saturating_sub(slack));
    let mut candidates = Candidates::choose(connection, query, before)?;
    let mut page = TaskPage::default();
    let (mut examined, mut last) = (0, None);
    while let Some(seq) = candidates.next(connection)? {
        if examined == TaskQuery::EXAMINED_MAX || page.tasks.len() >= query.limit.max(1) {
            page.next = last;
            break;
        }
        (examined, last) = (examined + 1, Some(unsigned(seq)));
        let Some((mut listed, _)) = look(connection, seq, now)? else { continue };
        if oldest.is_some_and(|oldest| column_of(listed.accepted) < oldest) {
            break;
        }
        // Only a query for a tag looks at tags, so that other lists read those of what they show.
        if query.tag.is_some() {
            listed.tags = tags(connection, seq)?;
        }
        if query.matches(&listed) {
            complete(connection, &mut listed)?;
            page.tasks.push(listed);
        }
    }
    Ok(page)
}

fn record(connection: &Connection, id: &TaskId, now: i64) -> Result<Option<TaskRecord>, Fault> {
    let seq = rows::first(connection, sql::TASK_SEQ, [id.as_str()], |row| row.get(0))?;
    let Some(seq) = seq else { return Ok(None) };
    let Some((mut listed, known)) = look(connection, seq, now)? else { return Ok(None) };
    complete(connection, &mut listed)?;
    let message = rows::first(connection, sql::TASK_MESSAGE, [seq], |row| {
        Ok(RawMessage { head: row.get::<_, String>(1)?.into(), body: row.get::<_, Vec<u8>>(2)?.into() })
    })?;
    let ahead = match known.place.phase {
        Phase::Queued => Some(ahead(connection, &known, now)?),
        _ => None,
    };
    let attempts = attempts(connection, seq)?;
    let progress = logs::progress(connection, seq)?;
    Ok(Some(TaskRecord { listed, message, attempts, ahead, progress }))
}

/// The number of the first task accepted at `time` or later, as far as times are in order; `None` when there is none.
fn first_accepted(connection: &Connection, time: i64) -> Result<Option<i64>, Fault> {
    let span = rows::first(connection, sql::TASK_SPAN, (), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some((Some(first), Some(last))) = span else { return Ok(None) };
    let (mut low, mut high): (i64, i64) = (first, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> =
            rows::first(connection, sql::TASK_ACCEPTED, [middle], |row| Ok((row.get(0)?, row.get(1)?)))?;
        match found {
            Some((seq, accepted)) if accepted >= time => high = seq.max(low),
            _ => low = middle + 1,
        }
    }
    Ok((high <= last).then_some(high))
}

/// What a list shows of a task, but for what [`complete`] adds; `None` for one without a message.
fn look(connection: &Connection, seq: i64, now: i64) -> Result<Option<(Listed, Known)>, Fault> {
    let found = rows::first(connection, sql::LISTED, [seq], |row| {
        let known = known_at(row, now)?;
        let (at, done): (Option<i64>, Option<i64>) = (row.get(20)?, row.get(21)?);
        let (ended_by, started): (Option<String>, Option<i64>) = (row.get(22)?, row.get(23)?);
        let place = known.place.clone();
        let settled = place.phase == Phase::Settled;
        let over = settled || place.phase == Phase::Dead || place.state.is_ready();
        // A row of the result may be left from an end that was undone: a dead letter sent again.
        let (worker, started) = match place.phase {
            Phase::Reserved => (place.worker.clone(), row.get(24)?),
            _ if over => (ended_by.map(WorkerName::from), started),
            _ => (None, None),
        };
        let listed = Listed {
            number: unsigned(seq),
            task_id: TaskId::from(row.get::<_, String>(18)?),
            accepted: time_of(row.get(19)?),
            worker,
            started: started.map(time_of),
            finished: done.or(at).filter(|_| settled || place.state.is_ready()).map(time_of),
            tags: Vec::new(),
            place,
        };
        Ok((listed, known))
    })?;
    Ok(found.filter(|(_, known)| known.has_message))
}

/// Adds what no query but one looks at.
fn complete(connection: &Connection, listed: &mut Listed) -> Result<(), Fault> {
    let seq = rows::bound(listed.number);
    if listed.tags.is_empty() {
        listed.tags = tags(connection, seq)?;
    }
    if listed.started.is_none() {
        let last = rows::first(connection, sql::ATTEMPT_LAST, [seq], |row| row.get(0))?;
        listed.started = last.map(time_of);
    }
    Ok(())
}

fn tags(connection: &Connection, seq: i64) -> Result<Vec<Box<str>>, Fault> {
    rows::all(connection, sql::TAGS, [seq], |row| row.get(0))
}

fn ahead(connection: &Connection, known: &Known, now: i64) -> Result<u64, Fault> {
    let spot = &known.spot;
    let values = (spot.queue, spot.priority, spot.position, now, rows::bound(TaskRecord::AHEAD_MAX));
    let ahead = rows::first(connection, sql::AHEAD, values, |row| row.get(0))?;
    Ok(ahead.map_or(0, unsigned))
}

fn attempts(connection: &Connection, seq: i64) -> Result<Vec<Attempt>, Fault> {
    type Columns = (String, i64, i64, String, Option<String>);
    let found: Vec<Columns> = rows::all(connection, sql::ATTEMPTS, [seq], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    })?;
    let attempt = |(worker, started, ended, outcome, error): Columns| {
        Ok(Attempt {
            worker: WorkerName::from(worker),
            started: time_of(started),
            ended: time_of(ended),
            outcome: outcome_of(&outcome)?,
            error: error.as_deref().map(rows::json).transpose()?,
        })
    };
    found.into_iter().map(attempt).collect()
}

fn outcome_of(word: &str) -> Result<AttemptOutcome, Fault> {
    let all = [AttemptOutcome::Retried, AttemptOutcome::HandedBack, AttemptOutcome::Lost];
    all.into_iter()
        .find(|outcome| outcome.as_str() == word)
        .ok_or_else(|| Fault::Corrupt(format!("an attempt ended in a way that is not known: {word}")))
}
