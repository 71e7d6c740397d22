//! Identifiers as types of their own, cheap to clone, so that a queue is never taken for a task.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text of the identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<&$name> for $name {
            fn from(other: &$name) -> Self {
                other.clone()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

identifier! {
    /// Names one task for its whole life, through retries and redeliveries. Any text is legal, as in Celery; our own
    /// ids are UUIDs of version 7, whose order is roughly that of their making.
    TaskId
}
identifier! {
    /// Names a group; the header of a chord is a group, so it names the chord too.
    GroupId
}
identifier! {
    /// A named line of messages in a broker.
    QueueName
}
identifier! {
    /// One incarnation of a worker process: its node name and what makes this start of it unique. A lease belongs to
    /// an incarnation, so that a worker restarted under its old name does not inherit what its dead self held.
    WorkerName
}
identifier! {
    /// One reservation of one message. A message delivered again gets a new tag: the tag is the fence that keeps a
    /// worker whose lease has passed from finishing the task.
    DeliveryTag
}

impl TaskId {
    /// A fresh id.
    #[must_use]
    pub fn random() -> Self {
        Self::from(uuid_text(uuid::Uuid::now_v7()))
    }

    /// The id that belongs to an idempotency key: the same task name and key give the same id on every machine.
    #[must_use]
    pub fn for_key(task: &str, key: &str) -> Self {
        // A length in front keeps ("a", "bc") and ("ab", "c") apart.
        let name = format!("{}:{task}{key}", task.len());
        Self::from(uuid_text(uuid::Uuid::new_v5(&IDEMPOTENCY_NAMESPACE, name.as_bytes())))
    }
}

impl GroupId {
    /// A fresh id.
    #[must_use]
    pub fn random() -> Self {
        Self::from(uuid_text(uuid::Uuid::now_v7()))
    }
}

const IDEMPOTENCY_NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x6c1d_6f5e_0b8e_4a53_9a57_7d1f_0a9e_c3e1);

fn uuid_text(id: uuid::Uuid) -> String {
    id.hyphenated().to_string()
}
