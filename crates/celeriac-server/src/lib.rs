//! The HTTP API of celeriac: tasks, resumable streams, workers, queues, dead letters, metrics.
//!
//! [`Server`] is the whole of it; [`router`] makes the routes, [`embedded`] those that a program mounts in an axum
//! application of its own. Handlers are thin: what they do is the library's, and what they say is in `view`.

pub mod access;
mod api;
mod arguments;
pub mod client;
pub mod config;
mod escape;
mod floor;
mod input;
mod json;
pub mod listener;
mod names;
mod openapi;
mod problem;
mod router;
mod server;
pub mod sse;
mod view;
pub mod webhook;
mod why;

pub use access::{Access, Role};
pub use config::ServerConfig;
pub use problem::{Invalid, Problem};
pub use router::{description, embedded, router};
pub use server::{Health, Server};
