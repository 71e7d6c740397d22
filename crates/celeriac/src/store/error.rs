//! Why a store could not do what was asked.

/// What store calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store cannot be reached or did not answer; the call may or may not have happened. Trying again later is
    /// right.
    #[error("store unavailable: {what}")]
    Unavailable {
        /// What was being done.
        what: String,
        /// What the store said.
        #[source]
        source: BoxError,
    },
    /// The disk or the quota is full; nothing was written. Trying again helps once there is room.
    #[error("no room left for {what}; free disk space, nothing was written")]
    Full {
        /// The file or database that cannot grow.
        what: String,
    },
    /// This cannot be opened as a store.
    #[error("cannot open {what}: {why}; {remedy}")]
    Open {
        /// The file or address.
        what: String,
        /// What is wrong with it.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The store holds a newer layout than this program knows.
    #[error(
        "{what} was written by a newer celeriac (layout {found}, this one knows up to {known}); upgrade this celeriac or use another file"
    )]
    Newer {
        /// The file or address.
        what: String,
        /// The layout found.
        found: u32,
        /// The newest layout this program knows.
        known: u32,
    },
    /// The content of the store is damaged.
    #[error("{what} is damaged: {why}; restore a backup, or move the file away to start afresh")]
    Corrupt {
        /// The file or address.
        what: String,
        /// What the check found.
        why: String,
    },
    /// A value that this store cannot hold, such as a task log past its bound; trying again changes nothing.
    #[error("{what} exceeds the bound of {bound}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The bound, with its unit.
        bound: String,
    },
}

impl Error {
    /// An [`Error::Unavailable`].
    pub fn unavailable(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Unavailable { what: what.into(), source: source.into() }
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
