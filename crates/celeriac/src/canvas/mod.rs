//! Canvas: calls composed into chains, groups and chords.
//!
//! `signature.rs` is what an application writes. The rest is pure: it turns signatures into what is to be written in one
//! atomic step, for a producer (`plan`) and for a worker that has ended a task (`after_success` and its siblings).
//! None of it reads or writes a store.

mod again;
mod error;
mod fail;
mod fire;
mod follow;
mod freeze;
mod links;
mod node;
mod options;
mod plan;
mod route;
mod signature;
mod webhook;

#[cfg(test)]
mod tests;

pub(crate) use again::{SENT_AGAIN, again};
pub use error::Error;
pub(crate) use fire::fire;
pub(crate) use follow::{after_failure, after_revoke, after_success, end_record, retry};
pub use options::RESERVED_HEADERS;
pub(crate) use options::TAGS;
pub(crate) use options::tags;
pub(crate) use plan::{Given, Plan, Planner, plan};
pub(crate) use route::Router;
pub use signature::{Signature, chain, chord, chunks, group, map, signature, starmap};
pub(crate) use webhook::{Ended, retold, webhook};
