//! What `#[celeriac::task]` writes names of; not for use by hand, and free to change in any release.

pub use std::boxed::Box;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::canvas::Signature;
pub use crate::task::{
    ArgumentReader, Arguments, BlockingContext, Context, Description, Execution, Fallible, Infallible,
    IntoTaskResult, RateLimit, Task, TaskError, TaskOptions, Typed, name,
};

use crate::protocol::{Json, JsonError};

/// What can be an argument of a task. One bound, so that a type that cannot gets one error that says what to do.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a task",
    label = "cannot travel as data",
    note = "arguments travel as JSON, so their types implement `serde::Serialize` and `serde::Deserialize`, and own \
            what they hold (`Send + 'static`)"
)]
pub trait Argument: Serialize + DeserializeOwned + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Send + 'static> Argument for T {}

/// An argument as it travels.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn encode_argument<T: Argument>(value: &T) -> Result<Json, JsonError> {
    Json::from_value(value)
}

/// The call that the arguments make.
#[must_use]
pub fn call<T: Task, const N: usize>(arguments: [Result<Json, JsonError>; N]) -> Signature<T> {
    Signature::of_task(arguments.into_iter().collect())
}

/// As [`ArgumentReader::required`].
///
/// # Errors
/// As there.
pub fn required_argument<T: Argument>(
    reader: &mut ArgumentReader,
    name: &'static str,
) -> Result<T, TaskError> {
    reader.required(name)
}

/// As [`ArgumentReader::optional`].
///
/// # Errors
/// As there.
pub fn optional_argument<T: Argument>(
    reader: &mut ArgumentReader,
    name: &'static str,
    default: impl FnOnce() -> T,
) -> Result<T, TaskError> {
    reader.optional(name, default)
}

/// As [`IntoTaskResult::into_task_result`].
///
/// # Errors
/// As there.
pub fn into_task_result<Kind, R: IntoTaskResult<Kind>>(returned: R) -> Result<Json, TaskError> {
    returned.into_task_result()
}
