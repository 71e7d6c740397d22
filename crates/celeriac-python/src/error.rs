//! What can go wrong with a Python application.

/// What calls of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a Python application does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no Python where it was looked for.
    #[error("no Python interpreter: {0}")]
    NoInterpreter(String),
    /// It cannot be started.
    #[error("cannot start {python}")]
    Start {
        /// Which.
        python: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The application cannot be loaded.
    #[error("cannot load the application {app}: {why}")]
    Application {
        /// Which.
        app: String,
        /// The exception.
        why: String,
        /// Where it came from.
        traceback: String,
    },
    /// It has ended although it should not have.
    #[error("the Python process that imports the application has ended: {0}")]
    Gone(String),
    /// A setting of its says what cannot be done here.
    #[error("{setting}: {why}")]
    Setting {
        /// Which, and what in it.
        setting: String,
        /// Why.
        why: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It speaks another version of the frames.
    #[error(
        "the package celeriac that Python finds is of another version (frames {found}, here {expected}); install the one that \
         came with this program, or remove it"
    )]
    Version {
        /// Its version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// What it says makes no sense.
    #[error("the Python process says what is not understood: {0}")]
    Frame(String),
    /// Talking to it failed.
    #[error("cannot talk to the Python process")]
    Io(#[from] std::io::Error),
}
