//! Transactions: everything that belongs to one atomic step, as an order for `lua/commit.lua`.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::pack::Pack;
use super::usual::Settling;
use super::value::{self, items, micros};
use super::{RedisStore, script};
use crate::backend::{ChordPart, Record};
use crate::broker::Routed;
use crate::clock::{Timestamp, after};
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, KombuEnvelope, KombuRoute, ResultMeta};
use crate::state::State;
use crate::store::{Error, Fence, Outcome, Result, Then, Transact, Transaction};

/// So many transactions a script: it keeps every other client of the server waiting while it runs.
const BATCH_MAX: usize = 200;
/// So many that are usual, one after the other, are worth a script of their own.
const USUAL_MIN: usize = 16;
/// The bound on one value; Redis's own is 512 MB, and a script copies what it moves.
const VALUE_BYTES_MAX: usize = 256 << 20;
/// The bound on the messages of one transaction, which are sent in one piece: a server takes no more than 1 GB of a client at
/// once, and bodies travel a third larger.
const PUBLISHED_BYTES_MAX: usize = 512 << 20;
/// A batch is cut once it has so many bytes.
const BATCH_BYTES_MAX: usize = 32 << 20;

#[async_trait]
impl Transact for RedisStore {
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        self.carry_out("commit", transactions).await
    }
}

impl RedisStore {
    /// Carries out transactions, in batches that do not hold the server up for long.
    pub(super) async fn carry_out(&self, what: &str, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        let now = self.now();
        for transaction in &transactions {
            check_sizes(&transaction.publish)?;
            for routed in &transaction.publish {
                self.declare(&routed.queue).await?;
            }
        }
        if let [transaction] = &transactions[..]
            && self.publish_usual(transaction, now).await?
        {
            return Ok(vec![committed()]);
        }
        let settlings = transactions.iter().map(Settling::of).collect::<Result<Vec<_>>>()?;
        let usual: Vec<bool> = settlings.iter().map(Option::is_some).collect();
        // What cannot be stored is found out before anything is.
        let mut batches = Vec::new();
        let mut from = 0;
        while from < transactions.len() {
            let (are_usual, count) = next_batch(&usual[from..]);
            let batch = &transactions[from..from + count];
            batches.push(if are_usual {
                Batch::Usual(settlings[from..from + count].iter().flatten().collect(), batch)
            } else {
                Batch::Any(orders(batch.iter(), now)?)
            });
            from += count;
        }
        let mut outcomes = Vec::with_capacity(transactions.len());
        for batch in batches {
            match batch {
                Batch::Usual(settlings, batch) => {
                    outcomes.extend(self.settle_all(what, &settlings, batch, now).await?);
                }
                Batch::Any(orders) => outcomes.extend(self.commit_all(what, &orders, now).await?),
            }
        }
        Ok(outcomes)
    }

    /// Settles what is usual, and that of which more must be known by all the rules.
    async fn settle_all(
        &self,
        what: &str,
        settlings: &[&Settling<'_>],
        transactions: &[Transaction],
        now: Timestamp,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(settlings.len());
        while outcomes.len() < settlings.len() {
            let from = outcomes.len();
            let count = fitting(settlings[from..].iter().map(|settling| settling.len()));
            let settled = self.settle_usual(&settlings[from..from + count], now).await?;
            let unusual = transactions[from..].iter().zip(&settled);
            let unusual =
                unusual.filter(|(_, outcome)| outcome.is_none()).map(|(transaction, _)| transaction);
            let mut others = self.commit_all(what, &orders(unusual, now)?, now).await?.into_iter();
            outcomes.extend(settled.into_iter().filter_map(|outcome| outcome.or_else(|| others.next())));
        }
        Ok(outcomes)
    }

    async fn commit_all(&self, what: &str, orders: &[Order], now: Timestamp) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(orders.len());
        while outcomes.len() < orders.len() {
            let rest = &orders[outcomes.len()..];
            let batch = &rest[..fitting(rest.iter().map(|order| order.bytes))];
            outcomes.extend(self.commit_batch(what, batch, now).await?);
        }
        Ok(outcomes)
    }

    /// How the store is set, for scripts that write results and logs: TTL of results in milliseconds, records kept in a
    /// log, batches kept in the feed.
    pub(super) fn settings(&self) -> Vec<u8> {
        let mut settings = Pack::array(3);
        settings.int(self.ttl_ms());
        settings.int(i64::try_from(self.options.log_bound.max(1)).unwrap_or(i64::MAX));
        settings.int(i64::try_from(self.options.feed_bound.max(1)).unwrap_or(i64::MAX));
        settings.into_bytes()
    }

