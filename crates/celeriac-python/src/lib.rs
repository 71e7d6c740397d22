//! Runs the tasks of an existing Python Celery application in celeriac's worker.
//!
//! ```text
//!  supervisor (this crate, in the worker)          Python
//!  ┌──────────────────────────────────┐   start    ┌──────────────────────────────┐
//!  │ Zygote: starts it, asks for forks│───────────►│ zygote: imports the app once │
//!  │ Pool: an executor of the worker  │   frames   │   └─ fork ► child ► child …  │
//!  │   └─ Child: one conversation     │◄──────────►│       runs with Celery's own │
//!  └──────────────────────────────────┘            │       tracer                 │
//!                                                  └──────────────────────────────┘
//! ```
//!
//! The worker keeps leases and limits, and settles; a child decodes, runs, stores the result through the application's own
//! backend and sends what follows through its own broker. `python/celeriac/_worker/wire.py` has the frames.
//!
//! **Invariant: nothing here reads a body.** Messages go to the child as they travelled, pickled ones too.
//!
//! **Invariant: a child that dies costs the task it held and nothing else.** It is replaced, never repaired, and its whole
//! process group goes with it.

mod beat;
mod child;
mod config;
mod crowd;
mod error;
mod find;
mod frame;
mod link;
mod manifest;
mod memory;
mod order;
mod pool;
mod report;
mod signature;
mod source;
mod ways;
mod zygote;

pub use beat::{Beat, BeatOptions};
pub use config::{FromApp, foreign_layout, from_app, leaves_results, overlay};
pub use crowd::Crowd;
pub use error::{Error, Result};
pub use find::interpreter;
pub use manifest::Manifest;
pub use pool::{Pool, PoolOptions};
pub use ways::Ways;
pub use zygote::{StartOptions, Zygote, describe};
