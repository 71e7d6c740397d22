//! The integration tests, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

mod conformance;
mod engine;
mod faults;
mod kills;
mod limits;
mod macros;
mod protocol;
mod protocol_hostile;
mod sqlite;
mod stopping;
mod support;
