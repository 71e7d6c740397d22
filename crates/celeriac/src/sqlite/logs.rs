//! Task logs, and the feed of all of them.

use rusqlite::Connection;

use super::fault::Fault;
use super::messages::find;
use super::rows::{self, time_of, unsigned};
use super::sql;
use super::step::{Looked, Step};
use crate::backend::{FeedRecord, LogEntry, LogPage, LogRecord};
use crate::id::TaskId;

type EntryColumns = (i64, String, String, i64);

/// A piece of a task's log; `None` for an unknown task.
pub(super) fn page(
    connection: &Connection,
    id: &TaskId,
    after: u64,
    limit: usize,
) -> Result<Option<LogPage>, Fault> {
    // Where it waits is of no interest here, and so is the time.
    let Some(known) = find(connection, id, 0)? else { return Ok(None) };
    let bounds: Option<(Option<i64>, Option<i64>)> =
        rows::first(connection, sql::LOG_BOUNDS, [known.seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (first, last) = bounds.unwrap_or_default();
    let values = (known.seq, rows::bound(after), rows::limit(limit));
    let found: Vec<EntryColumns> = rows::all(connection, sql::LOG_PAGE, values, |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    })?;
    Ok(Some(LogPage {
        entries: found.into_iter().map(entry).collect::<Result<_, _>>()?,
        first: first.map_or(1, unsigned),
        last: last.map_or(0, unsigned),
        // A settled message ends the log even where no result is kept.
        ended: known.place.state.is_ready() || (known.has_message && !known.is_live()),
    }))
}

/// A piece of the feed.
pub(super) fn feed(connection: &Connection, after: u64, limit: usize) -> Result<Vec<FeedRecord>, Fault> {
    let values = (rows::bound(after), rows::limit(limit));
    let found: Vec<(i64, String, String, EntryColumns)> =
        rows::all(connection, sql::FEED_PAGE, values, |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, (row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?)))
        })?;
    found
        .into_iter()
        .map(|(number, id, name, columns)| {
            Ok(FeedRecord {
                number: unsigned(number),
                task_id: TaskId::from(id),
                task: name.into(),
                entry: entry(columns)?,
            })
        })
        .collect()
}

/// The newest number of the feed.
pub(super) fn feed_end(connection: &Connection) -> Result<u64, Fault> {
    let end: Option<Option<i64>> = rows::first(connection, sql::FEED_END, (), |row| row.get(0))?;
    Ok(end.flatten().map_or(0, unsigned))
}

/// The newest number that the feed has given out, whether or not its record is still there.
pub(super) fn feed_given(connection: &Connection) -> Result<u64, Fault> {
    let given: Option<i64> = rows::first(connection, sql::FEED_GIVEN, (), |row| row.get(0))?;
    given.map(unsigned).ok_or_else(|| Fault::Corrupt("the row of counters is gone".to_owned()))
}

/// Which logs have grown, and how far: by number of the feed, task and position.
pub(super) fn grown(
    connection: &Connection,
    after: u64,
    limit: usize,
) -> Result<Vec<(u64, TaskId, u64)>, Fault> {
    let values = (rows::bound(after), rows::limit(limit));
    let found: Vec<(i64, String, i64)> =
        rows::all(connection, sql::FEED_GROWN, values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let line = |(number, id, position)| (unsigned(number), TaskId::from(id), unsigned(position));
    Ok(found.into_iter().map(line).collect())
}

/// The last position of a task's log.
pub(super) fn last(connection: &Connection, id: &TaskId) -> Result<u64, Fault> {
    let last: Option<Option<i64>> = rows::first(connection, sql::LOG_LAST, [id.as_str()], |row| row.get(0))?;
    Ok(last.flatten().map_or(0, unsigned))
}

fn entry((position, event, data, at): EntryColumns) -> Result<LogEntry, Fault> {
    Ok(LogEntry {
        position: unsigned(position),
        event: event.into(),
        data: rows::json(&data)?,
        at: time_of(at),
    })
}

/// The newest report of progress of a task.
pub(super) fn progress(connection: &Connection, seq: i64) -> Result<Option<LogEntry>, Fault> {
    let found: Option<EntryColumns> = rows::first(connection, sql::LOG_PROGRESS, [seq], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    })?;
    found.map(entry).transpose()
}

impl Step<'_> {
    /// Appends to the log of a task, and trims it; nothing for an unknown task, nor for one that was finished before this
    /// transaction: readers were told that nothing follows.
    pub(super) fn append(&mut self, record: &LogRecord) -> Result<(), Fault> {
        let Some(Looked { seq, finished: false }) = self.look(&record.task_id)? else { return Ok(()) };
        // Two plain statements are cheaper than one with RETURNING, which SQLite answers through a table of its own.
        let last: Option<Option<i64>> = rows::first(self.connection, sql::LOG_END, [seq], |row| row.get(0))?;
        let position = last.flatten().unwrap_or(0) + 1;
        let number = self.next_number()?;
        let values = (number, seq, position, self.now, &*record.event, record.data.as_str());
        rows::execute(self.connection, sql::LOG_APPEND, values)?;
        if position > self.log_bound {
            rows::execute(self.connection, sql::LOG_TRIM, [seq, position - self.log_bound])?;
        }
        self.events.logged.push((record.task_id.clone(), unsigned(position)));
        self.events.fed = Some(unsigned(number));
        Ok(())
    }
}
