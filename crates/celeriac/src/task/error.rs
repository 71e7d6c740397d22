//! How a run can end other than with a value.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::protocol::{Exception, Json};

type BoxError = Box<dyn StdError + Send + Sync>;

/// How a run ended other than with a value. Made from whatever error a task returns; tasks themselves need it only to
/// say something special, through [`Retry`], [`Ignore`] and [`Reject`], which any error type can carry.
#[derive(Debug)]
pub struct TaskError(Box<Inner>);

/// Boxed, so that a `Result` of every small value is not as large as an error.
#[derive(Debug)]
struct Inner {
    ending: Ending,
    exception: Exception,
    traceback: String,
}

/// What the run asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// An error that `autoretry` may retry.
    Error,
    /// An error that no retry would cure: wrong arguments, a panic.
    Fatal,
    /// Run again.
    Retry { countdown: Option<Duration>, eta: Option<Timestamp>, max_retries: Option<u32> },
    /// Keep no result, run nothing that follows.
    Ignore,
    /// Give the message back, or drop it.
    Reject { requeue: bool },
    /// The run noticed that it was told to stop, and stopped.
    Cancelled(CancelReason),
}

/// Asks for the task to be run again: return it as the error. Made by [`Context::retry`](crate::Context::retry).
#[derive(Debug, Default)]
pub struct Retry {
    pub(crate) countdown: Option<Duration>,
    pub(crate) eta: Option<Timestamp>,
    pub(crate) max_retries: Option<u32>,
    cause: Option<BoxError>,
}

impl Retry {
    /// Runs it again after the task's own delay.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs it again after `countdown`.
    #[must_use]
    pub fn countdown(mut self, countdown: Duration) -> Self {
        self.countdown = Some(countdown);
        self
    }

    /// Runs it again at `eta`.
    #[must_use]
    pub fn eta(mut self, eta: Timestamp) -> Self {
        self.eta = Some(eta);
        self
    }

    /// Gives up after `max_retries` rather than after the task's own number.
    #[must_use]
    pub fn max_retries(mut self, max_retries: u32) -> Self {
        self.max_retries = Some(max_retries);
        self
    }

    /// The error that is the reason; it becomes the task's when no retry is left.
    #[must_use]
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task asks to be run again")
    }
}

impl StdError for Retry {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// Ends the run without a result, and without anything that would follow it: Celery's `Ignore`. Return it as the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task asks that its result be ignored")]
pub struct Ignore;

/// Refuses the message: Celery's `Reject`. Return it as the error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task rejects its message: {reason}")]
pub struct Reject {
    /// Why.
    pub reason: String,
    /// Whether it goes back to its queue; else the task ends in FAILURE.
    pub requeue: bool,
}

/// The run was told to stop; return it as the error, which `?` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("told to stop: {0}")]
pub struct Cancelled(pub CancelReason);

/// Why a run is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CancelReason {
    /// The task was revoked with `terminate`.
    #[error("revoked")]
    Revoked,
    /// The soft time limit has passed.
    #[error("soft time limit")]
    SoftTimeLimit,
    /// The hard time limit has passed.
    #[error("hard time limit")]
    TimeLimit,
    /// The worker no longer holds the lease: another may be running the task, and this run cannot store anything.
    #[error("lease lost")]
    LeaseLost,
    /// The worker is shutting down and will hand the task back.
    #[error("worker shutdown")]
    Shutdown,
}

impl TaskError {
    /// The error as it is stored.
    #[must_use]
    pub fn exception(&self) -> &Exception {
        &self.0.exception
    }

    /// The chain of causes and the backtrace, for people.
    #[must_use]
    pub fn traceback(&self) -> &str {
        &self.0.traceback
    }

    pub(crate) fn ending(&self) -> &Ending {
        &self.0.ending
    }

    fn new(ending: Ending, exception: Exception, traceback: String) -> Self {
        Self(Box::new(Inner { ending, exception, traceback }))
    }

    /// Wrong arguments: as Python's `TypeError`, which a Python client can catch by that name.
    pub(crate) fn type_error(message: &str) -> Self {
        let traceback = format!("TypeError: {message}");
        Self::new(Ending::Fatal, exception("TypeError", "builtins", message), traceback)
    }

    /// A panic.
    pub(crate) fn panic(message: &str, place: Option<&str>) -> Self {
        let place = place.map_or_else(String::new, |place| format!("\n{place}"));
        let traceback = format!("panic: {message}{place}");
        Self::new(Ending::Fatal, exception("Panic", "celeriac", message), traceback)
    }

    /// A value that cannot be written.
    pub(crate) fn unencodable(what: &str, why: &dyn fmt::Display) -> Self {
        let message = format!("{what} cannot be written as JSON: {why}");
        Self::new(Ending::Fatal, exception("EncodeError", "kombu.exceptions", &message), message)
    }

