//! The content of the demonstration: real documents in, a digest out.
//!
//! [`find`](fn@find) lists the documents under a folder, [`Source::read`] splits one into sections,
//! [`SectionSummary::of`] summarises one section (the expensive step, with progress and a way to stop),
//! [`DocumentDigest::join`] and [`Digest::join`] put the pieces together, [`Digest::to_markdown`] writes the report.
//! All of it is deterministic: the same files give the same bytes, so a run that was killed and resumed writes the
//! report that an undisturbed one would have.
//!
//! It must not know that tasks exist: nothing here sends, waits, or asks the time. The types that travel between tasks
//! are serialisable, and that is all.

mod document;
mod find;
mod report;
mod sentence;
mod textrank;

pub use document::{Document, Format, Section, parse};
pub use find::{Found, Limits, Skip, Skipped, Source, find};
pub use report::{Digest, DocumentDigest, Highlight, Keyword, SectionSummary};
pub use sentence::{is_stop_word, sentences, stem, words};
pub use textrank::{Graph, KeySentence, Options, Stopped, Summary, rank, summarise};