    async fn commit_batch(&self, what: &str, batch: &[Order], now: Timestamp) -> Result<Vec<Outcome>> {
        let mut args = self.preamble(now);
        args.push(self.settings());
        args.push(batch.len().to_string().into_bytes());
        // Lua counts from 1, and the texts come after the orders.
        let mut texts = args.len() + batch.len() + 1;
        for order in batch {
            args.push(order.packed(texts));
            texts += order.texts.len();
        }
        for order in batch {
            args.extend_from_slice(&order.texts);
        }
        let answer = self.link.run(&script::COMMIT, &args).await?;
        let answers = items(&answer);
        if answers.len() != batch.len() {
            return Err(self.link.unexpected(what));
        }
        answers.iter().map(|answer| outcome(answer).ok_or_else(|| self.link.unexpected(what))).collect()
    }

    /// The time to live of results in milliseconds; 0 for none.
    pub(super) fn ttl_ms(&self) -> i64 {
        let ttl = self.options.result_expires.unwrap_or(Duration::ZERO);
        // Past a thousand years Redis's own arithmetic ends.
        i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).min(1_000 * 365 * 24 * 3_600_000)
    }
}

/// What was written, and nothing besides.
pub(super) fn committed() -> Outcome {
    Outcome::Committed { ready: Vec::new(), duplicates: Vec::new() }
}

fn outcome(answer: &Value) -> Option<Outcome> {
    match answer {
        Value::Int(0) => return Some(Outcome::Lost),
        Value::Int(1) => return Some(committed()),
        Value::Int(2) => return Some(Outcome::NotReady),
        _ => {}
    }
    match items(answer) {
        [_, ready, duplicates] => Some(Outcome::Committed {
            ready: items(ready).iter().filter_map(value::text).map(GroupId::from).collect(),
            duplicates: items(duplicates).iter().filter_map(value::text).map(TaskId::from).collect(),
        }),
        _ => None,
    }
}

/// A time as Lua is to hand it on without looking at it.
pub(super) fn written(at: Timestamp) -> String {
    micros(at).to_string()
}

/// Transactions that follow each other, and go the same way.
enum Batch<'t> {
    Usual(Vec<&'t Settling<'t>>, &'t [Transaction]),
    Any(Vec<Order>),
}

fn orders<'t>(transactions: impl Iterator<Item = &'t Transaction>, now: Timestamp) -> Result<Vec<Order>> {
    transactions.map(|transaction| Order::of(transaction, now)).collect()
}

/// A transaction as the script takes it: what is short in one piece, and the long texts beside it, so that each is made
/// once in Lua.
struct Order {
    pieces: Vec<Piece>,
    texts: Vec<Vec<u8>>,
    bytes: usize,
}

enum Piece {
    Packed(Pack),
    /// Which of the texts.
    Text(usize),
}

impl Order {
    fn of(transaction: &Transaction, now: Timestamp) -> Result<Self> {
        let Transaction { fence, publish, record } = transaction;
        let Record { fire, results, chords, parts, steps, log } = record;
        let mut order = Self { pieces: vec![Piece::Packed(Pack::array(8))], texts: Vec::new(), bytes: 0 };
        // The id that the reservation names need not be told again.
        let named = fence.as_ref().map(|fence| fence.tag.as_str());
        let pack = order.pack();
        match fence {
            Some(fence) => pack_fence(pack, fence, now),
            None => {
                pack.nil();
            }
        }
        pack.optional(fire.as_ref().map(GroupId::as_str));
        order.all(results, |order, meta| order.result(meta, named, now))?;
        order.all(publish, |order, routed| order.message(routed, now))?;
        order.all(chords, |order, chord| {
            check_size(chord.body.as_str().len(), || format!("the body of chord {}", chord.group_id))?;
            let pack = order.pack().begin(3).text(chord.group_id.as_str());
            pack.int(chord.size.into()).text(chord.body.as_str());
            Ok(())
        })?;
        order.all(parts, |order, part| pack_part(order.pack(), part))?;
        order.all(steps, |order, step| {
            let what = || format!("the value of step {} of task {}", step.name, step.task_id);
            check_size(step.value.as_str().len(), what)?;
            let pack = order.pack().begin(3).text(step.task_id.as_str());
            pack.text(&*step.name).text(step.value.as_str());
            Ok(())
        })?;
        order.all(log, |order, line| {
            check_size(line.data.as_str().len(), || format!("a log record of task {}", line.task_id))?;
            order.pack().begin(3);
            order.id(&line.task_id, named);
            order.pack().text(&*line.event);
            order.text(line.data.as_str().as_bytes().to_vec());
            Ok(())
        })?;
        order.measure();
        Ok(order)
    }

