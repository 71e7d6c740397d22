//! Identifiers as types of their own, cheap to clone, so that a queue is never taken for a task.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// ids are UUIDs of version 7, whose order is roughly that of their making, and those of a batch are of version 8.
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
        // A length in prefix keeps ("a", "bc") and ("ab", "c") apart.
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

/// Makes ids for tasks that are sent at once: UUIDs of version 8 that differ in their last four digits alone, which count
/// from `0000`, so that a store can keep one record for many tasks of which there is as yet nothing to tell apart. Who knows
/// one of them can guess the others.
#[derive(Debug)]
pub struct BatchIds {
    prefix: String,
    made: AtomicU32,
}

impl BatchIds {
    /// So many ids begin alike; those made after them are ordinary ones.
    pub const COUNT_MAX: u32 = 1 << 16;
    const PREFIX: usize = 32;

    /// Ids that begin as no others do.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = uuid::Uuid::now_v7().into_bytes();
        bytes[6] = 0x80 | (bytes[6] & 0x0f);
        let mut prefix = uuid_text(uuid::Uuid::from_bytes(bytes));
        prefix.truncate(Self::PREFIX);
        Self { prefix, made: AtomicU32::new(0) }
    }

    /// The next id.
    #[must_use]
    pub fn next(&self) -> TaskId {
        let place = self.made.fetch_add(1, Ordering::Relaxed);
        if place < Self::COUNT_MAX {
            TaskId::from(format!("{}{place:04x}", self.prefix))
        } else {
            TaskId::random()
        }
    }

    /// Whether an id has the form of those made here.
    #[must_use]
    pub fn may_have_made(id: &TaskId) -> bool {
        id.as_str().len() == Self::PREFIX + 4 && id.as_str().as_bytes()[14] == b'8'
    }

    /// What ids begin with that are those of a batch, all from its first and in their order; nothing for any others.
    #[must_use]
    pub fn prefix_of<'i>(ids: impl Iterator<Item = &'i TaskId>) -> Option<&'i str> {
        let mut prefix = None;
        for (place, id) in ids.enumerate() {
            let (begins, ends) = id.as_str().split_at_checked(Self::PREFIX)?;
            let alike = *prefix.get_or_insert(begins) == begins && begins.as_bytes()[14] == b'8';
            let digits =
                ends.len() == 4 && ends.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            if !alike || !digits || usize::from_str_radix(ends, 16) != Ok(place) {
                return None;
            }
        }
        prefix
    }
}

const IDEMPOTENCY_NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x6c1d_6f5e_0b8e_4a53_9a57_7d1f_0a9e_c3e1);

fn uuid_text(id: uuid::Uuid) -> String {
    id.hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_batch_are_known_by_their_form() {
        let (batch, other) = (BatchIds::random(), BatchIds::random());
        let ids: Vec<TaskId> = (0..300).map(|_| batch.next()).collect();
        let prefix = BatchIds::prefix_of(ids.iter()).unwrap();
        assert_eq!(ids[0].as_str(), format!("{prefix}0000"));
        assert_eq!(ids[299].as_str(), format!("{prefix}012b"));
        let id = uuid::Uuid::parse_str(ids[7].as_str()).unwrap();
        assert_eq!((id.get_version_num(), id.get_variant()), (8, uuid::Variant::RFC4122));
        assert_ne!(BatchIds::prefix_of([other.next()].iter()).unwrap(), prefix);

        assert_eq!(BatchIds::prefix_of(ids[1..].iter()), None, "not from the first");
        assert_eq!(BatchIds::prefix_of(ids.iter().step_by(2)), None, "one is missing");
        assert_eq!(BatchIds::prefix_of([&ids[0], &other.next()].into_iter()), None, "two batches");
        for no_batch in ["", "a", "0000", &prefix[..31], &format!("{prefix}+000"), &format!("{prefix}00000")]
        {
            assert_eq!(BatchIds::prefix_of([TaskId::from(no_batch)].iter()), None, "{no_batch}");
        }
        let of_version_7 = TaskId::from(TaskId::random().as_str()[..32].to_owned() + "0000");
        assert_eq!(BatchIds::prefix_of([of_version_7].iter()), None);
        assert_eq!(BatchIds::prefix_of([].iter()), None);
    }

    #[test]
    fn past_their_number_ids_are_ordinary() {
        let batch = BatchIds { made: AtomicU32::new(BatchIds::COUNT_MAX - 1), ..BatchIds::random() };
        assert_eq!(batch.next().as_str(), format!("{}ffff", batch.prefix));
        assert!(!batch.next().as_str().starts_with(&batch.prefix));
    }
}