    /// An error of the type named `type_name`, as a task returned it.
    ///
    /// What was asked for (a retry, a rejection …) is found anywhere in its chain of sources, so that an application's
    /// own error types can carry it.
    #[must_use]
    pub fn from_error(error: &(dyn StdError + 'static), type_name: &str) -> Self {
        // `step` wraps what the step returned; people want to see that one.
        let shown = match error.downcast_ref::<crate::task::StepError>() {
            Some(step) => step.source().unwrap_or(error),
            None => error,
        };
        let mut ending = Ending::Error;
        let mut cause_shown = shown;
        let mut named = type_name;
        let mut next = Some(error);
        while let Some(current) = next {
            if let Some(retry) = current.downcast_ref::<Retry>() {
                ending = Ending::Retry {
                    countdown: retry.countdown,
                    eta: retry.eta,
                    max_retries: retry.max_retries,
                };
                if let Some(cause) = retry.source() {
                    cause_shown = cause;
                    named = "Error";
                }
                break;
            }
            if current.is::<Ignore>() {
                ending = Ending::Ignore;
                break;
            }
            if let Some(reject) = current.downcast_ref::<Reject>() {
                ending = Ending::Reject { requeue: reject.requeue };
                break;
            }
            if let Some(cancelled) = current.downcast_ref::<Cancelled>() {
                ending = Ending::Cancelled(cancelled.0);
                break;
            }
            next = current.source();
        }
        let (stored, mut traceback) = match cause_shown.downcast_ref::<Exception>() {
            // The task has said itself what its caller is to see.
            Some(own) => (own.clone(), own.to_string()),
            None => {
                let (module, name) = split_type_name(named);
                let message = cause_shown.to_string();
                let traceback = format!("{name}: {message}");
                (exception(&name, &module, &message), traceback)
            }
        };
        let mut source = cause_shown.source();
        while let Some(cause) = source {
            let _ = write!(traceback, "\ncaused by: {cause}");
            source = cause.source();
        }
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            let _ = write!(traceback, "\n{backtrace}");
        }
        Self::new(ending, stored, traceback)
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.exception.fmt(f)
    }
}

fn exception(exc_type: &str, module: &str, message: &str) -> Exception {
    Exception {
        exc_type: exc_type.to_owned(),
        exc_message: vec![Json::from_value(message).unwrap_or_default()],
        exc_module: Some(module.to_owned()),
    }
}

/// `a::b::Name<c::D>` as (`a.b`, `Name`). Boxed errors have no name left: they become `Error`.
fn split_type_name(full: &str) -> (String, String) {
    let plain = full.split('<').next().unwrap_or(full);
    match plain.rsplit_once("::") {
        Some(("alloc::boxed", "Box")) => ("celeriac".to_owned(), "Error".to_owned()),
        Some((module, name)) => (module.replace("::", "."), name.to_owned()),
        None => ("celeriac".to_owned(), plain.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] BoxError);

    #[test]
    fn what_was_asked_for_is_found_in_the_chain() {
        let error = Outer(Box::new(Retry::new().countdown(Duration::from_secs(3)).because("no network")));
        let ended = TaskError::from_error(&error, "app::Outer");
        assert_eq!(
            *ended.ending(),
            Ending::Retry { countdown: Some(Duration::from_secs(3)), eta: None, max_retries: None }
        );
        assert_eq!(ended.exception().exc_message, vec![Json::from_value("no network").unwrap()]);
    }

    #[test]
    fn an_error_keeps_its_type_and_its_causes() {
        let error = Outer("disk on fire".into());
        let ended = TaskError::from_error(&error, "app::store::Outer");
        assert_eq!(*ended.ending(), Ending::Error);
        assert_eq!(ended.exception().exc_type, "Outer");
        assert_eq!(ended.exception().exc_module.as_deref(), Some("app.store"));
        assert!(ended.traceback().starts_with("Outer: outer\ncaused by: disk on fire"));
    }

    #[test]
    fn an_exception_is_stored_as_it_is() {
        let own = Exception::builtin("ValueError", "boom");
        let ended = TaskError::from_error(&own, "celeriac::protocol::exception::Exception");
        assert_eq!((ended.exception(), ended.ending()), (&own, &Ending::Error));
        assert!(ended.traceback().starts_with("ValueError: boom"), "{}", ended.traceback());
        let retried =
            TaskError::from_error(&Retry::new().because(own.clone()), "celeriac::task::error::Retry");
        assert_eq!(retried.exception(), &own);
    }

    #[test]
    fn boxes_are_errors() {
        let name = std::any::type_name::<Box<dyn StdError + Send + Sync>>();
        assert_eq!(split_type_name(name), ("celeriac".to_owned(), "Error".to_owned()));
    }
}
