//! What follows the end of a task.
//!
//! After success: callbacks, then the chain's next step, then the task's part of its chord. After failure: the part,
//! the failure of all that was to follow, then the errbacks. All of it is one transaction with the task's own result,
//! so that none of it happens without the others.

use super::fail::Failing;
use super::links::as_list;
use super::node::{Kind, Node};
use super::plan::{Given, Out};
use super::{Error, Planner};
use crate::backend::{ChordPart, LogRecord, NewChord};
use crate::broker::Routed;
use crate::clock::Timestamp;
use crate::id::{GroupId, QueueName, TaskId};
use crate::protocol::{Exception, Json, JsonMap, Message, ResultMeta, ResultTuple, Signature};
use crate::state::State;
use crate::store::Transaction;

/// What is to be written together with the end of a task, beside its own result.
#[derive(Debug, Default)]
pub(crate) struct Follow {
    /// Messages to send.
    pub(crate) publish: Vec<Routed>,
    /// Chords to open.
    pub(crate) chords: Vec<NewChord>,
    /// Results of tasks that will never run. A caller that stores no failure for the task itself, as its result is
    /// ignored, leaves these out too, as Celery does.
    pub(crate) results: Vec<ResultMeta>,
    /// Ends that chords count.
    pub(crate) parts: Vec<ChordPart>,
    /// For the field `children` of the task's own result.
    pub(crate) children: Vec<ResultTuple>,
    /// Signatures that could not be followed. The rest was; these are for the log.
    pub(crate) problems: Vec<Error>,
}

impl Follow {
    /// Adds all of it to the transaction that ends the task. `children` and `problems` are for the caller.
    pub(crate) fn merge_into(self, transaction: &mut Transaction) {
        transaction.publish.extend(self.publish);
        transaction.record.chords.extend(self.chords);
        transaction.record.log.extend(self.results.iter().map(end_record));
        transaction.record.results.extend(self.results);
        transaction.record.parts.extend(self.parts);
    }
}

/// The last record of a task's log.
pub(crate) fn end_record(meta: &ResultMeta) -> LogRecord {
    let content = if meta.state.is_exception() { "error" } else { "result" };
    let mut data = JsonMap::new();
    data.insert("state", Json::string(meta.state.as_str()));
    data.insert(content, meta.result.clone());
    LogRecord { task_id: meta.task_id.clone(), event: "end".into(), data: data.to_json() }
}

/// What follows the success of the task of `message`.
///
/// # Errors
/// A callback or the next step cannot be applied. Nothing of what follows is sent then: the caller ends the task as a
/// failure with this as its reason.
pub(crate) fn after_success(message: &Message, value: &Json, cx: &Planner<'_>) -> Result<Follow, Error> {
    let cx = &within(message, cx);
    let options = lineage(cx);
    let given =
        |chain| Given { args: vec![value.clone()], options: options.clone(), chain, ..Given::default() };
    let mut out = Out::default();
    let mut children = Vec::new();
    for callback in callbacks(&message.body.embed.callbacks)? {
        children.extend(callback.apply(given(None), cx, &mut out)?.child);
    }
    if let Some((next, rest)) = message.body.embed.chain.as_deref().and_then(<[Signature]>::split_last) {
        children.extend(Node::read(next)?.apply(given(Some(rest.to_vec())), cx, &mut out)?.child);
    }
    let parts = own_part(message, State::Success, value.clone()).into_iter().collect();
    Ok(Follow { publish: out.publish, chords: out.chords, parts, children, ..Follow::default() })
}

/// What follows the failure of the task of `message`. It cannot fail itself: what cannot be followed is left out and
/// named in [`Follow::problems`].
pub(crate) fn after_failure(
    message: &Message,
    exception: &Exception,
    traceback: Option<&str>,
    cx: &Planner<'_>,
) -> Follow {
    let cx = &within(message, cx);
    let exception = exception.encode();
    let mut follow = Follow::default();
    follow.parts.extend(own_part(message, State::Failure, exception.clone()));
    let mut failing = Failing::new(exception, traceback);
    failing.signatures(message.body.embed.chain.as_deref().unwrap_or_default(), cx);
    follow.results = failing.results;
    follow.publish = failing.webhooks;
    follow.parts.extend(failing.parts);
    follow.problems = failing.problems;
    let id = &message.headers.id;
    let root_id = message.headers.root_id.as_deref().unwrap_or(id);
    call_errbacks(&message.body.embed.errbacks, id, root_id, &mut follow, cx);
    // As in Celery, the errbacks of a task are sent after its result was stored and are not among its children.
    follow.children.clear();
    follow
}

/// What follows a revocation: the chord hears of it; neither the chain nor the errbacks do, as in Celery.
pub(crate) fn after_revoke(message: &Message, exception: &Exception) -> Follow {
    let parts = own_part(message, State::Revoked, exception.encode()).into_iter().collect();
    Follow { parts, ..Follow::default() }
}

