//! What is known of a task: its record, read.

use std::collections::HashMap;

use redis::Value;

use super::broker::message_of;
use super::pack::Pack;
use super::value::{self, items};
use super::{RedisStore, script};
use crate::backend::LogEntry;
use crate::broker::{DeadLetter, Place};
use crate::catalog::{Attempt, AttemptOutcome, Listed, TaskRecord};
use crate::clock::Timestamp;
use crate::id::{QueueName, TaskId, WorkerName};
use crate::protocol::Json;
use crate::state::{Phase, State};
use crate::store::Result;

/// So many tasks are looked at a script.
const LOOKED_MAX: usize = 500;

/// The record of a task; the fields are named in `lua/prelude.lua`.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) id: TaskId,
    /// Its number in the order of acceptance, be the record gone.
    pub(super) number: u64,
    state: State,
    fields: HashMap<Box<[u8]>, Vec<u8>>,
    last_attempt: Option<Attempt>,
    /// What only a whole look has: envelope, attempts, how many go before, progress.
    whole: Vec<Value>,
}

impl RedisStore {
    /// What is known of each of `ids`.
    pub(super) async fn look_at(&self, ids: &[TaskId], now: Timestamp) -> Result<Vec<Known>> {
        let mut all = Vec::with_capacity(ids.len());
        for ids in ids.chunks(LOOKED_MAX) {
            let mut order = Pack::array(4);
            order.texts(ids.iter().map(TaskId::as_str)).nil().nil().bool(false);
            let answer = self.order(&script::LOOK, now, order).await?;
            all.extend(items(&answer).iter().filter_map(known));
        }
        if all.len() == ids.len() { Ok(all) } else { Err(self.link.unexpected("locate")) }
    }

    /// The same of tasks older than a number, newest first.
    pub(super) async fn look_back(
        &self,
        before: Option<u64>,
        count: usize,
        now: Timestamp,
    ) -> Result<Vec<Known>> {
        let mut order = Pack::array(4);
        order.nil().optional(before.map(|before| before.to_string())).int(count.min(LOOKED_MAX) as i64);
        order.bool(false);
        let answer = self.order(&script::LOOK, now, order).await?;
        Ok(items(&answer).iter().filter_map(known).collect())
    }

    /// All that is known of one.
    pub(super) async fn look_whole(&self, id: &TaskId, now: Timestamp) -> Result<Option<Known>> {
        let mut order = Pack::array(4);
        order.texts(std::iter::once(id.as_str())).nil().nil().bool(true);
        let answer = self.order(&script::LOOK, now, order).await?;
        Ok(items(&answer).first().and_then(known))
    }
}

fn known(answer: &Value) -> Option<Known> {
    let [id, number, meta, fields, last, whole @ ..] = items(answer) else { return None };
    let fields = items(fields).chunks_exact(2);
    let fields =
        fields.filter_map(|pair| Some((value::bytes(&pair[0])?.into(), value::bytes(&pair[1])?.to_vec())));
    Some(Known {
        id: TaskId::from(value::text(id)?),
        number: value::count(number),
        state: state_in(&value::lossy(meta)),
        fields: fields.collect(),
        last_attempt: value::bytes(last).and_then(attempt),
        whole: whole.to_vec(),
    })
}

/// The state in the beginning of a result's meta; PENDING where there is none to be found.
pub(super) fn state_in(meta: &str) -> State {
    let rest = meta.split_once("\"status\":").map_or("", |(_, rest)| rest.trim_start());
    // A custom state may be any text; one with escapes is rare enough to be shown as it stands.
    let state = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')).map(|(state, _)| state);
    state.map_or(State::Pending, State::from)
}

/// An attempt as `note_attempt` writes it: outcome, started, ended, length of the worker's name, name, error.
fn attempt(entry: &[u8]) -> Option<Attempt> {
    let text = std::str::from_utf8(entry).ok()?;
    let mut words = text.splitn(5, ' ');
    let outcome = words.next()?;
    let all = [AttemptOutcome::Retried, AttemptOutcome::HandedBack, AttemptOutcome::Lost];
    let outcome = all.into_iter().find(|known| known.as_str() == outcome)?;
    let mut time = || value::time_in(words.next()?);
    let (started, ended) = (time()?, time()?);
    let length: usize = words.next()?.parse().ok()?;
    let (worker, error) = words.next()?.split_at_checked(length)?;
    let error = (!error.is_empty()).then(|| Json::parse(error).ok()).flatten();
    Some(Attempt { worker: WorkerName::from(worker), started, ended, outcome, error })
}

impl Known {
    fn text(&self, field: &str) -> Option<&str> {
        std::str::from_utf8(self.fields.get(field.as_bytes())?).ok()
    }

    fn time(&self, field: &str) -> Option<Timestamp> {
        value::time_in(self.text(field)?)
    }

