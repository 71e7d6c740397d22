//! Opening the file: whether it can be, whether it should be, and how each connection is set.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault::Fault;
use super::{SqliteOptions, doorbell, schema};
use crate::store::{Error, Result};

/// The first SQLite without the WAL-reset race, which corrupts files that several processes write.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Statements kept ready on each connection; there are fewer.
const STATEMENTS_CACHED: usize = 128;

/// Memory for pages, in KiB: of the writer, and of each reader.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;

/// The write-ahead log is cut back to this size when it starts over after a burst.
const WAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// What opening gives.
pub(super) struct Opened {
    /// The file, with links resolved: the lock file stands beside the real one, as SQLite's own files do.
    pub(super) path: PathBuf,
    pub(super) writer: Connection,
    pub(super) lock: std::fs::File,
    pub(super) lock_path: PathBuf,
}

/// Opens the file for writing, making it if need be, and brings its layout up to date.
pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<Opened> {
    let refuse = |why: &str, remedy: &str| {
        Err(Error::Open { what: path.display().to_string(), why: why.to_owned(), remedy: remedy.to_owned() })
    };
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        let why =
            format!("the SQLite in this program is {}, which can damage shared files", rusqlite::version());
        return refuse(&why, "build with the feature `bundled` of rusqlite 0.39 or later");
    }
    if path.as_os_str().is_empty() {
        return refuse("the path is empty", "name a file, such as celeriac.db");
    }
    if path == Path::new(":memory:") {
        return refuse(
            "a database in memory has no file to share",
            "use memory:// for a store without a file",
        );
    }
    if path.is_dir() {
        return refuse("it is a directory", "name a file in it, such as celeriac.db");
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        let why = format!("the directory {} does not exist", parent.display());
        return refuse(&why, "make the directory first, or name another file");
    }

    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut writer = match Connection::open_with_flags(path, flags) {
        Ok(connection) => connection,
        Err(error) => return Err(cannot_read(error, path)),
    };
    writer.busy_timeout(options.busy_timeout).map_err(|error| fault(error, path))?;
    schema::refuse_foreign(&writer, path)?;
    if writer.is_readonly("main").map_err(|error| fault(error, path))? {
        return refuse(
            "it may not be written",
            "change its permissions, or those of its directory, or its owner",
        );
    }
    let path =
        path.canonicalize().map_err(|error| Error::unavailable(format!("open {}", path.display()), error))?;
    let lock_path = doorbell::path_beside(&path);
    let lock = doorbell::open(&lock_path).map_err(|error| Error::Open {
        what: lock_path.display().to_string(),
        why: error.to_string(),
        remedy: "make the directory of the database writable for this user".to_owned(),
    })?;

    // Only under the lock: changing to WAL needs the file for oneself, and SQLite does not wait for that.
    lock.lock().map_err(|error| Error::unavailable(format!("lock {}", lock_path.display()), error))?;
    let prepared = prepare(&mut writer, &path, options);
    lock.unlock().map_err(|error| Error::unavailable(format!("unlock {}", lock_path.display()), error))?;
    prepared?;
    Ok(Opened { path, writer, lock, lock_path })
}

fn prepare(writer: &mut Connection, path: &Path, options: &SqliteOptions) -> Result<()> {
    let mode: String = writer
        .query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))
        .map_err(|error| cannot_read(error, path))?;
    if mode != "wal" {
        return Err(Error::Open {
            what: path.display().to_string(),
            why: format!("its file system does not carry a write-ahead log (SQLite stays with {mode})"),
            remedy: "put the file on a local disk: network file systems are not for SQLite".to_owned(),
        });
    }
    let set = || -> rusqlite::Result<()> {
        set_common(writer, WRITER_CACHE_KIB)?;
        // The writer folds the log into the file by itself, when nobody waits for it.
        writer.pragma_update(None, "wal_autocheckpoint", 0)?;
        writer.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        writer.pragma_update(None, "synchronous", options.synchronous.as_str())
    };
    set().map_err(|error| fault(error, path))?;
    schema::migrate(writer, path)?;
    schema::check_statements(writer, path)?;
    if let Some(bytes) = options.file_bytes_max {
        bound_file(writer, bytes).map_err(|error| fault(error, path))?;
    }
    quick_check(writer, path, options.quick_check_bytes_max)
}

/// Looks the file over, if it is so small that this takes no time to speak of.
fn quick_check(connection: &Connection, path: &Path, bytes_max: u64) -> Result<()> {
    let pragma =
        |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).map_err(|error| fault(error, path));
    let bytes = pragma("PRAGMA page_count")?.saturating_mul(pragma("PRAGMA page_size")?);
    if super::rows::unsigned(bytes) > bytes_max {
        return Ok(());
    }
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", (), |row| row.get(0))
        .map_err(|error| fault(error, path))?;
    if found == "ok" { Ok(()) } else { Err(Error::Corrupt { what: path.display().to_string(), why: found }) }
}

fn bound_file(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    let page: i64 = connection.query_row("PRAGMA page_size", (), |row| row.get(0))?;
    let pages = (super::rows::bound(bytes) / page.max(1)).max(1);
    connection.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(()))
}

/// Another connection to an open store, which cannot write.
pub(super) fn reader(path: &Path, busy_timeout: Duration) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy_timeout)?;
    set_common(&connection, READER_CACHE_KIB)?;
    Ok(connection)
}

fn set_common(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    // Plans must not depend on bound values: without this, a value bound to a condition makes SQLite compile the
    // statement anew at each use, which doubled the price of a task.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    // Reads go through the page cache, never through a mapping: there a failing disk is a signal and not an error.
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // There are no foreign keys in the layout; the bundled build turns their bookkeeping on.
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn fault(error: rusqlite::Error, path: &Path) -> Error {
    Fault::from(error).into_error("open", path)
}

const MAY_NOT: &str = "give this user read and write permission to it and to its directory";

/// Why a file cannot be opened, or the first look into it fails.
pub(super) fn cannot_read(error: rusqlite::Error, path: &Path) -> Error {
    let (why, remedy) = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => (
            "it is not a SQLite database".to_owned(),
            "name another file, or restore a backup if this was a celeriac store",
        ),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            (error.to_string(), MAY_NOT)
        }
        _ => return fault(error, path),
    };
    Error::Open { what: path.display().to_string(), why, remedy: remedy.to_owned() }
}
