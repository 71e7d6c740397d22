//! Freezing: every task gets its id, and its place in a group or chord, before anything is sent.
//!
//! Who waits for a canvas must know the ids of its parts, and two workers must not give one step two ids. So the whole
//! canvas is frozen by whoever sends its first message, and freezing again changes nothing.

use std::collections::VecDeque;

use super::node::{IDEMPOTENCY_KEY, Kind, Node, text_of};
use super::{Error, Planner};
use crate::id::TaskId;
use crate::protocol::{Json, JsonMap, ResultTuple};

/// How many steps one chain may have, those of chains within it included. Each message carries all that follow, so
/// the bytes sent grow with the square.
pub(super) const CHAIN_STEPS_MAX: usize = 1_000;

/// A place in a group, and in the chord whose header the group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) group_id: String,
    pub(super) index: Option<u32>,
    /// The signature of the chord's body.
    pub(super) chord: Option<Json>,
}

/// What belongs to the last task of a node and not to the others.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    /// An id for it, unless it has one.
    pub(super) id: Option<String>,
    pub(super) seat: Option<Seat>,
}

/// A chain made ready.
pub(super) struct Prepared {
    /// **Last step first**, as in a message.
    pub(super) steps: Vec<Node>,
    /// The result of the last step with those before it as its parents; `None` for a chain without steps.
    pub(super) result: Option<ResultTuple>,
}

impl Seat {
    pub(super) fn read(options: &JsonMap, task: &str) -> Result<Option<Self>, Error> {
        let Some(group_id) = text_of(options, "group_id", task)? else { return Ok(None) };
        let index = match options.get("group_index").filter(|index| !index.is_null()) {
            Some(index) => Some(index.to().map_err(|why| Error::option(task, "group_index", &why))?),
            None => None,
        };
        let chord = options.get("chord").filter(|chord| !chord.is_null()).cloned();
        Ok(Some(Self { group_id, index, chord }))
    }

    fn write(&self, options: &mut JsonMap) {
        options.insert("group_id", Json::string(&self.group_id));
        if let Some(index) = self.index {
            options.insert("group_index", number(index));
        }
        if let Some(chord) = &self.chord {
            options.insert("chord", chord.clone());
        }
    }

    /// The same group, another place.
    pub(super) fn at(&self, index: usize) -> Self {
        Self { index: u32::try_from(index).ok(), ..self.clone() }
    }
}

impl Node {
    /// Gives every task in here an id, and `tail` to the last. Says what the result will be.
    pub(super) fn freeze(&mut self, tail: &Tail, cx: &Planner<'_>) -> Result<ResultTuple, Error> {
        match &mut self.kind {
            Kind::Task { .. } => {
                let id = self.freeze_id(tail.id.as_deref(), cx)?;
                self.take_seat(tail.seat.as_ref());
                Ok(ResultTuple::task(id))
            }
            Kind::Chain(steps) => {
                let whole = Node {
                    task: self.task.clone(),
                    args: std::mem::take(&mut self.args),
                    kwargs: std::mem::take(&mut self.kwargs),
                    // Its own links stay where they are until it is applied: a chord that fails looks for them there.
                    options: JsonMap::new(),
                    immutable: false,
                    kind: Kind::Chain(std::mem::take(steps)),
                };
                let own_id = self.text_option("task_id")?;
                let tail = Tail { id: tail.id.clone().or(own_id), seat: tail.seat.clone() };
                let prepared = prepare(whole, &tail, &[], cx)?;
                self.kind = Kind::Chain(prepared.steps.into_iter().rev().collect());
                match prepared.result {
                    Some(result) => {
                        self.set_text("task_id", &result.id);
                        Ok(result)
                    }
                    None => Ok(ResultTuple::group((cx.ids)(), Vec::new())),
                }
            }
            Kind::Group(members) => {
                let errbacks = super::links::take_list(&mut self.options, "link_error", &self.task)?;
                for member in members.iter_mut() {
                    member.link_error(&errbacks)?;
                }
                let mut flat = flatten_reversed(std::mem::take(members))?;
                let mut results = Vec::with_capacity(flat.len());
                for (index, member) in flat.iter_mut().enumerate() {
                    let seat = tail.seat.as_ref().map(|seat| seat.at(index));
                    match seat {
                        Some(seat) => results.push(member.freeze(&Tail { id: None, seat: Some(seat) }, cx)?),
                        None => {
                            results.push(member.freeze(&Tail::default(), cx)?);
                            if matches!(member.kind, Kind::Task { .. }) {
                                member.options.insert("group_index", number(index));
                            }
                        }
                    }
                }
                *members = flat;
                let id = self.freeze_id(None, cx)?;
                self.take_seat(tail.seat.as_ref());
                Ok(ResultTuple::group(id, results))
            }
            Kind::Chord { header, body } => {
                let header_result = header.freeze(&Tail::default(), cx)?;
                let mut result = body.freeze(tail, cx)?;
                set_first_parent(&mut result, header_result.clone());
                self.set_text("task_id", &header_result.id);
                Ok(result)
            }
        }
    }

