//! A call as data: Celery's signature on the wire.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DecodeError, Json, JsonError, JsonMap, scan, writer};

/// A task, its arguments and its options, ready to be applied. Composites (chain, group, chord, map, starmap, chunks)
/// are signatures too, with their parts in `kwargs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The task's name; `celery.chain` and so on for composites.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments, or the parts of a composite.
    pub kwargs: JsonMap,
    /// Options under Celery's names: `task_id`, `queue`, `countdown`, `link_error`, …
    pub options: JsonMap,
    /// `chain`, `group`, `chord`, `xmap`, `xstarmap`, `chunks`; none for a plain task.
    pub subtask_type: Option<String>,
    /// Whether it ignores the result of what came before it.
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

    /// Reads a signature. Fields that are unknown are passed over; of the known ones only `task` must be there.
    ///
    /// # Errors
    /// It is not an object, `task` is absent, or a field is of another type.
    pub fn decode(json: &Json) -> Result<Self, DecodeError> {
        Self::read(json.as_str(), "signature")
    }

    /// Writes it, field for field as Celery does.
    #[must_use]
    pub fn encode(&self) -> Json {
        let mut out = String::with_capacity(128);
        self.write(&mut out);
        Json::trusted(&out)
    }

    /// An option read as a type; `None` when absent or null.
    pub fn option<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JsonError> {
        match self.options.get(name) {
            None => Ok(None),
            Some(value) if value.is_null() => Ok(None),
            Some(value) => value.to().map(Some).map_err(|why| JsonError(format!("option {name}: {why}"))),
        }
    }

    /// Sets an option, or replaces it.
    ///
    /// # Errors
    /// The value cannot be written as JSON, as a map whose keys are not strings.
    pub fn set_option<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), JsonError> {
        let value = Json::from_value(value).map_err(|why| JsonError(format!("option {name}: {why}")))?;
        self.options.insert(name.to_owned(), value);
        Ok(())
    }

    pub(super) fn read(text: &str, part: &str) -> Result<Self, DecodeError> {
        let field = |name: &str| format!("{part}.{name}");
        let mut task = None;
        let mut signature = Self::new(String::new(), Vec::new(), JsonMap::new());
        for entry in scan::entries(text).map_err(|why| DecodeError::invalid(part, why))? {
            let (key, value) = entry.map_err(|why| DecodeError::invalid(part, why))?;
            if value == "null" {
                continue;
            }
            let wrong = |expected: &str| {
                DecodeError::invalid(
                    field(&key),
                    format_args!("expected {expected}, found {}", scan::kind(value)),
                )
            };
            match &*key {
                "task" => task = Some(scan::string(value).ok_or_else(|| wrong("a string"))?.into_owned()),
                "args" => {
                    signature.args = Json::trusted(value).array_items().map_err(|_| wrong("a list"))?;
                }
                "kwargs" => signature.kwargs = JsonMap::read(value).map_err(|_| wrong("an object"))?,
                "options" => signature.options = JsonMap::read(value).map_err(|_| wrong("an object"))?,
                "subtask_type" => {
                    signature.subtask_type =
                        Some(scan::string(value).ok_or_else(|| wrong("a string"))?.into_owned());
                }
                "immutable" => {
                    signature.immutable = match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(wrong("a boolean")),
                    };
                }
                _ => {}
            }
        }
        signature.task = task.ok_or_else(|| DecodeError::invalid(field("task"), "it is missing"))?;
        Ok(signature)
    }

    pub(super) fn read_list(text: &str, part: &str) -> Result<Vec<Self>, DecodeError> {
        let items = scan::items(text).map_err(|why| DecodeError::invalid(part, why))?;
        items.map(|item| Self::read(item.map_err(|why| DecodeError::invalid(part, why))?, part)).collect()
    }

    pub(super) fn write(&self, out: &mut String) {
        let mut object = writer::Object::new(out);
        object.text("task", &self.task);
        writer::array(object.key("args"), &self.args);
        writer::map(object.key("kwargs"), &self.kwargs);
        writer::map(object.key("options"), &self.options);
        object.optional_text("subtask_type", self.subtask_type.as_deref());
        object.raw("immutable", if self.immutable { "true" } else { "false" });
        object.end();
    }

    pub(super) fn write_list(out: &mut String, list: &[Self]) {
        out.push('[');
        for (index, signature) in list.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            signature.write(out);
        }
        out.push(']');
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::decode(&Json::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
