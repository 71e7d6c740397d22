//! What is usual, by scripts that do without the rules: `lua/publish.lua`, `lua/take.lua`, `lua/settle.lua`.
//!
//! Most messages are sent once, taken once and end well. A script for just that knows from a few commands that it is so, and
//! where it is not, it changes nothing and says so: the script that has all the rules then does it.

use std::borrow::Cow;

use redis::Value;

use super::batch::Batch;
use super::transact::{check_size, committed, envelope_of, id_in, lease_end};
use super::value::{self, into_items, items, seconds_held};
use super::{RedisStore, script};
use crate::backend::Record;
use crate::broker::{Delivery, Reserve, Routed};
use crate::clock::Timestamp;
use crate::id::QueueName;
use crate::protocol::Json;
use crate::state::State;
use crate::store::{Error, Fence, Outcome, Result, Then, Transaction};

/// So many messages at once are usual: each has several arguments, and a server takes a bounded number of those.
const PUBLISHED_MAX: usize = 10_000;

impl RedisStore {
    /// Carries out a transaction that publishes messages nobody has heard of, and nothing else; says whether it was that.
    /// If not, nothing was done.
    pub(super) async fn publish_usual(&self, transaction: &Transaction, now: Timestamp) -> Result<bool> {
        let Transaction { fence: None, publish, record } = transaction else { return Ok(false) };
        let Record { fire: None, results, chords, parts, steps, log } = record else { return Ok(false) };
        let alone =
            results.is_empty() && chords.is_empty() && parts.is_empty() && steps.is_empty() && log.is_empty();
        let usual = |routed: &Routed| routed.priority == 0 && routed.due.is_none_or(|due| due <= now);
        if !alone || publish.is_empty() || !publish.iter().all(usual) {
            return Ok(false);
        }
        if let Some(batch) = Batch::of(publish) {
            return self.publish_batch(&batch, now).await;
        }
        if publish.len() > PUBLISHED_MAX {
            return Ok(false);
        }
        let mut args = self.told(now, publish.len() * 6);
        for routed in publish {
            let envelope = envelope_of(routed)?;
            let tags = if routed.tags.is_empty() { None } else { Json::from_value(&routed.tags).ok() };
            let tags =
                tags.map_or(Cow::Borrowed(&b""[..]), |tags| Cow::Owned(tags.as_str().as_bytes().to_vec()));
            let head = if envelope.faithful { "" } else { &*routed.message.head };
            args.extend([routed.task_id.as_str(), &*routed.task, routed.queue.as_str()].map(text));
            args.extend([tags, text(head), Cow::Owned(envelope.text.into_bytes())]);
        }
        Ok(value::integer(&self.link.run(&script::PUBLISH, &args).await?) == 1)
    }

    /// Reserves what is usual; says too whether something was left alone that comes next and is not.
    pub(super) async fn take_usual(
        &self,
        request: &Reserve,
        queues: &[&QueueName],
        limit: usize,
        now: Timestamp,
    ) -> Result<(Vec<Delivery>, bool)> {
        let mut args = self.told(now, 4 + queues.len());
        let numbers = [lease_end(now, request.lease), seconds_held(now), limit.to_string()];
        args.push(text(request.worker.as_str()));
        args.extend(numbers.into_iter().map(|number| Cow::Owned(number.into_bytes())));
        args.extend(queues.iter().map(|queue| text(queue.as_str())));
        let answers = into_items(self.link.run(&script::TAKE, &args).await?);
        let (taken, left) = (answers.len() / 3, answers.len() % 3);
        let mut deliveries = Vec::with_capacity(taken);
        let mut answers = answers.into_iter().take(taken * 3);
        while let Some(tag) = answers.next() {
            let delivery = super::broker::reserved(&tag, answers.next(), answers.next());
            deliveries.push(delivery.ok_or_else(|| self.link.unexpected("reserve"))?);
        }
        Ok((deliveries, left == 1))
    }

    /// What every script is told first, with room for `more`.
    fn told<'a>(&self, now: Timestamp, more: usize) -> Vec<Cow<'a, [u8]>> {
        let preamble = self.preamble(now);
        let mut args = Vec::with_capacity(preamble.len() + more);
        args.extend(preamble.into_iter().map(Cow::Owned));
        args
    }

