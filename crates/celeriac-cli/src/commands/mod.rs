//! One command, one file.

pub(crate) mod call;
pub(crate) mod control;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod inspect;
pub(crate) mod purge;
pub(crate) mod queues;
pub(crate) mod result;
pub(crate) mod revoke;
pub(crate) mod status;
pub(crate) mod worker;