    fn number_in(&self, field: &str) -> u64 {
        self.text(field).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Whether anything is known of it.
    pub(super) fn is_known(&self) -> bool {
        self.fields.contains_key(b"n".as_slice())
    }

    /// Whether a message was ever published under the id; otherwise only a result was stored.
    fn has_message(&self) -> bool {
        self.fields.contains_key(b"u".as_slice())
    }

    /// Who holds it or held it last, and since when that ran.
    fn holder(&self) -> Option<(&str, Option<Timestamp>)> {
        let mut words = self.text("w")?.splitn(3, ' ');
        let (_, since, worker) = (words.next()?, words.next()?, words.next()?);
        Some((worker, value::time_in(since)))
    }

    fn deliveries(&self) -> u32 {
        let held = matches!(self.text("f"), Some("r" | "s" | "x"));
        self.text("c").map_or(u32::from(held), |count| count.parse().unwrap_or(u32::MAX))
    }

    /// When it comes due, while that is to come.
    fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let waits = matches!(self.text("f"), None | Some("d"));
        waits.then(|| self.time("e"))?.filter(|due| *due > now)
    }

    fn phase(&self, now: Timestamp) -> Phase {
        match self.text("f") {
            _ if self.due(now).is_some() => Phase::Delayed,
            Some("r") => Phase::Reserved,
            Some("s") => Phase::Settled,
            Some("x") => Phase::Dead,
            // A worker that is not ours has it.
            _ if self.text("~").is_some() && !self.state.is_ready() => Phase::Reserved,
            _ => Phase::Queued,
        }
    }

    /// Where the message stands; `None` where there never was one.
    pub(super) fn place(&self, now: Timestamp) -> Option<Place> {
        if !self.has_message() {
            return None;
        }
        let phase = self.phase(now);
        let worker = || self.holder().map(|(worker, _)| WorkerName::from(worker));
        Some(Place {
            phase,
            task: self.text("k").unwrap_or_default().into(),
            queue: QueueName::from(self.text("q").unwrap_or_default()),
            state: self.state.clone(),
            published: self.time("u").unwrap_or(Timestamp::UNIX_EPOCH),
            due: self.due(now),
            worker: if phase == Phase::Reserved { worker() } else { None },
            deliveries: self.deliveries(),
            revoked: self.text("v").is_some(),
        })
    }

    /// What a list shows; `None` where there never was a message.
    pub(super) fn listed(&self, now: Timestamp) -> Option<Listed> {
        let place = self.place(now)?;
        let finished = self.state.is_ready();
        let over = finished || matches!(place.phase, Phase::Settled | Phase::Dead);
        let run = self.holder().and_then(|(worker, since)| Some((WorkerName::from(worker), since?)));
        let since = run.as_ref().map(|(_, since)| *since);
        let (worker, started) = match place.phase {
            Phase::Reserved => (place.worker.clone(), since),
            _ if over => run.unzip(),
            _ => (None, None),
        };
        let tags = self.text("j").and_then(|tags| Json::parse(tags).ok()?.to().ok()).unwrap_or_default();
        Some(Listed {
            number: self.number,
            task_id: self.id.clone(),
            accepted: self.time("a").unwrap_or(place.published),
            worker,
            started: started.or_else(|| self.last_attempt.as_ref().map(|attempt| attempt.started)),
            finished: self.time("z").filter(|_| finished || place.phase == Phase::Settled),
            tags,
            place,
        })
    }

    /// All of it, of a whole look.
    pub(super) fn record(&self, now: Timestamp) -> Option<TaskRecord> {
        let listed = self.listed(now)?;
        let [envelope, attempts, ahead, progress, ..] = &self.whole[..] else { return None };
        let queued = listed.place.phase == Phase::Queued;
        let envelope = value::bytes(envelope).filter(|envelope| !envelope.is_empty());
        let position = self.number_in("r");
        Some(TaskRecord {
            listed,
            message: envelope.map(|envelope| self.message(envelope)),
            attempts: items(attempts).iter().filter_map(value::bytes).filter_map(attempt).collect(),
            ahead: queued.then(|| value::count(ahead)),
            progress: value::bytes(progress).and_then(|entry| log_entry(position, entry)),
        })
    }

    /// The letter, of a dead one.
    pub(super) fn dead_letter(&self, envelope: &[u8]) -> Option<DeadLetter> {
        if self.text("f") != Some("x") {
            return None;
        }
        Some(DeadLetter {
            number: self.number_in("d"),
            task_id: self.id.clone(),
            task: self.text("k").unwrap_or_default().into(),
            queue: QueueName::from(self.text("q").unwrap_or_default()),
            reason: self.text("m").unwrap_or_default().to_owned(),
            died: self.time("y").unwrap_or(Timestamp::UNIX_EPOCH),
            deliveries: self.deliveries(),
            message: self.message(envelope),
        })
    }

    fn message(&self, envelope: &[u8]) -> crate::protocol::RawMessage {
        let mut message = message_of(envelope);
        if let Some(head) = self.text("h") {
            message.head = head.into();
        }
        message
    }
}

/// A log record as `append` writes it: when, length of the event's name, name, data.
pub(super) fn log_entry(position: u64, entry: &[u8]) -> Option<LogEntry> {
    let text = std::str::from_utf8(entry).ok()?;
    let mut words = text.splitn(3, ' ');
    let at = value::time_in(words.next()?)?;
    let length: usize = words.next()?.parse().ok()?;
    let (event, data) = words.next()?.split_at_checked(length)?;
    Some(LogEntry { position, event: event.into(), data: Json::parse(data).ok()?, at })
}
