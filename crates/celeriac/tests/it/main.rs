//! The integration tests, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

#[cfg(feature = "axum")]
mod background;
mod conformance;
mod control;
mod engine;
mod event;
mod faults;
mod foreign;
mod jitter;
mod kills;
mod limits;
mod macros;
mod protocol;
mod protocol_control;
mod protocol_hostile;
mod proxy;
mod redis;
mod redis_batches;
mod redis_chords;
mod redis_faults;
mod redis_keys;
mod redis_log;
mod redis_python;
mod redis_server;
mod redis_soak;
mod redis_usual;
#[cfg(feature = "tls")]
mod redis_ways;
mod sqlite;
mod stopping;
mod support;
mod webhooks;
