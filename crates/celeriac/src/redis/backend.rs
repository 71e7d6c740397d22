//! The backend's half.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::known::{Known, log_entry, state_in};
use super::pack::Pack;
use super::value::{self, items, micros};
use super::{RedisStore, script};
use crate::backend::{Backend, ChordPart, FeedRecord, LogPage, ReadyChord, Record, Recorded, Watch};
use crate::clock::Timestamp;
use crate::id::{BatchIds, GroupId, TaskId};
use crate::protocol::{Json, Message, ResultMeta, ResultTuple};
use crate::state::State;
use crate::store::{Error, Outcome, Result, Transaction};

/// So many results are fetched at a time.
const FETCHED_MAX: usize = 500;
/// So many tasks one sweep looks at.
const SWEPT_MAX: i64 = 1_000;
/// So many records of the feed one script reads.
const FED_MAX: usize = 1_000;
/// The feed has so many numbers for each batch of records.
const BATCH: u64 = 1_000;
/// How a result begins, and within how many bytes its state ends.
const STATE_FIRST: &[u8] = br#"{"status": ""#;
const STATE_WITHIN: usize = 256;
/// Waits are cut to this length, since a timer cannot be set further off.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[async_trait]
impl Backend for RedisStore {
    async fn record(&self, records: Vec<Record>) -> Result<Vec<Recorded>> {
        let transactions = records.into_iter().map(|record| Transaction { record, ..Transaction::default() });
        let outcomes = self.carry_out("record", transactions.collect()).await?;
        let recorded = |outcome| match outcome {
            Outcome::Committed { ready, .. } => Recorded::Written { ready },
            Outcome::Lost | Outcome::NotReady => Recorded::NotReady,
        };
        Ok(outcomes.into_iter().map(recorded).collect())
    }

    async fn await_result(&self, task_id: &TaskId, wait: Duration) -> Result<Option<ResultMeta>> {
        let key = self.link.keys().meta(task_id.as_str());
        let mut command = redis::cmd("GET");
        command.arg(&key);
        let ready = |answer: &Value| {
            let Some(bytes) = value::bytes(answer) else { return false };
            // Celery and we begin with the state; anything else is read as a whole.
            if bytes.starts_with(STATE_FIRST) {
                return state_in(&String::from_utf8_lossy(&bytes[..bytes.len().min(STATE_WITHIN)]))
                    .is_ready();
            }
            ResultMeta::decode(bytes).map_or(true, |meta| meta.state.is_ready())
        };
        let answer = self.read_until("wait", key, command, wait, ready).await?;
        value::bytes(&answer).map(|bytes| self.meta(task_id, bytes)).transpose()
    }

    async fn fetch(&self, ids: &[TaskId]) -> Result<Vec<Option<ResultMeta>>> {
        let mut metas = Vec::with_capacity(ids.len());
        for ids in ids.chunks(FETCHED_MAX) {
            let mut command = redis::cmd("MGET");
            for id in ids {
                command.arg(self.link.keys().meta(id.as_str()));
            }
            let answer = self.link.read("fetch", &command).await?;
            for (id, found) in ids.iter().zip(items(&answer)) {
                metas.push(value::bytes(found).map(|bytes| self.meta(id, bytes)).transpose()?);
            }
        }
        Ok(metas)
    }

    async fn wait(&self, watch: &Watch, wait: Duration) -> Result<bool> {
        let keys = self.link.keys();
        match watch {
            Watch::Result(id) => {
                let meta = self.await_result(id, wait).await?;
                Ok(meta.is_some_and(|meta| meta.state.is_ready()))
            }
            Watch::Log { task_id, after } => {
                let key = keys.log(task_id.as_str());
                // A task that a Python worker runs ends by its result alone, without a last record.
                let meta = keys.meta(task_id.as_str());
                let look = || {
                    let look = async {
                        Ok(self.log_end(task_id).await?.last > *after || self.is_finished(task_id).await?)
                    };
                    look.boxed()
                };
                self.look_until(vec![key, meta], wait, look, |there| *there).await
            }
            Watch::Feed { after } => {
                let look = || async { Ok(self.feed_end().await? > *after) }.boxed();
                self.look_until(vec![keys.own("feed")], wait, look, |there| *there).await
            }
        }
    }

    async fn forget(&self, ids: &[TaskId]) -> Result<()> {
        let now = self.now();
        for ids in ids.chunks(FETCHED_MAX) {
            let mut order = Pack::array(4);
            order.texts(ids.iter().map(TaskId::as_str)).nil().nil().nil();
            self.order(&script::SWEEP, now, order).await?;
        }
        Ok(())
    }