    /// Notes how many bytes it has.
    fn measure(&mut self) {
        let packed = self.pieces.iter().map(|piece| match piece {
            Piece::Packed(pack) => pack.len(),
            Piece::Text(_) => 9,
        });
        self.bytes = packed.sum::<usize>() + self.texts.iter().map(Vec::len).sum::<usize>();
    }

    /// The order, when the first of its texts is argument number `first`.
    fn packed(&self, first: usize) -> Vec<u8> {
        let mut whole = Pack::default();
        for piece in &self.pieces {
            match piece {
                Piece::Packed(pack) => whole.append(pack),
                Piece::Text(at) => whole.int((first + at) as i64),
            };
        }
        whole.into_bytes()
    }

    /// Where to pack on.
    fn pack(&mut self) -> &mut Pack {
        if !matches!(self.pieces.last(), Some(Piece::Packed(_))) {
            self.pieces.push(Piece::Packed(Pack::default()));
        }
        match self.pieces.last_mut() {
            Some(Piece::Packed(pack)) => pack,
            _ => unreachable!("it was pushed above"),
        }
    }

    fn text(&mut self, text: Vec<u8>) {
        self.pieces.push(Piece::Text(self.texts.len()));
        self.texts.push(text);
    }

    /// An id, or false for the one that the reservation names.
    fn id(&mut self, task_id: &TaskId, named: Option<&str>) {
        if named.is_some_and(|tag| id_in(tag) == Some(task_id.as_str())) {
            self.pack().bool(false);
        } else {
            self.pack().text(task_id.as_str());
        }
    }

    /// A list; nil for an empty one.
    fn all<T>(&mut self, all: &[T], mut pack: impl FnMut(&mut Self, &T) -> Result<()>) -> Result<()> {
        if all.is_empty() {
            self.pack().nil();
            return Ok(());
        }
        self.pack().begin(all.len());
        all.iter().try_for_each(|one| pack(self, one))
    }

    fn result(&mut self, meta: &ResultMeta, named: Option<&str>, now: Timestamp) -> Result<()> {
        let text = meta.encode().map_err(|why| Error::unavailable("write a result", why))?;
        check_size(text.as_str().len(), || format!("the result of task {}", meta.task_id))?;
        let name = meta.extended.as_ref().map(|extended| extended.name.as_str());
        let why = (meta.state == State::Retry).then(|| meta.result.as_str());
        self.pack().begin(6);
        self.id(&meta.task_id, named);
        self.pack().text(meta.state.as_str());
        self.text(text.as_str().as_bytes().to_vec());
        self.pack().text(written(meta.date_done.unwrap_or(now))).optional(name).optional(why);
        Ok(())
    }

    fn message(&mut self, routed: &Routed, now: Timestamp) -> Result<()> {
        let Routed { task_id, task, queue, priority, due, unique, tags, message } = routed;
        let (priority, envelope) = ((*priority).min(9), envelope_of(routed)?);
        let tags = if tags.is_empty() { None } else { Json::from_value(tags).ok() };
        let pack = self.pack();
        pack.begin(9).text(task_id.as_str()).text(&**task).text(queue.as_str()).int(priority.into());
        pack.optional(due.filter(|due| *due > now).map(written)).bool(*unique);
        pack.optional(tags.as_ref().map(Json::as_str));
        self.text(envelope.text.into_bytes());
        self.pack().optional((!envelope.faithful).then_some(&*message.head));
        Ok(())
    }
}

/// A message as it waits on Celery's lists.
pub(super) fn envelope_of(routed: &Routed) -> Result<KombuEnvelope> {
    let Routed { task_id, task, queue, priority, message, .. } = routed;
    let priority = (*priority).min(9);
    let route = KombuRoute { task_id: task_id.as_str(), task, queue: queue.as_str(), priority };
    message.to_kombu(route).map_err(|why| Error::Open {
        what: format!("the message of task {task_id}"),
        why: why.to_string(),
        remedy: "send a head that is a JSON object".to_owned(),
    })
}

/// How many go into the next scripts, of those of which it is said whether they are usual, and whether these are: so many as
/// stand together, where they are all or enough for a script of their own, or else what comes before those.
fn next_batch(usual: &[bool]) -> (bool, usize) {
    let first = usual.iter().take_while(|usual| **usual).count();
    if first == usual.len() || first >= USUAL_MIN {
        return (true, first);
    }
    let enough = usual.windows(USUAL_MIN).position(|some| some.iter().all(|usual| *usual));
    (false, enough.unwrap_or(usual.len()))
}