    /// Settles what is usual; `None` for each of which more must be known, where nothing was done.
    pub(super) async fn settle_usual(
        &self,
        settlings: &[&Settling<'_>],
        now: Timestamp,
    ) -> Result<Vec<Option<Outcome>>> {
        let mut args = self.told(now, 2 + settlings.len() * 6);
        let numbers = [self.ttl_ms().to_string(), self.options.feed_bound.max(1).to_string()];
        args.extend(numbers.into_iter().map(|number| Cow::Owned(number.into_bytes())));
        for settling in settlings {
            let Settling { tag, named, meta, data } = settling;
            let Named { number, delivery_tag, id } = named;
            args.extend([tag, number, delivery_tag, id, &**meta, data].map(text));
        }
        let answer = self.link.run(&script::SETTLE, &args).await?;
        let answers = items(&answer);
        if answers.len() != settlings.len() {
            return Err(self.link.unexpected("commit"));
        }
        let outcome = |answer: &Value| match value::integer(answer) {
            0 => Some(Outcome::Lost),
            1 => Some(committed()),
            _ => None,
        };
        Ok(answers.iter().map(outcome).collect())
    }
}

fn text(text: &str) -> Cow<'_, [u8]> {
    Cow::Borrowed(text.as_bytes())
}

/// What a reservation most often comes to: its task is begun, or it is acknowledged, with a result of SUCCESS and the end of
/// the log.
pub(super) struct Settling<'t> {
    tag: &'t str,
    named: Named<'t>,
    /// Nothing where it begins.
    meta: String,
    data: &'t str,
}

impl<'t> Settling<'t> {
    /// The transaction, if it is just that.
    pub(super) fn of(transaction: &'t Transaction) -> Result<Option<Self>> {
        let Transaction { fence: Some(Fence { tag, then }), publish, record } = transaction else {
            return Ok(None);
        };
        let Record { fire: None, results, chords, parts, steps, log } = record else {
            return Ok(None);
        };
        let plain = publish.is_empty() && chords.is_empty() && parts.is_empty() && steps.is_empty();
        let Some(named) = Named::by(tag.as_str()).filter(|_| plain) else { return Ok(None) };
        let (meta, line) = match (then, &results[..], &log[..]) {
            (Then::Begin, [], []) => {
                return Ok(Some(Self { tag: tag.as_str(), named, meta: String::new(), data: "" }));
            }
            (Then::Ack, [meta], [line]) => (meta, line),
            _ => return Ok(None),
        };
        let about_it = [&meta.task_id, &line.task_id].iter().all(|id| named.id == id.as_str());
        if !about_it || meta.state != State::Success || &*line.event != "end" {
            return Ok(None);
        }
        let text = meta.encode().map_err(|why| Error::unavailable("write a result", why))?;
        check_size(text.as_str().len(), || format!("the result of task {}", meta.task_id))?;
        check_size(line.data.as_str().len(), || format!("a log record of task {}", line.task_id))?;
        Ok(Some(Self { tag: tag.as_str(), named, meta: text.as_str().to_owned(), data: line.data.as_str() }))
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        2 * self.tag.len() + self.meta.len() + self.data.len()
    }
}

/// What a reservation names: see `tag_of` in `lua/prelude.lua`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'t> {
    number: &'t str,
    delivery_tag: &'t str,
    id: &'t str,
}

impl<'t> Named<'t> {
    fn by(tag: &'t str) -> Option<Self> {
        let id = id_in(tag)?;
        let (before, rest) = tag.split_once(':')?;
        let (_, number) = before.split_once('.')?;
        let (length, rest) = rest.split_once(':')?;
        Some(Self { number, delivery_tag: rest.get(..length.parse().ok()?)?, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_taken_apart() {
        let named = Named { number: "7", delivery_tag: "t:g", id: "id:with.colons" };
        assert_eq!(Named::by("12.7:3:t:gid:with.colons"), Some(named));
        for no_tag in ["", "no such tag", "1:1:ab", "1.2:99:short", "1.2:x:y"] {
            assert_eq!(Named::by(no_tag), None, "{no_tag}");
        }
    }
}
