//! Every key and channel that this store uses in Redis.
//!
//! Celery's keys keep Celery's names; our own begin with `celeriac:`. `global_keyprefix` goes before all of them but the
//! results, which have a prefix of their own, as in Celery. `<id>` is a task, `<prefix>` what the ids of a batch begin with,
//! `<gid>` a group, `<q>` a queue, `<ticket>` a question to workers. A key whose bound begins with TTL always has one;
//! `tests/it/redis_keys.rs` reads this table, and compares.
//!
//! | key | type | holds | owner, and what bounds it |
//! |---|---|---|---|
//! | `<q>`, `<q>␆␖3`, `<q>␆␖6`, `<q>␆␖9` | list | envelopes that wait, the next one at the right end | Celery; who consumes |
//! | `unacked` | hash | delivery tag → `[envelope, exchange, routing key]` of what is held | Celery; settled, restored |
//! | `unacked_index` | zset | delivery tag by the second it was last known to be held | Celery; with `unacked` |
//! | `_kombu.binding.<q>` | set | the binding of a queue to the exchange of its name | Celery; one a queue |
//! | `_kombu.binding_permanent.<q>` | set | the same | Celery; one a queue |
//! | `celery-task-meta-<id>` | string | state and result | TTL `result_expires`; Celery |
//! | `celery-taskset-meta-<gid>` | string | the shape of a saved group | TTL, the same; swept |
//! | `celery-taskset-meta-<gid>.s` | string | how many parts a chord has | TTL, the same; fired, swept |
//! | `celery-taskset-meta-<gid>.t` | string | how many were added to them, which only Python does | TTL, the same; fired, swept |
//! | `celery-taskset-meta-<gid>.j` | zset | its parts by their place | TTL, the same; fired, swept |
//! | `celery-taskset-meta-<gid>.d` | set | which parts were counted | TTL, the same; fired, swept |
//! | `celery-taskset-meta-<gid>.c` | string | who fires it, and then that it was fired | TTL, the same, and then five minutes |
//! | `celeriac:counter` | string | the last number given out | this store; one |
//! | `celeriac:tasks` | stream | number-0 → id, or a batch under the number of its last, in the order of acceptance | the task; swept with it |
//! | `celeriac:t:<id>` | hash | what is known of a task, see `lua/prelude.lua` | the task; swept |
//! | `celeriac:b:<prefix>` | hash | what is known of a batch, see `lua/batch.lua`: of tasks whose ids begin so | its tasks; goes when the last is swept |
//! | `celeriac:r:<prefix>` | string | a bit for each of them that has or had a record of its own | with the batch |
//! | `celeriac:l:<id>` | list | its log, where that is more than its end | the task; `log_bound`, swept with it |
//! | `celeriac:a:<id>` | list | its attempts | the task; 20, swept with it |
//! | `celeriac:s:<id>` | hash | its durable steps | the task; swept with it; TTL where it is unknown |
//! | `celeriac:n:<id>` | list | messages of the same id that came while it was held | the task; go to their queue when it is settled |
//! | `celeriac:messages` | hash | id → envelope of what is delayed, held, dead or settled | the task; swept with it |
//! | `celeriac:delayed:<q>` | zset | ids by the time they are due | goes when the last is due |
//! | `celeriac:leases` | zset | reservations by the time they end | settled, restored |
//! | `celeriac:interrupts` | hash | reservation → worker and how to stop it, of what was revoked while held | with the reservation |
//! | `celeriac:marks` | hash | ids of what is held and of which settling needs to know more | settled, restored |
//! | `celeriac:dead` | zset | ids of dead letters by number | an operator: revived, dropped |
//! | `celeriac:paused` | set | queues nothing is reserved from | an operator: resumed |
//! | `celeriac:queues` | zset | queues by the second they were last declared | swept when empty for a week |
//! | `celeriac:consumers` | zset | queues by the second a worker of ours last consumed from them | swept after a week |
//! | `celeriac:uneven` | set | lists that hold priorities between Celery's steps | goes with the list's last message |
//! | `celeriac:feed` | stream | batches of (task number, position) in the order of writing | `feed_bound` |
//! | `celeriac:groups` | zset | groups saved and chords opened, by when | swept |
//! | `celeriac:c:<gid>` | hash | what Celery does not keep of a chord: its body | TTL, the same; fired, swept |
//! | `celeriac:ready` | zset | chords complete and not fired, by number | fired, swept |
//! | `celeriac:swept` | string | where the next sweep goes on | this store; one |
//! | `celeriac:worker:<id>` | string | the card of a worker of ours | TTL, a minute beyond its own |
//! | `celeriac:workers` | zset | workers of ours by when their cards expire | the worker; taken out by the next heartbeat of any |
//! | `celeriac:commands` | stream | what workers are told | TTL, an hour after the last; `COMMANDS_KEPT_MAX` |
//! | `celeriac:commands:last` | string | the number of the newest of them | this store; one |
//! | `celeriac:command:<id>` | string | that a command is in that log, by its delivery tag | TTL, an hour |
//! | `celeriac:reply-to:<ticket>` | string | where Python wants answers to go | TTL, an hour |
//! | `celeriac:replies:<ticket>` | hash | answers of workers of ours | TTL, ten minutes |
//! | `celeriac:reply-queues` | zset | tickets bound for answers of Python's workers, by when they are taken away | taken away by the next question or heartbeat of any |
//! | `<ticket>.reply.celery.pidbox` | list | answers of Python's workers, and to Python | with its ticket in `celeriac:reply-queues`; what we push to has a TTL of a minute |
//! | `_kombu.binding.reply.celery.pidbox` | set | bindings of such lists | with their tickets |
//! | `_kombu.binding_deadlines` | zset | until when the table above counts | Celery; one member of ours |
//! | `celeriac:revoked` | zset | tasks revoked that no store knows, by when | TTL, three hours; `REVOKED_NOTED_MAX` |
//! | `celeriac:rights` | string | nothing: what the user may do is tried out on it | gone with the script that makes it |
//!
//! Channels hold nothing: `celery-task-meta-<id>` tells a result when it is stored, `/<db>.celery.pidbox` commands,
//! `/<db>.celeryev/<type>` events; who subscribes to `celeriac:listeners` is one of ours.

