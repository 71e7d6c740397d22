//! For tests of stores and of applications: a clock moved by hand, stores that fail on purpose, and the suite that
//! every store passes.
//!
//! With the feature `testing`, which no shipped program needs.

pub mod conformance;
mod faulty;
mod manual_clock;

pub use faulty::{
    Fault, FaultPlan, Faulty, FaultyBackend, FaultyBroker, FaultyCatalog, FaultyControl, FaultyTransact,
};
pub use manual_clock::ManualClock;
