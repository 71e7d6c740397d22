//! What an operator does with the file: look it over, copy it, measure it.

use std::path::Path;

use rusqlite::Connection;

use super::fault::Fault;
use super::{SqliteStore, rows};
use crate::store::{Error, Result};

/// Problems listed by one check; the rest of them will show once these are dealt with.
const PROBLEMS_MAX: usize = 100;

/// The size of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes in one page.
    pub page_bytes: u64,
    /// Pages of the file.
    pub pages: u64,
    /// Pages of the file that are free to be used again.
    pub free_pages: u64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// Tasks known, finished ones included.
    pub tasks: u64,
    /// Messages that wait for a worker.
    pub ready: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages that workers hold.
    pub reserved: u64,
    /// Dead letters.
    pub dead: u64,
    /// Chords open or complete and not fired.
    pub chords: u64,
    /// Records in all logs.
    pub log_records: u64,
}

/// What must hold beyond SQLite's own rules: each query returns one line of text for each thing that is wrong.
const INVARIANTS: &[&str] = &[
    include_str!("queries/check_places.sql"),
    include_str!("queries/check_settled.sql"),
    include_str!("queries/check_lines.sql"),
    include_str!("queries/check_counts.sql"),
    include_str!("queries/check_orphans.sql"),
    include_str!("queries/check_chords.sql"),
    include_str!("queries/check_logs.sql"),
];

impl SqliteStore {
    /// Looks the whole file over: SQLite's own integrity check, and the promises of the layout. Returns what is wrong, at
    /// most a hundred lines; nothing for a sound file. Takes as long as reading the file several times.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn check(&self) -> Result<Vec<String>> {
        self.read("check", |connection| {
            let sql = format!("PRAGMA integrity_check({PROBLEMS_MAX})");
            let mut problems = lines(connection, &sql)?;
            problems.retain(|line| line != "ok");
            // One transaction, as the promises hold between tables at one moment.
            let transaction = connection.unchecked_transaction()?;
            for invariant in INVARIANTS {
                problems.extend(lines(&transaction, invariant)?);
            }
            transaction.finish()?;
            problems.truncate(PROBLEMS_MAX);
            Ok(problems)
        })
        .await
    }

    /// Copies the store to a new file at `to`, as it is at one moment, while it stays in use.
    ///
    /// # Errors
    /// [`Error::Open`] when there is a file at `to` already or it cannot be made; otherwise as any read or write.
    pub async fn backup(&self, to: impl AsRef<Path> + Send) -> Result<()> {
        let to = to.as_ref().to_owned();
        let refuse = |why: &str, remedy: &str| {
            Err(Error::Open {
                what: to.display().to_string(),
                why: why.to_owned(),
                remedy: remedy.to_owned(),
            })
        };
        if to.exists() {
            return refuse("a file of this name exists", "name one that does not, or remove it first");
        }
        if to.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            return refuse("its directory does not exist", "make the directory first");
        }
        let target = to.clone();
        let copied = self.readers.read(move |connection| {
            let mut copy = Connection::open(&target)?;
            // All pages in one step: commits made between steps would start the copy over, without end on a busy file.
            rusqlite::backup::Backup::new(connection, &mut copy)?.step(-1)?;
            Ok(())
        });
        copied.await.map_err(|fault: Fault| fault.into_error("backup", &to))
    }

    /// Measures the store. Counting takes a few milliseconds for each hundred thousand tasks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn stats(&self) -> Result<Stats> {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        // Only its size is asked for: it is not opened.
        let wal_bytes = std::fs::metadata(wal).map_or(0, |wal| wal.len());
        self.read("stats", move |connection| {
            let number = |sql| -> Result<u64, Fault> {
                Ok(rows::unsigned(connection.query_row(sql, (), |row| row.get(0))?))
            };
            Ok(Stats {
                page_bytes: number("PRAGMA page_size")?,
                pages: number("PRAGMA page_count")?,
                free_pages: number("PRAGMA freelist_count")?,
                wal_bytes,
                tasks: number("SELECT count(*) FROM task")?,
                ready: number("SELECT coalesce(sum(ready), 0) FROM queue")?,
                delayed: number("SELECT coalesce(sum(delayed), 0) FROM queue")?,
                reserved: number("SELECT count(*) FROM lease")?,
                dead: number("SELECT count(*) FROM dead")?,
                chords: number("SELECT count(*) FROM chord")?,
                log_records: number("SELECT count(*) FROM log")?,
            })
        })
        .await
    }
}

fn lines(connection: &Connection, sql: &str) -> Result<Vec<String>, Fault> {
    let mut statement = connection.prepare(sql)?;
    let lines = statement.query_map((), |row| row.get(0))?;
    Ok(lines.take(PROBLEMS_MAX).collect::<rusqlite::Result<_>>()?)
}
