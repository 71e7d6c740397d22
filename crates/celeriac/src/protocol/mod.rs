//! Celery's bytes: messages, signatures, results, events and remote control. Pure: no I/O, no clock.
//!
//! What is here was captured from Celery 5.7 and is held to it by test vectors. Values that belong to the application
//! stay [`Json`], the very text that was read, until somebody asks for a type: what a Python producer wrote travels on
//! byte for byte.

mod body;
mod composite;
mod compression;
mod content;
mod date;
mod envelope;
mod error;
pub mod event;
mod exception;
pub mod extended;
mod headers;
mod json;
#[cfg(feature = "redis")]
mod kombu;
mod lamport;
mod letter;
mod map;
mod matcher;
mod message;
mod msgpack;
pub mod pidbox;
mod repr;
mod result;
mod scan;
mod signature;
mod tolerant;
mod writer;
mod yaml;

pub use composite::{ChordParts, MapParts};
pub use content::{Compression, Serializer};
pub use date::parse_iso8601;
pub use envelope::HeadSummary;
pub use error::DecodeError;
pub use exception::Exception;
pub use json::{Json, JsonError};
#[cfg(feature = "redis")]
pub(crate) use kombu::{KombuEnvelope, KombuRoute};
pub use lamport::LamportClock;
pub use map::JsonMap;
pub use matcher::Pattern;
pub use message::{Body, Embed, Headers, Message, Properties, RawMessage, TimeLimit};
pub use repr::{args_repr, kwargs_repr, python_repr};
pub use result::{Extended, ResultMeta, ResultTuple};
pub use signature::Signature;
