//! Many messages at once, in the cheapest way there is: `lua/publish_batch.lua`.
//!
//! What a script is told becomes a string of Lua's, which costs several times what a push does; and a record for each of
//! many tasks that differ in nothing costs as much again. So a batch is pushed by the command for that, and accepted by a
//! script in the same transaction, which writes one record for all of them, or takes them off again.

use super::transact::envelope_of;
use super::{RedisStore, script, value};
use crate::broker::Routed;
use crate::clock::Timestamp;
use crate::id::BatchIds;
use crate::protocol::KombuEnvelope;
use crate::store::Result;

/// Fewer are published one by one.
const MESSAGES_MIN: usize = 16;

/// Messages of one name, for one queue, with nothing about them that only a record of their own could say.
pub(super) struct Batch<'m> {
    /// What their ids begin with.
    prefix: &'m str,
    messages: &'m [Routed],
}

impl<'m> Batch<'m> {
    /// The messages as a batch, where they are one.
    pub(super) fn of(messages: &'m [Routed]) -> Option<Self> {
        let first = messages.first().filter(|_| messages.len() >= MESSAGES_MIN)?;
        let alike = |routed: &Routed| {
            routed.task == first.task && routed.queue == first.queue && routed.tags.is_empty()
        };
        let prefix = BatchIds::prefix_of(messages.iter().map(|routed| &routed.task_id))?;
        messages.iter().all(alike).then_some(Self { prefix, messages })
    }
}

impl RedisStore {
    /// Publishes a batch that nobody has heard of; says whether it was that. If not, nothing was done.
    pub(super) async fn publish_batch(&self, batch: &Batch<'_>, now: Timestamp) -> Result<bool> {
        let Batch { prefix, messages } = batch;
        let (link, keys) = (&self.link, self.link.keys());
        let Routed { task, queue, .. } = &messages[0];
        let bytes: usize = messages.iter().map(|routed| KombuEnvelope::bytes_max(&routed.message)).sum();
        let mut push = redis::Cmd::with_capacity(messages.len() + 2, bytes);
        push.arg("LPUSH").arg(keys.list(queue.as_str(), 0));
        for routed in *messages {
            let envelope = envelope_of(routed)?;
            if !envelope.faithful {
                return Ok(false);
            }
            push.arg(envelope.text);
        }
        let script = &script::PUBLISH_BATCH;
        let mut pipeline = redis::pipe();
        // In the transaction, so that the script cannot be unknown once the messages are there.
        pipeline.atomic().cmd("SCRIPT").arg("LOAD").arg(script.text());
        pipeline.add_command(push);
        pipeline.cmd("EVALSHA").arg(script.hash()).arg(1).arg(keys.own("counter"));
        for told in self.preamble(now) {
            pipeline.arg(told);
        }
        pipeline.arg(*prefix).arg(messages.len()).arg(&**task).arg(queue.as_str());
        match &link.pipeline(script.name(), &pipeline).await?[..] {
            [_, _, accepted] => Ok(value::integer(accepted) == 1),
            _ => Err(link.unexpected(script.name())),
        }
    }
}
