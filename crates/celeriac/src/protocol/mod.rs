//! Celery's bytes: messages, signatures and results. Pure: no I/O, no clock.
//!
//! What is here was captured from Celery 5.7 and is held to it by test vectors. Values that belong to the application
//! stay [`Json`], the very text that was read, until somebody asks for a type: what a Python producer wrote travels on
//! byte for byte.

mod error;
mod json;
mod message;
mod result;
mod signature;

pub use error::DecodeError;
pub use json::{Json, JsonError};
pub use message::{Body, Embed, Headers, Message, Properties, RawMessage, TimeLimit};
pub use result::{Exception, Extended, ResultMeta, ResultTuple};
pub use signature::{JsonMap, Signature};
