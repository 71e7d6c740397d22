//! A task queue for long-running work: Celery's model and wire protocol, in Rust.

pub mod backend;
pub mod broker;
pub mod clock;
pub mod id;
pub mod memory;
pub mod protocol;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod state;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use state::State;