/// How many of those with so many bytes go into one batch.
fn fitting(bytes: impl Iterator<Item = usize>) -> usize {
    let mut sum = 0;
    let fits = |bytes: &usize| {
        sum += bytes;
        sum <= BATCH_BYTES_MAX
    };
    bytes.take(BATCH_MAX).take_while(fits).count().max(1)
}

/// The id of the task that a reservation names: see `tag_of` in `lua/prelude.lua`.
pub(super) fn id_in(tag: &str) -> Option<&str> {
    let mut parts = tag.splitn(3, ':');
    let (_, length, rest) = (parts.next()?, parts.next()?, parts.next()?);
    rest.get(length.parse().ok()?..)
}

fn pack_fence(order: &mut Pack, fence: &Fence, now: Timestamp) {
    let Fence { tag, then } = fence;
    order.begin(5).text(tag.as_str());
    match then {
        Then::Keep => order.text("k").nil().nil().nil(),
        Then::Begin => order.text("b").nil().nil().nil(),
        Then::Ack => order.text("a").nil().nil().nil(),
        Then::Requeue { due, counted } => {
            let due = due.filter(|due| *due > now).map(written);
            order.text("r").optional(due).bool(*counted).nil()
        }
        Then::Bury { reason } => order.text("x").nil().nil().text(reason),
    };
}

fn pack_part(order: &mut Pack, part: &ChordPart) -> Result<()> {
    let ChordPart { group_id, task_id, index, state, result } = part;
    check_size(result.as_str().len(), || format!("the result of task {task_id} in chord {group_id}"))?;
    let (id, state) = (Json::string(task_id.as_str()), Json::string(state.as_str()));
    // As Celery keeps it: a version, and what the header task came to.
    let kept = format!("[1, {id}, {state}, {}]", result.as_str());
    order.begin(4).text(group_id.as_str()).text(task_id.as_str());
    order.optional(index.map(|index| index.to_string())).text(kept);
    Ok(())
}

/// The bounds on each message, and on all that go in one step.
fn check_sizes(messages: &[Routed]) -> Result<()> {
    let mut sum = 0;
    for Routed { task_id, message, .. } in messages {
        let bytes = message.head.len() + message.body.len();
        check_size(bytes, || format!("the message of task {task_id}"))?;
        sum += bytes;
    }
    if sum <= PUBLISHED_BYTES_MAX {
        return Ok(());
    }
    let what = format!("the size of {} messages sent in one step, which could be several,", messages.len());
    Err(Error::TooLarge { what, bound: format!("{} MiB", PUBLISHED_BYTES_MAX >> 20) })
}

pub(super) fn check_size(bytes: usize, what: impl FnOnce() -> String) -> Result<()> {
    if bytes <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooLarge { what: what(), bound: format!("{} MiB", VALUE_BYTES_MAX >> 20) })
}

/// When a lease that begins now ends.
pub(super) fn lease_end(now: Timestamp, lease: Duration) -> String {
    written(after(now, lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_stand_alone_where_they_are_many() {
        let batches = |groups: &[(bool, usize)]| {
            let usual: Vec<bool> = groups.iter().flat_map(|(usual, count)| vec![*usual; *count]).collect();
            let (mut from, mut batches) = (0, Vec::new());
            while from < usual.len() {
                let batch = next_batch(&usual[from..]);
                assert_ne!(batch.1, 0);
                batches.push(batch);
                from += batch.1;
            }
            batches
        };
        assert_eq!(batches(&[(true, 3)]), [(true, 3)]);
        assert_eq!(batches(&[(true, 3), (false, 2), (true, 3)]), [(false, 8)]);
        assert_eq!(batches(&[(true, 15), (false, 1), (true, 15), (false, 1)]), [(false, 32)]);
        assert_eq!(
            batches(&[(true, 16), (false, 1), (true, 20), (false, 1)]),
            [(true, 16), (false, 1), (true, 20), (false, 1)]
        );
    }

    #[test]
    fn a_reservation_names_its_task() {
        assert_eq!(id_in("12.7:3:tagid:with:colons"), Some("id:with:colons"));
        assert_eq!(id_in("12.7:0:"), Some(""));
        for no_tag in ["", "no such tag", "1.2:99:short", "1.2:x:y"] {
            assert_eq!(id_in(no_tag), None, "{no_tag}");
        }
    }
}
