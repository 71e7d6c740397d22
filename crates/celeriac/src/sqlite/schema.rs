//! The layout of the file, and how an older one becomes the present one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::fault::Fault;
use super::{connect, sql};
use crate::store::{Error, Result};

/// Marks a file as ours: "celr" in ASCII.
pub(super) const APPLICATION_ID: i64 = 0x6365_6c72;

/// What leads from each layout to the next; the first starts from an empty file.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001_initial.sql"),
    include_str!("schema/0002_catalog.sql"),
    include_str!("schema/0003_control.sql"),
];

/// What a file is, by its header and its list of tables.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Empty,
    Ours { layout: u32 },
    Foreign,
}

fn identity(connection: &Connection) -> rusqlite::Result<Identity> {
    let pragma = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
    // In this order: another process may be making the file, which it does in one transaction. Whoever sees its tables
    // sees its mark from then on; the other way round a file just made would look like somebody else's.
    let tables = pragma("SELECT count(*) FROM sqlite_schema")?;
    let id = pragma("PRAGMA application_id")?;
    Ok(match (id, tables) {
        (APPLICATION_ID, _) => {
            Identity::Ours { layout: u32::try_from(pragma("PRAGMA user_version")?).unwrap_or(u32::MAX) }
        }
        (0, 0) => Identity::Empty,
        _ => Identity::Foreign,
    })
}

/// Refuses a file that is not ours, or newer than this program. Nothing is written.
pub(super) fn refuse_foreign(connection: &Connection, path: &Path) -> Result<()> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    match identity(connection).map_err(|error| connect::cannot_read(error, path))? {
        Identity::Ours { layout: found } if found > known => {
            Err(Error::Newer { what: path.display().to_string(), found, known })
        }
        Identity::Ours { .. } | Identity::Empty => Ok(()),
        Identity::Foreign => Err(Error::Open {
            what: path.display().to_string(),
            why: "it is a SQLite database of another program".to_owned(),
            remedy: "name another file; one that does not exist is made".to_owned(),
        }),
    }
}

/// Brings the layout up to date. Of two processes that open an old file at once, the one with the lock migrates, and
/// the other finds nothing left to do.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let fault = |error: rusqlite::Error| Fault::from(error).into_error("migration", path);
    let latest = MIGRATIONS.len();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
    // The look before the lock was only a look.
    refuse_foreign(&transaction, path)?;
    let layout = match identity(&transaction).map_err(fault)? {
        Identity::Ours { layout } => layout as usize,
        Identity::Empty | Identity::Foreign => 0,
    };
    if layout < latest {
        for migration in &MIGRATIONS[layout..] {
            transaction.execute_batch(migration).map_err(fault)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(fault)?;
        transaction.pragma_update(None, "user_version", super::rows::limit(latest)).map_err(fault)?;
    }
    transaction.commit().map_err(fault)
}

/// Proves that every statement fits the layout found: that this file has all tables and columns it claims to have.
pub(super) fn check_statements(connection: &Connection, path: &Path) -> Result<()> {
    for (name, sql) in sql::ALL {
        if let Err(error) = connection.prepare_cached(sql) {
            return Err(match Fault::from(error) {
                Fault::Unavailable(why) => Error::Corrupt {
                    what: path.display().to_string(),
                    why: format!("its layout does not fit the statement {name}: {why}"),
                },
                fault => fault.into_error("open", path),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_fits_the_layout() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, Path::new("test")).unwrap();
        check_statements(&connection, Path::new("test")).unwrap();
    }

    #[test]
    fn every_older_layout_becomes_the_present_one() {
        for layout in 1..MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            for migration in &MIGRATIONS[..layout] {
                connection.execute_batch(migration).unwrap();
            }
            connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            connection.pragma_update(None, "user_version", super::super::rows::limit(layout)).unwrap();
            connection.execute("INSERT INTO queue (name) VALUES ('q')", ()).unwrap();
            migrate(&mut connection, Path::new("test")).unwrap();
            check_statements(&connection, Path::new("test")).unwrap();
            let paused = connection.query_row("SELECT paused FROM queue", (), |row| row.get(0));
            assert_eq!(paused, Ok(false), "layout {layout}");
        }
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, Path::new("test")).unwrap();
        migrate(&mut connection, Path::new("test")).unwrap();
        let layout = u32::try_from(MIGRATIONS.len()).unwrap();
        assert_eq!(identity(&connection).unwrap(), Identity::Ours { layout });
    }
}
