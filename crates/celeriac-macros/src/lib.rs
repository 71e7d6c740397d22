//! The `#[task]` attribute of celeriac; use it as `celeriac::task`.

mod expand;
mod function;
mod options;
mod problems;

use proc_macro::TokenStream;

use crate::function::Function;
use crate::options::Options;

/// Turns a function into a task: one that can be called from another process, now or later.
///
/// ```ignore
/// use celeriac::{Celeriac, Context};
///
/// /// Counts the words of a file.
/// #[celeriac::task(max_retries = 5, retry_backoff = "2s", time_limit = "10m")]
/// async fn count(cx: Context, path: PathBuf, #[default(1)] least: usize) -> std::io::Result<usize> {
///     let text = tokio::fs::read_to_string(path).await?;
///     cx.progress(1, 1).await;
///     Ok(text.split_whitespace().filter(|word| word.len() >= least).count())
/// }
///
/// let app = Celeriac::connect("sqlite://celeriac.db").await?.register(count);
/// let words = count("notes.md".into(), 3).delay(&app).await?.get().await?;
/// ```
///
/// # What it makes
///
/// For a function `count`, each as visible as the function was:
///
/// - a function `count` that takes all arguments, without the context, and returns a `Signature<count>`: the call, to be
///   sent, scheduled or composed. It runs nothing by itself;
/// - `count::s`, which takes all arguments but the first: a call whose first argument is the value of what comes before
///   it in a chain;
/// - `count::call`, the function as it was written, for unit tests and for callers who want to run it on the spot;
/// - a type `count`, which implements `Task`. A module, type or crate of that name in the same scope is in its way.
///
/// Documentation and `#[deprecated]` go to the function, `#[cfg]` and lint levels to everything, and all other
/// attributes to the body: `#[tracing::instrument]` below `#[task]` does what one expects.
///
/// # The function
///
/// An `async fn` is awaited in the worker's runtime; an `fn` runs on a thread of its own, and may block. It is free (no
/// `self`), and not generic: a task has one name and one type for each argument.
///
/// **The context** of the run is the first parameter if its type is called `Context` or, for an `fn`, `BlockingContext`.
/// It is not an argument.
///
/// **Arguments** travel as JSON by position or by name, at most twelve of them. Their types implement
/// `serde::Serialize` and `serde::Deserialize` and own what they hold: `String` rather than `&str`. An argument that a
/// message leaves out is an error, except that
///
/// - `Option<T>` is then `None`;
/// - `#[default(value)]` before the parameter gives its value, any expression of its type that uses no other parameter.
///
/// After such a parameter all others need a default too, as in Python.
///
/// **The value** is nothing, a type that implements both serde traits, or a `Result` of one. A type counts as `Result`
/// by the last part of its path, so `anyhow::Result<T>` and `std::io::Result<T>` do, and an alias of another name does
/// not. The error is anything that converts into `Box<dyn std::error::Error + Send + Sync>`.
///
/// # Options
///
/// All may be left out; what is not given is left to the application's settings. Flags stand alone or take `true` or
/// `false`. Times are in seconds, as a number (`30`, `0.5`), or carry a unit in quotes: `"500ms"`, `"30s"`, `"5m"`, `"2h"`.
///
/// | option | value | meaning | default |
/// | --- | --- | --- | --- |
/// | `name` | text | the name in messages | module path and function: `my_app.tasks.count` |
/// | `max_retries` | number or `unlimited` | how often it may be tried again | 3 |
/// | `default_retry_delay` | time | how long a retry waits, unless `retry_backoff` or the task itself says otherwise | 180 s |
/// | `autoretry` | flag | an error is a reason to retry by itself, up to `max_retries` | set when `max_retries`, `default_retry_delay` or `retry_backoff` is given |
/// | `retry_backoff` | flag or time | retry *n*, from 0, waits this × 2ⁿ; as a flag, 1 s × 2ⁿ | off |
/// | `retry_backoff_max` | time | the longest such wait | 600 s |
/// | `retry_jitter` | flag | such a wait is drawn at random from zero up to itself | `true` |
/// | `time_limit` | time | the run is stopped, and fails | none of its own |
/// | `soft_time_limit` | time, less than `time_limit` | the run is asked to stop, see `Context::cancelled` | none of its own |
/// | `acks_late` | flag | the message is acknowledged after the run rather than before | as the application has it |
/// | `ignore_result` | flag | no result is kept | as the application has it |
/// | `track_started` | flag | STARTED is stored when it begins | as the application has it |
/// | `rate_limit` | text | the most starts for each worker: `"10/s"`, `"100/m"`, `"1000/h"`, or `"5"` a second | none |
/// | `priority` | 0 to 9 | 0 is consumed first, 9 last | as the application has it |
/// | `queue` | text | where calls go | as the application routes it |
/// | `expires` | time | a call not begun this long after it was sent is revoked | never |
/// | `crate` | path | the library, where it goes by another name | `::celeriac` |
#[proc_macro_attribute]
pub fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    expansion(options.into(), item.into()).unwrap_or_else(|error| error.into_compile_error()).into()
}

fn expansion(
    options: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> syn::Result<proc_macro2::TokenStream> {
    match (syn::parse2::<Options>(options), syn::parse2::<Function>(item)) {
        (Ok(options), Ok(function)) => Ok(expand::task(&options, &function)),
        (Err(mut errors), Err(more)) => {
            errors.combine(more);
            Err(errors)
        }
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors),
    }
}
