//! A task queue for long-running work: Celery's model and wire protocol, in Rust, with no service to install.
//!
//! ```
//! #[celeriac::task]
//! async fn add(x: i64, y: i64) -> i64 {
//!     x + y
//! }
//!
//! #[tokio::main]
//! async fn main() -> celeriac::Result<()> {
//!     let app = celeriac::Celeriac::connect("memory://").await?.register(add);
//!     let worker = tokio::spawn(app.worker().run(std::future::pending()));
//!     assert_eq!(add(2, 3).delay(&app).await?.get().await?, 5);
//!     worker.abort();
//!     Ok(())
//! }
//! ```
//!
//! With `sqlite://celeriac.db` instead of `memory://` the same program keeps its tasks in a file, and any number of
//! processes on the machine may send and run them.
//!
//! # Where to look
//!
//! - [`macro@task`] makes a task of a function; [`TaskOptions`] are what it may say of itself.
//! - A call, `add(2, 3)`, is a [`Signature`]: [`delay`](Signature::delay) sends it, [`then`](Signature::then), [`group`]
//!   and [`chord`] compose it, [`CallOptions`] say when and where it runs.
//! - [`AsyncResult`] is the caller's handle: state, value, error, children, revocation.
//! - [`Context`] is what a running task has: durable steps, progress, streams, the news that it is to stop.
//! - [`Worker`] runs tasks; [`Celeriac::worker`] makes one.
//! - `background` has background tasks for handlers of axum, in their own process (feature `axum`).
//! - [`Config`] has every setting, under Celery's name.
//! - [`store`], [`broker`] and [`backend`] are what a store of one's own implements; [`protocol`] is what travels.
//!
//! # What is promised
//!
//! A task that was accepted ends in exactly one final state, whatever is killed. It runs once for as long as its worker
//! lives, however long it takes; when the worker dies another starts it again within the lease, and the dead one can no
//! longer finish it. A finished [step](Context::step) is never run again. What a task streams can be read again from any
//! position. Revoking survives restarts.

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
pub mod again;
pub mod app;
pub mod backend;
#[cfg(feature = "axum")]
pub mod background;
pub mod broker;
pub mod calls;
pub mod canvas;
pub mod catalog;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod envelopes;
pub mod error;
pub mod event;
pub mod id;
pub mod inspect;
pub mod memory;
pub mod protocol;
#[cfg(feature = "redis")]
pub mod redis;
pub mod result;
mod signal;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod state;
pub mod store;
pub mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod worker;

pub use app::{Builder, Celeriac};
pub use canvas::{Signature, chain, chord, chunks, group, map, signature, starmap};
pub use celeriac_macros::task;
pub use client::{CallOptions, Revoked};
pub use clock::{Clock, Timestamp};
pub use config::Config;
pub use error::{Error, Result};
pub use id::{GroupId, QueueName, TaskId};
pub use protocol::Json;
pub use result::{AsyncResult, GroupResult};
pub use signal::ProcessSignal;
pub use state::State;
pub use task::{BlockingContext, Cancelled, Context, Ignore, Reject, Retry, TaskOptions};
pub use worker::Worker;
