//! What this worker was told is revoked and the store does not know: tasks that a Python producer has put on a queue where
//! no worker of ours has met them yet, and stamps. As celery/worker/state.py: in memory, bounded, shared with other
//! workers when they start.
//!
//! What the store knows is revoked there, durably; a task that was sent again by hand is not meant by what was said of it
//! before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::{Timestamp, after};
use crate::control::{REVOKED_NOTED, REVOKED_NOTED_MAX};
use crate::id::TaskId;
use crate::protocol::{Headers, Json, JsonMap};

/// So many values of stamps are remembered, the newest.
const STAMPS_MAX: usize = 10_000;

/// What is revoked.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    ids: HashSet<TaskId>,
    /// The same in the order of telling, with the time.
    order: VecDeque<(Timestamp, TaskId)>,
    stamps: HashMap<String, VecDeque<Json>>,
    stamp_count: usize,
}

impl Revoked {
    /// Remembers tasks.
    pub(super) fn add(&self, ids: impl IntoIterator<Item = TaskId>, now: Timestamp) {
        let mut told = self.lock();
        for id in ids {
            if told.ids.insert(id.clone()) {
                told.order.push_back((now, id));
            }
        }
        told.forget(now);
    }

    /// The tasks, oldest first.
    pub(super) fn ids(&self, now: Timestamp) -> Vec<TaskId> {
        let mut told = self.lock();
        told.forget(now);
        told.order.iter().map(|(_, id)| id.clone()).collect()
    }

    /// Remembers stamps: a name, and values of which each revokes.
    pub(super) fn add_stamps(&self, name: &str, values: Vec<Json>) {
        let mut told = self.lock();
        for value in values {
            let known = told.stamps.entry(name.to_owned()).or_default();
            if known.contains(&value) {
                continue;
            }
            known.push_back(value);
            told.stamp_count += 1;
            if told.stamp_count > STAMPS_MAX
                && let Some(most) = told.stamps.values_mut().max_by_key(|values| values.len())
            {
                most.pop_front();
                told.stamp_count -= 1;
            }
        }
    }

    /// Whether a message is revoked.
    pub(super) fn has(&self, headers: &Headers, now: Timestamp) -> bool {
        if headers.custom.contains_key(crate::canvas::SENT_AGAIN) {
            return false;
        }
        let mut told = self.lock();
        if told.ids.is_empty() && told.stamps.is_empty() {
            return false;
        }
        told.forget(now);
        if told.ids.contains(headers.id.as_str()) {
            return true;
        }
        // As Celery, only stamps that the message names count.
        let named = headers.stamped_headers.as_deref().unwrap_or_default();
        named.iter().any(|name| {
            told.stamps.get(name).is_some_and(|revoked| {
                let has = stamp_values(headers.stamps.get(name));
                has.iter().any(|value| revoked.contains(value))
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Nothing that holds this lock can panic half-way through a change.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn forget(&mut self, now: Timestamp) {
        while let Some((at, _)) = self.order.front()
            && (self.order.len() > REVOKED_NOTED_MAX || after(*at, REVOKED_NOTED) <= now)
        {
            if let Some((_, id)) = self.order.pop_front() {
                self.ids.remove(&id);
            }
        }
    }
}

/// The values of a stamp, which is one or a list.
pub(super) fn stamp_values(stamp: Option<&Json>) -> Vec<Json> {
    match stamp {
        None => Vec::new(),
        Some(stamp) => stamp.array_items().unwrap_or_else(|_| vec![stamp.clone()]),
    }
}

/// The values that two sets of stamps have in common, by name; empty where no task is meant.
pub(super) fn common_stamps(of_task: &JsonMap, revoked: &JsonMap) -> Vec<(String, Vec<Json>)> {
    let mut common = Vec::new();
    for (name, values) in revoked {
        let has = stamp_values(of_task.get(name));
        let both: Vec<Json> =
            stamp_values(Some(values)).into_iter().filter(|value| has.contains(value)).collect();
        if !both.is_empty() {
            common.push((name.clone(), both));
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn headers(id: &str) -> Headers {
        Headers { id: id.to_owned(), ..Headers::default() }
    }

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    #[test]
    fn ids_are_remembered_for_three_hours() {
        let revoked = Revoked::default();
        assert!(!revoked.has(&headers("a"), at(0)));
        revoked.add([TaskId::from("a"), TaskId::from("b"), TaskId::from("a")], at(0));
        revoked.add([TaskId::from("c")], at(5));
        assert_eq!(revoked.ids(at(5)), [TaskId::from("a"), TaskId::from("b"), TaskId::from("c")]);
        assert!(revoked.has(&headers("a"), at(10_799)) && !revoked.has(&headers("d"), at(5)));
        assert!(!revoked.has(&headers("a"), at(10_800)) && revoked.has(&headers("c"), at(10_800)));
        assert_eq!(revoked.ids(at(10_800)), [TaskId::from("c")]);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let revoked = Revoked::default();
        revoked.add((0..REVOKED_NOTED_MAX + 2).map(|n| TaskId::from(n.to_string())), at(0));
        assert!(!revoked.has(&headers("1"), at(0)) && revoked.has(&headers("2"), at(0)));
        assert_eq!(revoked.ids(at(0)).len(), REVOKED_NOTED_MAX);
        revoked.add_stamps("s", (0..STAMPS_MAX + 5).map(|n| json(&n.to_string())).collect());
        assert_eq!(revoked.lock().stamps["s"].len(), STAMPS_MAX);
    }

    #[test]
    fn stamps_that_a_message_names_count() {
        let stamped = |names: Option<&[&str]>, stamps: &str| Headers {
            stamped_headers: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            stamps: json(stamps).entries().unwrap(),
            ..headers("a")
        };
        let revoked = Revoked::default();
        revoked.add_stamps("team", vec![json("\"red\""), json("7")]);
        for (names, stamps, meant) in [
            (Some(&["team"][..]), r#"{"team": "red"}"#, true),
            (Some(&["team"]), r#"{"team": ["blue", 7]}"#, true),
            (Some(&["team"]), r#"{"team": "blue"}"#, false),
            (Some(&["other"]), r#"{"team": "red", "other": "red"}"#, false),
            (Some(&[]), r#"{"team": "red"}"#, false),
            (None, r#"{"team": "red"}"#, false),
        ] {
            assert_eq!(revoked.has(&stamped(names, stamps), at(0)), meant, "{names:?} {stamps}");
        }
    }

    #[test]
    fn a_task_sent_again_by_hand_is_not_meant() {
        let revoked = Revoked::default();
        revoked.add([TaskId::from("a")], at(0));
        let mut again = headers("a");
        again.custom.insert(crate::canvas::SENT_AGAIN, json("true"));
        assert!(revoked.has(&headers("a"), at(0)) && !revoked.has(&again, at(0)));
    }

    #[test]
    fn stamps_have_values_in_common() {
        let map = |text: &str| json(text).entries().unwrap();
        let common = |of_task, revoked| {
            common_stamps(&map(of_task), &map(revoked))
                .into_iter()
                .map(|(name, values)| format!("{name} {}", Json::array(&values)))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            common(r#"{"a": ["x", "y"], "b": 1}"#, r#"{"a": "y", "b": [2, 1]}"#),
            ["a [\"y\"]", "b [1]"]
        );
        assert!(common("{}", r#"{"a": "y"}"#).is_empty());
    }
}