    async fn sweep(&self, done_before: Timestamp, limit: usize) -> Result<u64> {
        let mut order = Pack::array(4);
        order.nil().int(micros(done_before)).int(limit.min(FETCHED_MAX) as i64).int(SWEPT_MAX);
        Ok(value::count(&self.order(&script::SWEEP, self.now(), order).await?))
    }

    async fn log(&self, task_id: &TaskId, after: u64, limit: usize) -> Result<Option<LogPage>> {
        let keys = self.link.keys();
        let LogEnd { trimmed, last, known, only } = self.log_end(task_id).await?;
        if !known {
            return Ok(None);
        }
        let mut look = redis::pipe();
        let from = after.saturating_sub(trimmed);
        let to = i64::try_from(from.saturating_add(limit as u64)).unwrap_or(i64::MAX) - 1;
        let wanted = limit > 0 && from < last.saturating_sub(trimmed);
        // Both before the log, so that a log said to have ended has all its records.
        look.cmd("GETRANGE").arg(keys.meta(task_id.as_str())).arg(0).arg(255);
        if wanted {
            look.cmd("LRANGE").arg(keys.log(task_id.as_str())).arg(from).arg(to);
        }
        look.cmd("HMGET").arg(keys.task(task_id.as_str())).arg("l").arg("E");
        let answers = self.link.read_all("log", &look).await?;
        let [meta, listed @ .., now] = &answers[..] else { return Err(self.link.unexpected("log")) };
        let [trimmed_now, only_now] = items(now) else { return Err(self.link.unexpected("log")) };
        if value::count(trimmed_now) != trimmed || value::bytes(only_now) != only.as_deref() {
            // It was trimmed, or began or ceased to be a list, between the looks; positions would be off. The next look
            // finds another beginning.
            return Box::pin(self.log(task_id, after, limit)).await;
        }
        let entries: Vec<&[u8]> = match &only {
            Some(entry) if wanted => vec![entry],
            Some(_) => Vec::new(),
            None => listed.iter().flat_map(items).filter_map(value::bytes).collect(),
        };
        let positions = trimmed + from + 1..;
        let entries = entries.into_iter().zip(positions);
        let entries: Vec<_> = entries.filter_map(|(entry, position)| log_entry(position, entry)).collect();
        let last = entries.last().map_or(last, |entry| entry.position.max(last));
        let ended = super::known::state_in(&value::lossy(meta)).is_ready();
        Ok(Some(LogPage { entries, first: trimmed + 1, last, ended }))
    }

    async fn feed(&self, after: u64, limit: usize) -> Result<Vec<FeedRecord>> {
        let now = self.now();
        let mut records = Vec::new();
        let mut after = after;
        while records.len() < limit {
            let some = (limit - records.len()).min(FED_MAX);
            let mut order = Pack::array(2);
            order.int(i64::try_from(after).unwrap_or(i64::MAX)).int(some as i64);
            let answer = self.order(&script::FEED, now, order).await?;
            let found: Vec<FeedRecord> = items(&answer).iter().filter_map(feed_record).collect();
            let count = found.len();
            after = found.last().map_or(after, |record| record.number);
            records.extend(found);
            if count < some {
                break;
            }
        }
        Ok(records)
    }

