//! The handlers, one file for each thing they are about. They read, ask the library, and say what came of it.

pub(crate) mod bulk;
pub(crate) mod call;
pub(crate) mod cursor;
pub(crate) mod dead;
pub(crate) mod filter;
pub(crate) mod groups;
pub(crate) mod messages;
pub(crate) mod metrics;
pub(crate) mod probes;
pub(crate) mod problems;
pub(crate) mod queues;
pub(crate) mod registry;
pub(crate) mod request;
pub(crate) mod result;
pub(crate) mod retry;
pub(crate) mod revoke;
pub(crate) mod schedules;
pub(crate) mod submit;
pub(crate) mod tasks;
pub(crate) mod workers;
