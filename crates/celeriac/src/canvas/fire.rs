//! What happens when the last task of a chord's header has ended.

use std::collections::HashMap;

use super::fail::Failing;
use super::follow::{Follow, call_errbacks, errbacks_of};
use super::node::{Kind, Node};
use super::plan::{Given, Out, SHAPE};
use super::{Error, Planner};
use crate::backend::{ChordPart, ReadyChord, Record};
use crate::id::TaskId;
use crate::protocol::{Exception, Json, ResultMeta, Signature, python_repr};
use crate::state::State;
use crate::store::Transaction;

/// Fires a chord: sends its body with the values of the header, or fails the body when one of the header did. The
/// transaction takes effect at most once, however many workers plan it.
///
/// The body runs as a child of `cx.parent_id` when that is a task of the header, as it is for the worker that counted
/// the last part, and else of the last in order.
///
/// # Errors
/// The body is no signature at all, so that there is not even an id to fail. A body that is one and cannot be applied
/// fails under its id instead.
pub(crate) fn fire(chord: &ReadyChord, cx: &Planner<'_>) -> Result<Transaction, Error> {
    let mut body = Node::read_json(&chord.body, "the body of a chord")?;
    let shape = body.options.remove(SHAPE);
    let parts = in_order(chord, shape.as_ref());
    let part_of_header = |id: &&TaskId| chord.parts.iter().any(|part| part.task_id == **id);
    let last = parts.last().map(|part| &part.task_id);
    let parent_id = cx.parent_id.as_ref().filter(part_of_header).or(last).cloned();
    let cx = &Planner { parent_id, ..cx.clone() };

    let failed = parts.iter().find(|part| matches!(part.state, State::Failure | State::Revoked));
    let follow = match failed {
        Some(part) => {
            let error = chord_error(part);
            // As celery/backends/base.py, _handle_group_chord_error: a group gets the error itself.
            let error =
                if matches!(body.kind, Kind::Group(_)) { part.result.clone() } else { error.encode() };
            fail(&body, &error, cx)
        }
        None => {
            let mut out = Out::default();
            let given = Given { args: vec![values(&parts, shape.as_ref())], ..Given::default() };
            match body.clone().apply(given, cx, &mut out) {
                Ok(_) => Follow { publish: out.publish, chords: out.chords, ..Follow::default() },
                Err(why) => {
                    let error = Exception::new("celeriac.canvas", "CanvasError", &why.to_string()).encode();
                    fail(&body, &error, cx)
                }
            }
        }
    };
    for problem in &follow.problems {
        tracing::warn!(chord = %chord.group_id, %problem, "part of a failed chord cannot be followed");
    }
    let mut transaction = Transaction {
        record: Record { fire: Some(chord.group_id.clone()), ..Record::default() },
        ..Transaction::default()
    };
    follow.merge_into(&mut transaction);
    Ok(transaction)
}

/// Fails a body, with all that was to follow it, and calls its errbacks.
fn fail(body: &Node, error: &Json, cx: &Planner<'_>) -> Follow {
    let mut failing = Failing::new(error.clone(), None);
    failing.node(body, cx);
    let mut follow = Follow {
        results: failing.results,
        parts: failing.parts,
        publish: failing.webhooks,
        problems: failing.problems,
        ..Follow::default()
    };
    for (id, errbacks) in errbacks_by_task(body, &mut follow.problems) {
        // The workflow's root is known where the chord was opened by a worker.
        let root_id = body.text_option("root_id").ok().flatten().unwrap_or_else(|| id.clone());
        call_errbacks(&errbacks, &id, &root_id, &mut follow, cx);
        let sent = std::mem::take(&mut follow.children);
        let meta = follow.results.iter_mut().find(|meta: &&mut ResultMeta| meta.task_id.as_str() == id);
        if let Some(meta) = meta {
            meta.children = Some(sent);
        }
    }
    follow
}

/// A body's own errbacks are called once, under its id; those of a group's members each under the member's, and the
/// group's under every member's.
fn errbacks_by_task(body: &Node, problems: &mut Vec<Error>) -> Vec<(String, Vec<Signature>)> {
    let own = errbacks_of(&body.options, problems);
    match &body.kind {
        Kind::Group(members) => {
            let mut all = Vec::new();
            for member in members {
                for (id, mut errbacks) in errbacks_by_task(member, problems) {
                    for errback in &own {
                        if !errbacks.contains(errback) {
                            errbacks.push(errback.clone());
                        }
                    }
                    all.push((id, errbacks));
                }
            }
            all
        }
        Kind::Chord { body, .. } => {
            let mut inner = errbacks_by_task(body, problems);
            for (_, errbacks) in &mut inner {
                errbacks.extend(
                    own.iter().filter(|errback| !errbacks.contains(errback)).cloned().collect::<Vec<_>>(),
                );
            }
            inner
        }
        Kind::Task { .. } | Kind::Chain(_) => match body.text_option("task_id") {
            Ok(Some(id)) => vec![(id, own)],
            _ => Vec::new(),
        },
    }
}

fn chord_error(part: &ChordPart) -> Exception {
    let raised = match Exception::decode(&part.result) {
        Ok(exception) => exception.python_repr(),
        Err(_) => python_repr(&part.result),
    };
    Exception::chord(part.task_id.as_str(), &raised)
}

/// The parts in the order of the header. Where it ends in groups, the indexes are those within each group, and only the
/// shape knows the order of the whole.
fn in_order<'a>(chord: &'a ReadyChord, shape: Option<&Json>) -> Vec<&'a ChordPart> {
    fn places(shape: &Json, ids: &mut HashMap<String, usize>) {
        if let Some(id) = shape.as_string() {
            let next = ids.len();
            ids.insert(id.into_owned(), next);
        } else {
            shape.array_items().unwrap_or_default().iter().for_each(|item| places(item, ids));
        }
    }
    let mut parts: Vec<&ChordPart> = chord.parts.iter().collect();
    if let Some(shape) = shape {
        let mut ids = HashMap::new();
        places(shape, &mut ids);
        parts.sort_by_key(|part| ids.get(part.task_id.as_str()).copied().unwrap_or(usize::MAX));
    }
    parts
}

/// The values of the header, nested as the header was.
fn values(parts: &[&ChordPart], shape: Option<&Json>) -> Json {
    let flat = || Json::array(parts.iter().map(|part| &part.result));
    let Some(shape) = shape else { return flat() };
    let mut by_id: HashMap<&str, &Json> =
        parts.iter().map(|part| (part.task_id.as_str(), &part.result)).collect();
    match nest(shape, &mut by_id) {
        // Every part has its place; otherwise the header is not the one that was frozen, and a flat list loses none.
        Some(nested) if by_id.is_empty() => nested,
        _ => flat(),
    }
}

fn nest(shape: &Json, by_id: &mut HashMap<&str, &Json>) -> Option<Json> {
    if let Some(id) = shape.as_string() {
        return by_id.remove(&*id).cloned();
    }
    let items = shape.array_items().ok()?;
    let nested = items.iter().map(|item| nest(item, by_id)).collect::<Option<Vec<Json>>>()?;
    Some(Json::array(&nested))
}
