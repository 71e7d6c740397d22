//! Errors as Celery stores them, and Celery's own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DecodeError, Json, args_repr, scan, writer};

/// An error as Celery stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// The class's name.
    pub exc_type: String,
    /// The arguments of the exception.
    pub exc_message: Vec<Json>,
    /// The class's module. A reader in Python raises a class of that module when it is imported there, and else one
    /// made up under the same name.
    pub exc_module: Option<String>,
}

impl Exception {
    /// Any class, with one text as its argument.
    #[must_use]
    pub fn new(module: &str, class: &str, message: &str) -> Self {
        Self::with_args(module, class, vec![Json::string(message)])
    }

    /// Any class, with any arguments.
    #[must_use]
    pub fn with_args(module: &str, class: &str, args: Vec<Json>) -> Self {
        Self { exc_type: class.to_owned(), exc_message: args, exc_module: Some(module.to_owned()) }
    }

    /// A class of Python's own: `ValueError`, `TypeError`, `KeyError`, …
    #[must_use]
    pub fn builtin(class: &str, message: &str) -> Self {
        Self::new("builtins", class, message)
    }

    /// The arguments do not fit the task.
    #[must_use]
    pub fn bad_arguments(message: &str) -> Self {
        Self::builtin("TypeError", message)
    }

    /// Revoked before it ran.
    #[must_use]
    pub fn revoked() -> Self {
        Self::new(CELERY, "TaskRevokedError", "revoked")
    }

    /// Revoked and stopped while it ran.
    #[must_use]
    pub fn terminated() -> Self {
        Self::new(CELERY, "TaskRevokedError", "terminated")
    }

    /// Its time to expire had passed before it ran.
    #[must_use]
    pub fn expired() -> Self {
        Self::new(CELERY, "TaskRevokedError", "expired")
    }

    /// It ran into its soft time limit.
    #[must_use]
    pub fn soft_time_limit() -> Self {
        Self::with_args(BILLIARD, "SoftTimeLimitExceeded", Vec::new())
    }

    /// It ran into its hard time limit, so many seconds.
    #[must_use]
    pub fn time_limit(seconds: f64) -> Self {
        let mut limit = String::new();
        writer::seconds(&mut limit, Some(seconds));
        Self::with_args(BILLIARD, "TimeLimitExceeded", vec![Json::trusted(&limit)])
    }

    /// The process that ran it died.
    #[must_use]
    pub fn worker_lost(message: &str) -> Self {
        Self::new(BILLIARD, "WorkerLostError", message)
    }

    /// No worker here knows the task.
    #[must_use]
    pub fn not_registered(task: &str) -> Self {
        Self::new(CELERY, "NotRegistered", task)
    }

    /// The task rejected its message.
    #[must_use]
    pub fn reject(reason: &str, requeue: bool) -> Self {
        let requeue = Json::trusted(if requeue { "true" } else { "false" });
        Self::with_args(CELERY, "Reject", vec![Json::string(reason), requeue])
    }

    /// A task of a chord's header failed; `error` as Python would show it: `ValueError('x')`.
    #[must_use]
    pub fn chord(task_id: &str, error: &str) -> Self {
        Self::new(CELERY, "ChordError", &format!("Dependency {task_id} raised {error}"))
    }

    /// Reads an exception. The message may be a list, one value alone, or absent.
    ///
    /// # Errors
    /// It is not an object, or has no `exc_type`.
    pub fn decode(json: &Json) -> Result<Self, DecodeError> {
        let entries = json.entries().map_err(|why| DecodeError::invalid("exception", why))?;
        let text =
            |key: &str| entries.get(key).and_then(|value| value.as_string().map(|text| text.into_owned()));
        let exc_message = match entries.get("exc_message") {
            None => Vec::new(),
            Some(message) if message.is_null() => Vec::new(),
            Some(message) => message.array_items().unwrap_or_else(|_| vec![message.clone()]),
        };
        Ok(Self {
            exc_type: text("exc_type").ok_or(DecodeError::Missing { part: "exception.exc_type" })?,
            exc_message,
            exc_module: text("exc_module"),
        })
    }

    /// Reads whatever stands where an exception should, so that there is something to show.
    #[must_use]
    pub fn decode_lossy(json: &Json) -> Self {
        Self::decode(json).unwrap_or_else(|_| {
            let args = if json.is_null() { Vec::new() } else { vec![json.clone()] };
            Self::with_args("builtins", "Exception", args)
        })
    }

    /// Writes it, field for field as Celery does.
    #[must_use]
    pub fn encode(&self) -> Json {
        let mut out = String::with_capacity(96);
        let mut object = writer::Object::new(&mut out);
        object.text("exc_type", &self.exc_type);
        writer::array(object.key("exc_message"), &self.exc_message);
        object.optional_text("exc_module", self.exc_module.as_deref());
        object.end();
        Json::trusted(&out)
    }

    /// As Python prints it: `ValueError('boom')`.
    #[must_use]
    pub fn python_repr(&self) -> String {
        // Python prints the class by its own name, without those it is nested in.
        let class = self.exc_type.rsplit('.').next().unwrap_or_default();
        let args = args_repr(&self.exc_message);
        // A tuple of one has a comma that a call has not.
        format!("{class}{}", args.strip_suffix(",)").map_or(args.clone(), |args| format!("{args})")))
    }

    /// The first argument, if it is text.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        scan::string(self.exc_message.first()?.as_str()).map(std::borrow::Cow::into_owned)
    }
}

/// As the last line of a Python traceback: the class, and what it says.
impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.exc_type)?;
        match (self.message(), &self.exc_message[..]) {
            (Some(message), [_]) => write!(f, ": {message}"),
            (_, []) => Ok(()),
            (_, args) => write!(f, ": {}", Json::array(args)),
        }
    }
}

/// A task may return it as its error, and so choose what a caller in Python catches: `builtins.ValueError`, say.
impl std::error::Error for Exception {}

const CELERY: &str = "celery.exceptions";
const BILLIARD: &str = "billiard.exceptions";

impl Serialize for Exception {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Exception {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::decode(&Json::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_shape() {
        let args = |text| Exception::decode(&Json::parse(text).unwrap()).unwrap().exc_message;
        assert_eq!(args(r#"{"exc_type": "E", "exc_message": ["x", 1]}"#).len(), 2);
        assert_eq!(args(r#"{"exc_type": "E", "exc_message": "x"}"#), [Json::string("x")]);
        assert_eq!(args(r#"{"exc_type": "E", "exc_message": null}"#), []);
        assert_eq!(args(r#"{"exc_type": "E"}"#), []);
        for text in ["\"oops\"", "null", "{\"exc_message\": [\"x\"]}"] {
            let json = Json::parse(text).unwrap();
            assert!(Exception::decode(&json).is_err());
            assert_eq!(Exception::decode_lossy(&json).exc_type, "Exception");
        }
    }
}
