//! What SQLite reports, sorted by what a caller may do about it.

use std::path::Path;

use crate::store::Error;

/// Why a statement failed. It can be copied, because one failed commit is the answer to many callers, and an
/// [`Error`] cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk, the quota or the page bound.
    Full,
    /// The file cannot be read or written now.
    Unavailable(String),
    /// The content of the file is wrong.
    Corrupt(String),
    /// A value larger than a row may be.
    TooLarge,
}

/// The largest row SQLite is asked to hold: a message, or a result.
pub(super) const ROW_BYTES_MAX: usize = 256 * 1024 * 1024;

impl Fault {
    /// The fault as a caller sees it, while doing `what` on the file at `path`.
    pub(super) fn into_error(self, what: &str, path: &Path) -> Error {
        let file = path.display().to_string();
        match self {
            Self::Full => Error::Full { what: file },
            Self::Unavailable(why) => Error::unavailable(format!("{what} on {file}"), why),
            Self::Corrupt(why) => Error::Corrupt { what: file, why },
            Self::TooLarge => too_large(what),
        }
    }
}

/// The error for a value past [`ROW_BYTES_MAX`].
pub(super) fn too_large(what: impl Into<String>) -> Error {
    Error::TooLarge { what: what.into(), bound: format!("{} MiB in one row", ROW_BYTES_MAX / 1024 / 1024) }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match &error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DiskFull => Self::Full,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt(error.to_string()),
                ErrorCode::TooBig => Self::TooLarge,
                _ => Self::Unavailable(error.to_string()),
            },
            // A column of the wrong type or without a value: the layout forbids both, so the file is wrong.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::QueryReturnedNoRows => Self::Corrupt(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}
