//! Why a signature cannot be applied.

use crate::protocol::{DecodeError, JsonError};

/// Why a signature cannot be applied. Nothing was sent: planning comes before writing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part of the signature is not what it should be.
    #[error("{part} cannot be applied: {why}")]
    Invalid {
        /// Which part, by the name of its task and the field: `chord proj.report: header`.
        part: String,
        /// What is wrong with it, and what to do instead.
        why: String,
    },
    /// Canvases are nested too deep.
    #[error("canvases nest deeper than {bound} levels; let a task send the inner ones")]
    TooDeep {
        /// The bound.
        bound: usize,
    },
    /// There is too much of something.
    #[error("{what} would exceed the bound of {bound}; {remedy}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The bound.
        bound: usize,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A message cannot be written.
    #[error("a message cannot be written")]
    Encode(#[from] DecodeError),
}

impl Error {
    pub(super) fn invalid(part: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid { part: part.into(), why: why.to_string() }
    }

    pub(super) fn option(task: &str, name: &str, why: &JsonError) -> Self {
        Self::invalid(format!("{task}: option {name}"), why)
    }
}