/// The message of the next attempt, under the same id; `due` at once when `None`.
///
/// # Errors
/// The message cannot be written.
pub(crate) fn retry(message: &Message, due: Option<Timestamp>, cx: &Planner<'_>) -> Result<Routed, Error> {
    let mut message = message.clone();
    let headers = &mut message.headers;
    headers.retries = headers.retries.saturating_add(1);
    headers.eta = due;
    // As celery/app/task.py: the retry is sent from within the task, so the task is its own parent unless it has one.
    headers.parent_id.get_or_insert_with(|| headers.id.clone());
    headers.root_id.get_or_insert_with(|| headers.id.clone());
    let properties = &mut message.properties;
    if !headers.origin.is_empty() {
        properties.other.insert("origin", Json::string(&headers.origin));
    }
    headers.origin = cx.origin.to_owned();
    let queue = match properties.routing_key.as_str() {
        "" => cx.router.queue(&headers.task),
        queue => QueueName::from(queue),
    };
    properties.redelivered = false;
    properties.delivery_tag = (cx.ids)();
    properties.expiration =
        headers.expires.map(|expires| expires.duration_since(cx.now).as_millis().max(0).to_string());
    Ok(Routed {
        task_id: TaskId::from(message.headers.id.as_str()),
        task: message.headers.task.clone().into_boxed_str(),
        queue,
        priority: message.properties.priority,
        due,
        // The id is known: it is the one that is being settled.
        unique: false,
        tags: super::options::tags(&message.headers.custom),
        message: message.encode()?,
    })
}

/// Sends the errbacks of a task that failed, old style: as tasks that get its id. One that cannot be read does not
/// keep the others from being sent.
pub(super) fn call_errbacks(
    errbacks: &[Signature],
    id: &str,
    root_id: &str,
    follow: &mut Follow,
    cx: &Planner<'_>,
) {
    let mut nodes = Vec::with_capacity(errbacks.len());
    for errback in errbacks {
        match Node::read(errback) {
            Ok(node) => nodes.push(node),
            Err(why) => follow.problems.push(why),
        }
    }
    if nodes.is_empty() {
        return;
    }
    let cx =
        &Planner { parent_id: Some(TaskId::from(id)), root_id: Some(TaskId::from(root_id)), ..cx.clone() };
    let given = Given { args: vec![Json::string(id)], options: lineage(cx), ..Given::default() };
    let mut out = Out::default();
    match Node::group(nodes).apply(given, cx, &mut out) {
        Ok(applied) => {
            follow.children.extend(applied.child);
            follow.publish.extend(out.publish);
            follow.chords.extend(out.chords);
        }
        Err(why) => follow.problems.push(why),
    }
}

/// Errbacks in an option, those that can be read.
pub(super) fn errbacks_of(options: &JsonMap, problems: &mut Vec<Error>) -> Vec<Signature> {
    let list = options.get("link_error").map(as_list).unwrap_or_else(|| Ok(Vec::new()));
    match list {
        Ok(items) => items
            .iter()
            .filter_map(|item| {
                Signature::decode(item).map_err(|why| problems.push(Error::invalid("link_error", why))).ok()
            })
            .collect(),
        Err(why) => {
            problems.push(Error::invalid("link_error", why));
            Vec::new()
        }
    }
}

/// The planner as it stands within the task of `message`.
fn within<'a>(message: &Message, cx: &Planner<'a>) -> Planner<'a> {
    let id = &message.headers.id;
    let root_id = message.headers.root_id.as_ref().unwrap_or(id);
    Planner {
        parent_id: Some(TaskId::from(id.as_str())),
        root_id: Some(TaskId::from(root_id.as_str())),
        ..cx.clone()
    }
}

/// The options that Celery gives to whatever follows a task.
fn lineage(cx: &Planner<'_>) -> JsonMap {
    let mut options = JsonMap::new();
    if let Some(id) = &cx.parent_id {
        options.insert("parent_id", Json::string(id.as_str()));
    }
    if let Some(id) = &cx.root_id {
        options.insert("root_id", Json::string(id.as_str()));
    }
    if let Some(priority) = cx.inherited_priority {
        options.insert("priority", super::freeze::number(priority));
    }
    options
}

/// As celery/app/trace.py: of several callbacks, groups are applied each on its own, and the rest as one group.
fn callbacks(signatures: &[Signature]) -> Result<Vec<Node>, Error> {
    let nodes = signatures.iter().map(Node::read).collect::<Result<Vec<_>, _>>()?;
    if nodes.len() < 2 {
        return Ok(nodes);
    }
    let (mut groups, rest): (Vec<Node>, Vec<Node>) =
        nodes.into_iter().partition(|node| matches!(node.kind, Kind::Group(_)));
    if !rest.is_empty() {
        groups.push(Node::group(rest));
    }
    Ok(groups)
}

fn own_part(message: &Message, state: State, result: Json) -> Option<ChordPart> {
    message.body.embed.chord.as_ref()?;
    Some(ChordPart {
        group_id: GroupId::from(message.headers.group.as_deref()?),
        task_id: TaskId::from(message.headers.id.as_str()),
        index: message.headers.group_index,
        state,
        result,
    })
}
