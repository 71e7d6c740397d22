//! The integration tests, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

mod access;
mod call;
mod client;
mod input;
mod listener;
mod messages;
mod operations;
mod process;
mod stream;
mod stream_bounds;
mod stream_clients;
mod stream_feed;
mod stream_support;
mod support;
mod tasks;
mod webhook;
