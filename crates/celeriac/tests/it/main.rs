//! The integration tests, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

mod conformance;
mod protocol;
mod protocol_hostile;
mod sqlite;
