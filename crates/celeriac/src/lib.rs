//! A task queue for long-running work.

pub mod backend;
pub mod broker;
pub mod clock;
pub mod id;
pub mod protocol;
pub mod state;
pub mod store;

pub use state::State;