    async fn feed_end(&self) -> Result<u64> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.link.keys().own("feed")).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = self.link.read("feed", &command).await?;
        let end = || {
            let [id, fields] = items(items(&answer).first()?) else { return None };
            let batch: u64 = value::text(id)?.split('-').next()?.parse().ok()?;
            Some(batch * BATCH + (items(fields).len() as u64 / 2).saturating_sub(1))
        };
        Ok(end().unwrap_or(0))
    }

    async fn step(&self, task_id: &TaskId, name: &str) -> Result<Option<Json>> {
        let mut command = redis::cmd("HGET");
        command.arg(self.link.keys().steps(task_id.as_str())).arg(name);
        let answer = self.link.read("step", &command).await?;
        let what = || format!("step {name} of task {task_id}");
        value::bytes(&answer).map(|bytes| self.json(bytes, what)).transpose()
    }

    async fn chord(&self, group_id: &GroupId) -> Result<Option<ReadyChord>> {
        let keys = self.link.keys();
        let key = keys.group(group_id.as_str());
        let own = keys.own(&format!("c:{group_id}"));
        let mut look = redis::pipe();
        look.cmd("ZSCORE").arg(keys.own("ready")).arg(group_id.as_str());
        look.cmd("HMGET").arg(own).arg("body").arg("last");
        look.cmd("TYPE").arg(format!("{key}.j"));
        look.cmd("GET").arg(&key);
        let answers = self.link.read_all("chord", &look).await?;
        let [ready, about, kind, shape] = &answers[..] else { return Err(self.link.unexpected("chord")) };
        if value::bytes(ready).is_none() && !matches!(ready, Value::Double(_)) {
            return Ok(None);
        }
        let ordered = value::text(kind) != Some("list");
        let mut command = redis::cmd(if ordered { "ZRANGE" } else { "LRANGE" });
        command.arg(format!("{key}.j")).arg(0).arg(-1);
        if ordered {
            command.arg("WITHSCORES");
        }
        let answer = self.link.read("chord", &command).await?;
        let members: Vec<(&Value, Option<&Value>)> = if ordered {
            items(&answer).chunks_exact(2).map(|pair| (&pair[0], Some(&pair[1]))).collect()
        } else {
            items(&answer).iter().map(|member| (member, None)).collect()
        };
        let parts = members.into_iter().map(|(member, score)| {
            let part = value::text(member).and_then(|text| chord_part(group_id, text, score));
            part.ok_or_else(|| self.link.unexpected("chord"))
        });
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        // A header that ends in groups has its shape beside it, by which the results are nested.
        if let Some(header) = value::text(shape).and_then(header) {
            // A worker of Celery 5.5 that reaches such a group sets the size of the chord to the group's, so that the
            // parts count as complete before they are; its own workers then wait for the results of the rest, too.
            let Some(whole) = self.with_results(&header, parts).await? else { return Ok(None) };
            parts = header
                .iter()
                .zip(0..)
                .filter_map(|(member, index)| {
                    Some(ChordPart { index: Some(index), ..joined(member, &whole)? })
                })
                .collect();
        }
        let [body, last] = items(about) else { return Err(self.link.unexpected("chord")) };
        let body = match value::bytes(body) {
            Some(bytes) => Some(self.json(bytes, || format!("the body of chord {group_id}"))?),
            None => self.body_of_header(value::text(last)).await?,
        };
        // Fired or forgotten since the first look, or opened by Celery and its last message gone.
        Ok(body.map(|body| ReadyChord { group_id: group_id.clone(), body, parts }))
    }

    async fn ready_chords(&self, limit: usize) -> Result<Vec<GroupId>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.link.keys().own("ready")).arg(0).arg(limit - 1);
        let answer = self.link.read("ready_chords", &command).await?;
        Ok(items(&answer).iter().filter_map(value::text).map(GroupId::from).collect())
    }

    async fn save_group(&self, group_id: &GroupId, tuple: &Json) -> Result<()> {
        let key = self.link.keys().group(group_id.as_str());
        let kept = format!("{{\"result\": {}}}", tuple.as_str());
        let mut save = redis::pipe();
        save.atomic().cmd("SET").arg(&key).arg(&kept);
        if self.ttl_ms() > 0 {
            save.arg("PX").arg(self.ttl_ms());
        }
        save.cmd("PUBLISH").arg(&key).arg(&kept);
        save.cmd("ZADD")
            .arg(self.link.keys().own("groups"))
            .arg(micros(self.now()))
            .arg(format!("g{group_id}"));
        self.link.pipeline("save_group", &save).await.map(drop)
    }

    async fn delete_group(&self, group_id: &GroupId) -> Result<()> {
        let keys = self.link.keys();
        let mut delete = redis::pipe();
        delete.atomic().cmd("DEL").arg(keys.group(group_id.as_str()));
        delete.cmd("ZREM").arg(keys.own("groups")).arg(format!("g{group_id}"));
        // Deleted twice is deleted once.
        self.link.read_all("delete_group", &delete).await.map(drop)
    }

    async fn group(&self, group_id: &GroupId) -> Result<Option<Json>> {
        let mut command = redis::cmd("GET");
        command.arg(self.link.keys().group(group_id.as_str()));
        let answer = self.link.read("group", &command).await?;
        let what = || format!("group {group_id}");
        let Some(bytes) = value::bytes(&answer) else { return Ok(None) };
        let kept = self.json(bytes, what)?;
        let entries = kept.entries().map_err(|why| self.damaged(&what(), &why))?;
        Ok(entries.iter().find(|(key, _)| key.as_str() == "result").map(|(_, tuple)| tuple.clone()))
    }
}

