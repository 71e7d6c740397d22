//! Why bytes are not a message.

/// Why a message, a signature or a result cannot be read. The bytes are never lost: whoever holds them keeps them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A part is absent.
    #[error("{part} is missing")]
    Missing {
        /// Which, as a path: `headers.id`.
        part: &'static str,
    },
    /// A part is there and wrong.
    #[error("{part} cannot be read: {why}")]
    Invalid {
        /// Which, as a path.
        part: String,
        /// What is wrong with it.
        why: String,
    },
    /// The content type is one this program does not read.
    #[error("content type {content_type} is not accepted; {remedy}")]
    ContentType {
        /// As found.
        content_type: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The compression is one this program does not read.
    #[error("compression {compression} is not accepted; {remedy}")]
    Compression {
        /// As found.
        compression: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A part is larger than it may be.
    #[error("{part} is larger than {bound} bytes")]
    TooLarge {
        /// Which.
        part: &'static str,
        /// The bound.
        bound: usize,
    },
}

impl DecodeError {
    pub(crate) fn invalid(part: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid { part: part.into(), why: why.to_string() }
    }
}
