//! A call as data: Celery's signature on the wire.

use serde::{Deserialize, Serialize};

use super::{Json, JsonError};

/// An object whose values stay text, in the order read.
pub type JsonMap = std::collections::BTreeMap<String, Json>;

/// A task, its arguments and its options, ready to be applied. Composites (chain, group, chord, map, starmap, chunks)
/// are signatures too, with their parts in `kwargs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The task's name; `celery.chain` and so on for composites.
    pub task: String,
    /// Positional arguments.
    #[serde(default)]
    pub args: Vec<Json>,
    /// Named arguments, or the parts of a composite.
    #[serde(default)]
    pub kwargs: JsonMap,
    /// Options under Celery's names: `task_id`, `queue`, `countdown`, `link_error`, …
    #[serde(default)]
    pub options: JsonMap,
    /// `chain`, `group`, `chord`, `xmap`, `xstarmap`, `chunks`; none for a plain task.
    #[serde(default)]
    pub subtask_type: Option<String>,
    /// Whether it ignores the result of what came before it.
    #[serde(default)]
    pub immutable: bool,
}

impl Signature {
    /// A plain call.
    #[must_use]
    pub fn new(task: impl Into<String>, args: Vec<Json>, kwargs: JsonMap) -> Self {
        Self {
            task: task.into(),
            args,
            kwargs,
            options: JsonMap::new(),
            subtask_type: None,
            immutable: false,
        }
    }

    /// An option read as a type; `None` when absent or null.
    pub fn option<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JsonError> {
        match self.options.get(name) {
            None => Ok(None),
            Some(value) if value.is_null() => Ok(None),
            Some(value) => value.to().map(Some).map_err(|why| JsonError(format!("option {name}: {why}"))),
        }
    }
}