/// Where a log ends.
struct LogEnd {
    /// How many records were trimmed from its beginning.
    trimmed: u64,
    /// The position of its last record.
    last: u64,
    /// Whether the task is known.
    known: bool,
    /// Its one entry, where that is the end and stands in the task's record.
    only: Option<Vec<u8>>,
}

impl RedisStore {
    /// Looks until what is found is `enough` or `wait` is over, anew whenever one of `keys` is changed; returns what the
    /// last look found.
    pub(super) async fn look_until<'l, T: Send>(
        &self,
        keys: Vec<String>,
        wait: Duration,
        look: impl Fn() -> BoxFuture<'l, Result<T>> + Send,
        enough: impl Fn(&T) -> bool + Send,
    ) -> Result<T> {
        let found = look().await?;
        if enough(&found) || wait.is_zero() {
            return Ok(found);
        }
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let mut bell = self.link.doorbell().bell(keys);
        loop {
            bell.arm().await?;
            let found = look().await?;
            if enough(&found) || Instant::now() >= deadline {
                return Ok(found);
            }
            bell.wait(deadline).await;
            // Most often it is what was waited for: only where it is not, the bell is armed again.
            let found = look().await?;
            if enough(&found) || Instant::now() >= deadline {
                return Ok(found);
            }
        }
    }

    /// The same where one command that reads `key` is the look: the one that begins the watch tells what is there already.
    pub(super) async fn read_until(
        &self,
        what: &'static str,
        key: String,
        command: Cmd,
        wait: Duration,
        enough: impl Fn(&Value) -> bool + Send + 'static,
    ) -> Result<Value> {
        if wait.is_zero() {
            return self.link.read(what, &command).await;
        }
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let link = self.link.clone();
        let work = async move {
            let mut bell = link.doorbell().bell(vec![key]);
            let mut reads = redis::pipe();
            reads.add_command(command.clone());
            loop {
                let seen = bell.look(&reads).await?.pop().unwrap_or_default();
                if enough(&seen) || Instant::now() >= deadline {
                    return Ok(seen);
                }
                bell.wait(deadline).await;
                // Most often it is what was waited for: only where it is not, the bell is armed again.
                let seen = link.read(what, &command).await?;
                if enough(&seen) || Instant::now() >= deadline {
                    return Ok(seen);
                }
            }
        };
        self.link.drive(what, work).await
    }

    async fn log_end(&self, task_id: &TaskId) -> Result<LogEnd> {
        let keys = self.link.keys();
        let mut look = redis::pipe();
        look.cmd("HMGET").arg(keys.task(task_id.as_str())).arg("l").arg("n").arg("E");
        look.cmd("LLEN").arg(keys.log(task_id.as_str()));
        let answers = self.link.read_all("log", &look).await?;
        let [fields, length] = &answers[..] else { return Err(self.link.unexpected("log")) };
        let [trimmed, number, only] = items(fields) else { return Err(self.link.unexpected("log")) };
        let trimmed = value::count(trimmed);
        let only = value::bytes(only).map(<[u8]>::to_vec);
        let length = if only.is_some() { 1 } else { value::count(length) };
        let mut known = value::bytes(number).is_some();
        if !known && BatchIds::may_have_made(task_id) {
            // It may have no record of its own yet.
            known =
                self.look_at(std::slice::from_ref(task_id), self.now()).await?.iter().any(Known::is_known);
        }
        Ok(LogEnd { trimmed, last: trimmed + length, known, only })
    }

    /// Whether a final state is stored.
    async fn is_finished(&self, task_id: &TaskId) -> Result<bool> {
        let mut head = redis::cmd("GETRANGE");
        head.arg(self.link.keys().meta(task_id.as_str())).arg(0).arg(255);
        let answer = self.link.read("log", &head).await?;
        Ok(super::known::state_in(&value::lossy(&answer)).is_ready())
    }

    /// The body of a chord that Celery opened, which is in the message of each task of its header.
    async fn body_of_header(&self, task_id: Option<&str>) -> Result<Option<Json>> {
        let Some(task_id) = task_id else { return Ok(None) };
        let mut command = redis::cmd("HGET");
        command.arg(self.link.keys().own("messages")).arg(task_id);
        let answer = self.link.read("chord", &command).await?;
        let Some(envelope) = value::bytes(&answer) else { return Ok(None) };
        let message = Message::decode(&super::broker::message_of(envelope)).ok();
        Ok(message.and_then(|message| message.body.embed.chord).map(|chord| chord.encode()))
    }

    /// The parts of a header by task, with the results of those that are not counted; nothing while one has none.
    async fn with_results(
        &self,
        header: &[ResultTuple],
        parts: Vec<ChordPart>,
    ) -> Result<Option<HashMap<TaskId, ChordPart>>> {
        let Some(group_id) = parts.first().map(|part| part.group_id.clone()) else { return Ok(None) };
        let mut found: HashMap<TaskId, ChordPart> =
            parts.into_iter().map(|part| (part.task_id.clone(), part)).collect();
        let mut missing = Vec::new();
        tasks_of(header, &mut |id| {
            if !found.contains_key(id) {
                missing.push(TaskId::from(id));
            }
        });
        for (task_id, meta) in missing.iter().zip(self.fetch(&missing).await?) {
            let Some(meta) = meta.filter(|meta| meta.state.is_ready()) else { return Ok(None) };
            let part = ChordPart {
                group_id: group_id.clone(),
                task_id: task_id.clone(),
                index: None,
                state: meta.state,
                result: meta.result,
            };
            found.insert(task_id.clone(), part);
        }
        Ok(Some(found))
    }

    fn meta(&self, id: &TaskId, bytes: &[u8]) -> Result<ResultMeta> {
        ResultMeta::decode(bytes).map_err(|why| self.damaged(&format!("the result of task {id}"), &why))
    }

    fn json(&self, bytes: &[u8], what: impl FnOnce() -> String) -> Result<Json> {
        let text = std::str::from_utf8(bytes).map_err(|why| why.to_string());
        let json = text.and_then(|text| Json::parse(text).map_err(|why| why.to_string()));
        json.map_err(|why| self.damaged(&what(), &why))
    }

    fn damaged(&self, what: &str, why: &dyn std::fmt::Display) -> Error {
        Error::Corrupt { what: format!("{what} in {}", self.link.shown()), why: why.to_string() }
    }
}

