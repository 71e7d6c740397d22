//! Tasks that every worker knows: those that Celery's canvas sends, and that are no application's own.

use std::sync::Arc;

use crate::protocol::{Json, JsonMap, Message, Signature};
use crate::task::{Arguments, Context, Execution, RegisteredTask, Registry, TaskError, encode};

/// A built-in task with what it needs.
pub(super) enum Builtin {
    /// `celery.map` and `celery.starmap`: the inner task, called here for each item. As celery/app/builtins.py, the inner
    /// task must be one of this worker's own.
    Map {
        /// The inner task.
        inner: Arc<RegisteredTask>,
        /// Whether an item is a list of arguments.
        star: bool,
    },
    /// `celery.accumulate`: its arguments, or the one numbered `index`.
    Accumulate,
}

/// Their names.
pub(super) const NAMES: [&str; 3] = ["celery.accumulate", "celery.map", "celery.starmap"];

pub(super) fn is_builtin(task: &str) -> bool {
    NAMES.contains(&task)
}

impl Builtin {
    /// The built-in that a message asks for; `None` when its inner task is not known here.
    pub(super) fn resolve(message: &Message, registry: &Registry) -> Option<Self> {
        let star = match message.headers.task.as_str() {
            "celery.accumulate" => return Some(Self::Accumulate),
            "celery.map" => false,
            "celery.starmap" => true,
            _ => return None,
        };
        let inner: Signature = message.body.kwargs.get("task")?.to().ok()?;
        registry.task(&inner.task).cloned().map(|inner| Self::Map { inner, star })
    }

    pub(super) fn bind(&self, cx: Context, arguments: &Arguments) -> Result<Execution, TaskError> {
        match self {
            Self::Accumulate => {
                let index = arguments.kwargs.get("index").filter(|index| !index.is_null());
                let value = match index {
                    None => Json::array(&arguments.args),
                    Some(index) => {
                        let index: usize =
                            index.to().map_err(|why| wrong("celery.accumulate", "index", why))?;
                        let value = arguments.args.get(index).cloned();
                        value.ok_or_else(|| wrong("celery.accumulate", "index", "out of range"))?
                    }
                };
                Ok(Execution::Async(Box::pin(async move { Ok(value) })))
            }
            Self::Map { inner, star } => {
                let items = arguments.kwargs.get("it").map_or_else(|| Ok(Vec::new()), Json::array_items);
                let items = items.map_err(|why| wrong("celery.map", "it", why))?;
                let (inner, star) = (Arc::clone(inner), *star);
                Ok(Execution::Async(Box::pin(map(cx, inner, items, star))))
            }
        }
    }
}

async fn map(
    cx: Context,
    inner: Arc<RegisteredTask>,
    items: Vec<Json>,
    star: bool,
) -> Result<Json, TaskError> {
    let mut values = Vec::with_capacity(items.len());
    for item in items {
        if let Err(cancelled) = cx.check() {
            return Err(TaskError::from_error(&cancelled, "celeriac::Cancelled"));
        }
        let args = if star {
            item.array_items().map_err(|why| wrong("celery.starmap", "it", why))?
        } else {
            vec![item]
        };
        let bound = (inner.bind)(cx.clone(), Arguments { args, kwargs: JsonMap::new() })?;
        values.push(match bound {
            Execution::Async(future) => future.await?,
            Execution::Blocking(function) => {
                let scope = cx.clone();
                tokio::task::spawn_blocking(move || scope.scope_blocking(function))
                    .await
                    .map_err(|_| super::panics::last("an item of the map"))??
            }
        });
    }
    encode(&values)
}

fn wrong(task: &str, argument: &str, why: impl std::fmt::Display) -> TaskError {
    TaskError::type_error(&format!("{task}() argument '{argument}': {why}"))
}