    fn freeze_id(&mut self, hint: Option<&str>, cx: &Planner<'_>) -> Result<String, Error> {
        let id = match (self.text_option(IDEMPOTENCY_KEY)?, self.text_option("task_id")?) {
            (Some(key), _) => TaskId::for_key(&self.routed_name(), &key).to_string(),
            (None, Some(id)) => id,
            (None, None) => hint.map_or_else(|| (cx.ids)(), str::to_owned),
        };
        self.set_text("task_id", &id);
        Ok(id)
    }

    /// A place taken before stays: whoever gave it counts on it. Only a chord about to open puts others aside, as its
    /// header is what it says.
    fn take_seat(&mut self, seat: Option<&Seat>) {
        let Some(seat) = seat else { return };
        let in_group = self.options.contains_key("group_id");
        let in_chord = in_group && self.options.contains_key("chord");
        if seat.chord.is_some() || !in_group {
            seat.write(&mut self.options);
        } else if let (Some(index), false) = (seat.index, in_chord) {
            self.options.insert("group_index", number(index));
        }
    }
}

/// Makes a chain ready: nested chains become steps of it, empty groups go, and a group with a step after it becomes a
/// chord with that step as its body.
///
/// As celery/canvas.py, `_chain.prepare_steps`, from the last step to the first, as each needs what follows it.
pub(super) fn prepare(
    chain: Node,
    tail: &Tail,
    errbacks: &[Json],
    cx: &Planner<'_>,
) -> Result<Prepared, Error> {
    let (args, kwargs) = (chain.args.clone(), chain.kwargs.clone());
    let mut bare = chain;
    bare.args.clear();
    bare.kwargs = JsonMap::new();
    let mut waiting = strip_head(bare.into_steps()?.into())?;
    let mut steps: Vec<Node> = Vec::new();
    let mut results: Vec<ResultTuple> = Vec::new();
    let mut any = false;
    while let Some(step) = waiting.pop_back() {
        if waiting.len() + steps.len() > CHAIN_STEPS_MAX {
            return Err(Error::TooLarge {
                what: "the steps of a chain",
                bound: CHAIN_STEPS_MAX,
                remedy: "let the last step send the next chain",
            });
        }
        let mut step = step.unroll_single()?;
        if step.is_empty_group() && !(waiting.is_empty() && steps.is_empty()) {
            continue;
        }
        if matches!(step.kind, Kind::Chain(_)) {
            waiting.extend(step.into_steps()?);
            continue;
        }
        if step.body_can_split() {
            waiting.extend(step.split_body()?);
            continue;
        }
        if waiting.is_empty() {
            step.give(&args, &kwargs);
        }
        if matches!(step.kind, Kind::Group(_))
            && let Some(body) = steps.pop()
        {
            results.pop();
            step = Node::chord(step, body);
        }
        let result = step.freeze(if any { &NO_TAIL } else { tail }, cx)?;
        any = true;
        step.link_error(errbacks)?;
        steps.push(step);
        results.push(result);
    }
    let result = results.into_iter().rev().reduce(|before, mut result| {
        set_first_parent(&mut result, before);
        result
    });
    Ok(Prepared { steps, result })
}

static NO_TAIL: Tail = Tail { id: None, seat: None };

/// The arguments given to a chain go to the first step that is a task: chains at the head are taken apart and empty
/// groups dropped, but for the last when there is nothing else.
fn strip_head(mut steps: VecDeque<Node>) -> Result<VecDeque<Node>, Error> {
    let mut stripped = None;
    while let Some(head) = steps.pop_front() {
        let head = head.unroll_single()?;
        if matches!(head.kind, Kind::Chain(_)) {
            for step in head.into_steps()?.into_iter().rev() {
                steps.push_front(step);
            }
        } else if head.is_empty_group() && !steps.is_empty() {
            stripped = Some(head);
        } else {
            steps.push_front(head);
            break;
        }
    }
    if steps.is_empty() {
        steps.extend(stripped);
    }
    Ok(steps)
}

/// Takes nested groups apart. As Celery does when it freezes a group, which puts the members of a nested one in
/// reverse; the values a chord's body gets are in this order, so it is part of the protocol.
fn flatten_reversed(members: Vec<Node>) -> Result<Vec<Node>, Error> {
    let mut stack: VecDeque<Node> = members.into();
    let mut flat = Vec::with_capacity(stack.len());
    while let Some(member) = stack.pop_front() {
        let errbacks = member.list_option("link_error")?;
        match member.kind {
            Kind::Group(nested) => {
                for mut inner in nested {
                    inner.link_error(&errbacks)?;
                    stack.push_front(inner);
                }
            }
            _ if member.is_empty_chain() => {}
            _ => flat.push(member),
        }
    }
    Ok(flat)
}

/// Hangs `parent` above the first of the results that `result` follows.
pub(super) fn set_first_parent(result: &mut ResultTuple, parent: ResultTuple) {
    let mut first = result;
    while first.parent.is_some() {
        let Some(next) = &mut first.parent else { return };
        first = next;
    }
    first.parent = Some(Box::new(parent));
}

pub(super) fn number(value: impl serde::Serialize) -> Json {
    // A number always has a JSON form.
    Json::from_value(&value).unwrap_or_default()
}