fn feed_record(answer: &Value) -> Option<FeedRecord> {
    let [number, id, task, position, entry] = items(answer) else { return None };
    Some(FeedRecord {
        number: value::count(number),
        task_id: TaskId::from(value::text(id)?),
        task: value::text(task)?.into(),
        entry: log_entry(value::count(position), value::bytes(entry)?)?,
    })
}

/// A part as Celery keeps it: version, id, state, result; its place is the score.
fn chord_part(group_id: &GroupId, text: &str, score: Option<&Value>) -> Option<ChordPart> {
    let kept = Json::parse(text).ok()?.array_items().ok()?;
    let [_, id, state, result] = &kept[..] else { return None };
    let score = match score {
        Some(Value::Double(score)) => Some(*score),
        Some(other) => value::text(other)?.parse().ok(),
        None => None,
    };
    Some(ChordPart {
        group_id: group_id.clone(),
        task_id: TaskId::from(&*id.as_string()?),
        index: score.filter(|score| score.is_finite()).map(|score| score as u32),
        state: State::from(&*state.as_string()?),
        result: result.clone(),
    })
}

/// The members of a header whose result was saved.
fn header(saved: &str) -> Option<Vec<ResultTuple>> {
    let kept = Json::parse(saved).ok()?.entries().ok()?;
    let (_, tuple) = kept.iter().find(|(key, _)| key.as_str() == "result")?;
    ResultTuple::decode(tuple).ok()?.children
}

fn tasks_of(members: &[ResultTuple], note: &mut impl FnMut(&str)) {
    for member in members {
        match &member.children {
            Some(children) => tasks_of(children, note),
            None => note(&member.id),
        }
    }
}

/// The part of a member: of one that is a group, the array of its members' results, or the first of them that failed.
fn joined(member: &ResultTuple, by_id: &HashMap<TaskId, ChordPart>) -> Option<ChordPart> {
    let Some(children) = &member.children else { return by_id.get(member.id.as_str()).cloned() };
    let parts = children.iter().map(|child| joined(child, by_id)).collect::<Option<Vec<_>>>()?;
    if let Some(failed) = parts.iter().find(|part| part.state != State::Success) {
        return Some(failed.clone());
    }
    Some(ChordPart {
        group_id: parts.first()?.group_id.clone(),
        task_id: TaskId::from(member.id.as_str()),
        index: None,
        state: State::Success,
        result: Json::array(parts.iter().map(|part| &part.result)),
    })
}