/// What stands between a queue and its priority step in the name of a list.
pub(super) const SEPARATOR: &str = "\u{6}\u{16}";

/// Celery's `priority_steps`.
pub(super) const STEPS: [u8; 4] = [0, 3, 6, 9];

/// Names keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    prefix: String,
    result_prefix: String,
}

impl Keys {
    /// With Celery's `global_keyprefix` of the broker, and that of the result backend, both verbatim.
    pub(super) fn new(prefix: &str, result_prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), result_prefix: result_prefix.to_owned() }
    }

    /// What goes before every key and channel of the broker's half.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What goes before every key and channel of the result backend's half.
    pub(crate) fn result_prefix(&self) -> &str {
        &self.result_prefix
    }

    /// A key of our own.
    pub(crate) fn own(&self, name: &str) -> String {
        format!("{}celeriac:{name}", self.prefix)
    }

    /// The list for a queue at a priority step.
    pub(super) fn list(&self, queue: &str, step: u8) -> String {
        match step {
            0 => format!("{}{queue}", self.prefix),
            step => format!("{}{queue}{SEPARATOR}{step}", self.prefix),
        }
    }

    /// The result of a task; the channel it is told on has the same name.
    pub(crate) fn meta(&self, task_id: &str) -> String {
        format!("{}celery-task-meta-{task_id}", self.result_prefix)
    }

    /// A group.
    pub(super) fn group(&self, group_id: &str) -> String {
        format!("{}celery-taskset-meta-{group_id}", self.result_prefix)
    }

    /// What is known of a task.
    pub(super) fn task(&self, task_id: &str) -> String {
        self.own(&format!("t:{task_id}"))
    }

    /// The log of a task.
    pub(super) fn log(&self, task_id: &str) -> String {
        self.own(&format!("l:{task_id}"))
    }

    /// The steps of a task.
    pub(super) fn steps(&self, task_id: &str) -> String {
        self.own(&format!("s:{task_id}"))
    }

    /// The delayed messages of a queue.
    pub(super) fn delayed(&self, queue: &str) -> String {
        self.own(&format!("delayed:{queue}"))
    }
}

/// Whether a prefix puts all keys in one slot of a cluster: it has a hash tag.
pub(super) fn has_hash_tag(prefix: &str) -> bool {
    hash_tag(prefix).is_some()
}

/// The text between the first `{` and the next `}`, when there is any.
pub(super) fn hash_tag(prefix: &str) -> Option<&str> {
    let (_, rest) = prefix.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_named_as_celery_names_them() {
        let keys = Keys::new("px:", "");
        assert_eq!(keys.list("celery", 0), "px:celery");
        assert_eq!(keys.list("celery", 6), "px:celery\u{6}\u{16}6");
        assert_eq!(keys.meta("a"), "celery-task-meta-a");
        assert_eq!(keys.own("leases"), "px:celeriac:leases");
    }

    #[test]
    fn hash_tags_are_what_redis_takes_for_them() {
        for (prefix, tag) in [
            ("{cel}:", Some("cel")),
            ("a{b}c{d}", Some("b")),
            ("", None),
            ("{}:", None),
            ("{x", None),
            ("x}", None),
        ] {
            assert_eq!(hash_tag(prefix), tag, "{prefix}");
        }
    }
}
