//! A command as it stands in the log of commands, from which workers take it.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::value;
use crate::clock::Timestamp;
use crate::control::Command;
use crate::id::WorkerName;
use crate::protocol::pidbox::Request;
use crate::protocol::{Json, Pattern};

/// A command as it stands in the log.
#[derive(Serialize, Deserialize)]
pub(super) struct LoggedCommand {
    pub(super) ticket: Box<str>,
    pub(super) method: Box<str>,
    arguments: Json,
    destination: Option<Vec<Box<str>>>,
    /// Pattern and matcher, for those that no destination names.
    pattern: Option<(String, String)>,
    /// In microseconds.
    expires: i64,
}

impl LoggedCommand {
    pub(super) fn read(text: &Value) -> Option<Self> {
        Json::parse(value::text(text)?).ok()?.to().ok()
    }

    pub(super) fn of(command: &Command) -> Self {
        let Command { ticket, method, arguments, destination, expires } = command.clone();
        Self { ticket, method, arguments, destination, pattern: None, expires: value::micros(expires) }
    }

    pub(super) fn of_foreign(request: Request, expires: Timestamp) -> Self {
        let names = |names: Vec<String>| names.into_iter().map(String::into_boxed_str).collect();
        Self {
            ticket: request.ticket.unwrap_or_default().into(),
            method: request.method.into(),
            arguments: request.arguments.to_json(),
            // To kombu no name means everybody.
            destination: request.destination.filter(|names| !names.is_empty()).map(names),
            pattern: request
                .pattern
                .map(|pattern| (pattern.as_str().to_owned(), pattern.matcher().to_owned())),
            expires: value::micros(expires),
        }
    }

    /// Whether it is meant for a worker by its pattern; its destination counts in [`Command::is_for`].
    pub(super) fn is_for(&self, worker: &WorkerName) -> bool {
        let node = node_of(worker);
        match (&self.destination, &self.pattern) {
            (Some(names), _) => names.iter().any(|name| **name == *worker.as_str() || **name == *node),
            (None, Some((pattern, matcher))) => {
                Pattern::of(pattern, matcher).is_ok_and(|pattern| pattern.matches(node))
            }
            (None, None) => true,
        }
    }

    pub(super) fn into_command(self) -> Command {
        Command {
            ticket: self.ticket,
            method: self.method,
            arguments: self.arguments,
            destination: self.destination,
            expires: Timestamp::from_microsecond(self.expires).unwrap_or(Timestamp::MAX),
        }
    }

    pub(super) fn to_text(&self) -> String {
        // Of texts, and of values that are JSON already.
        Json::from_value(self).unwrap_or_default().as_str().to_owned()
    }
}

/// The node name of a worker.
pub(super) fn node_of(worker: &WorkerName) -> &str {
    let worker = worker.as_str();
    worker.split_once('/').map_or(worker, |(node, _)| node)
}
