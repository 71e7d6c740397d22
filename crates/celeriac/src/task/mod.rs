//! Tasks: named functions that can be called from elsewhere.
//!
//! `#[celeriac::task]` makes one from a function; what it generates is an implementation of [`Task`], and a function
//! of the same name that makes a [`Signature`](crate::Signature) of a call.

mod arguments;
mod cancel;
mod context;
mod description;
mod error;
mod executor;
#[doc(hidden)]
pub mod name;
mod options;
mod registry;
mod remote;
mod request;

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use arguments::{ArgumentReader, Arguments};
pub(crate) use cancel::CancelSignal;
pub use context::{BlockingContext, Context, StepError};
pub(crate) use context::{Journal, JournalAnswer, JournalWrite, current};
pub use description::{Description, KnownTask, Parameter, ParameterKind};
pub(crate) use error::Ending;
pub use error::{CancelReason, Cancelled, Ignore, Reject, Retry, TaskError};
pub use executor::{Concluded, Executor, Fault, ForeignCall, ForeignTask, Ran, Seat, Verdict};
pub use options::{RateLimit, TaskOptions};
pub(crate) use registry::RegisteredTask;
pub use registry::{Registry, TaskFunction};
pub use remote::FoundStep;
pub(crate) use request::Request;

use crate::protocol::Json;

/// A call whose value has a type: what a [`Signature`](crate::Signature) is of.
pub trait Typed: Send + Sync + 'static {
    /// The value.
    type Output: DeserializeOwned + Send + 'static;
}

/// A call whose task this program does not know by type: its value stays [`Json`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dynamic {}

impl Typed for Dynamic {
    type Output = Json;
}

/// The value of a composite.
#[derive(Debug)]
pub struct Value<R>(std::marker::PhantomData<fn() -> R>);

impl<R: DeserializeOwned + Send + 'static> Typed for Value<R> {
    type Output = R;
}

/// A named function that can be called from elsewhere. `#[celeriac::task]` implements it.
pub trait Task: Typed {
    /// The name in messages.
    const NAME: &'static str;

    /// What the task says of itself.
    fn options() -> TaskOptions {
        TaskOptions::default()
    }

    /// What the task says of itself to those who call it by hand.
    #[must_use]
    fn description() -> Option<Description> {
        None
    }

    /// Binds a call's arguments, and gives what is to be run.
    ///
    /// # Errors
    /// When the arguments do not fit the parameters.
    fn bind(cx: Context, arguments: Arguments) -> Result<Execution, TaskError>;
}

/// A call that is ready to run.
pub enum Execution {
    /// An `async fn`.
    Async(Pin<Box<dyn Future<Output = Result<Json, TaskError>> + Send>>),
    /// An `fn`: it runs on a thread of its own.
    Blocking(Box<dyn FnOnce() -> Result<Json, TaskError> + Send>),
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Async(_) => "Execution::Async",
            Self::Blocking(_) => "Execution::Blocking",
        })
    }
}

/// What a task function may return: a value, or a `Result` with any error that is one or can be boxed as one.
///
/// The parameter only keeps the two implementations apart.
#[diagnostic::on_unimplemented(
    message = "a task cannot return `{Self}`",
    label = "cannot be stored as a result",
    note = "values travel as JSON, so their types implement `serde::Serialize` and `serde::Deserialize`, and own what \
            they hold (`Send + 'static`)",
    note = "the error of a `Result` converts into `Box<dyn std::error::Error + Send + Sync>`, as every error does that \
            is `Send + Sync`"
)]
pub trait IntoTaskResult<Kind> {
    /// The value.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// The value as it is stored, or how the run ended.
    fn into_task_result(self) -> Result<Json, TaskError>;
}

/// Marks `Result<T, E>` for [`IntoTaskResult`].
#[derive(Debug)]
pub enum Fallible {}

/// Marks plain values for [`IntoTaskResult`].
#[derive(Debug)]
pub enum Infallible {}

#[diagnostic::do_not_recommend]
impl<T, E> IntoTaskResult<Fallible> for Result<T, E>
where
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = T;

    fn into_task_result(self) -> Result<Json, TaskError> {
        match self {
            Ok(value) => encode(&value),
            Err(error) => {
                let boxed = error.into();
                Err(TaskError::from_error(&*boxed, std::any::type_name::<E>()))
            }
        }
    }
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Send + 'static> IntoTaskResult<Infallible> for T {
    type Output = T;

    fn into_task_result(self) -> Result<Json, TaskError> {
        encode(&self)
    }
}

/// The value of a task that cannot fail, as it is stored.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<Json, TaskError> {
    Json::from_value(value).map_err(|why| TaskError::unencodable("the returned value", &why))
}
