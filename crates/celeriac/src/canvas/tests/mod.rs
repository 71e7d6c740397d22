//! The canvas against what Celery was seen to do, and against a model of it.

mod build;
mod messages;
mod model;
mod options;
mod random;
mod runner;
mod traces;
