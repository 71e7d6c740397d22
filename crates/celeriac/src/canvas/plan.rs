//! Applying a signature: what is to be written when it is called, all at once.
//!
//! As celery/canvas.py has it, with these differences, each of which ends in fewer stuck workflows:
//! - chunks are a group from the start, so that a chain waits for them;
//! - a group that is to be followed by a step in a place where Celery runs that step once for each member (a group as
//!   the body of a chord with more steps after it) is made a chord as elsewhere;
//! - an empty chain has a result: that of an empty group.

use super::freeze::{Prepared, Seat, Tail, prepare, set_first_parent};
use super::links::take_list;
use super::node::{Kind, Node, decode};
use super::webhook::{give_wish, take_wish};
use super::{Error, Router};
use crate::backend::NewChord;
use crate::broker::Routed;
use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, JsonMap, ResultTuple, Signature};

/// How many messages one plan may have.
pub(super) const MESSAGES_MAX: usize = 100_000;

/// How many bytes the messages of one plan may have together.
pub(super) const BYTES_MAX: usize = 256 * 1024 * 1024;

/// Celeriac's own option on the body of a chord as the store keeps it: how the values are nested, as lists of task
/// ids. It is not sent.
pub(super) const SHAPE: &str = "celeriac.shape";

/// What is given with a call, over what the signature holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// Put before the signature's own arguments unless it is immutable.
    pub(crate) args: Vec<Json>,
    /// Named arguments, which win over its own unless it is immutable.
    pub(crate) kwargs: JsonMap,
    /// Options, which win over its own.
    pub(crate) options: JsonMap,
    /// What follows, **last step first**.
    pub(crate) chain: Option<Vec<Signature>>,
}

/// What the planner knows of the world.
#[derive(Clone)]
pub(crate) struct Planner<'a> {
    /// The present, for countdowns and the end of tasks.
    pub(crate) now: Timestamp,
    /// The task that sends, if one does.
    pub(crate) parent_id: Option<TaskId>,
    /// The first task of the workflow it belongs to.
    pub(crate) root_id: Option<TaskId>,
    /// Who sends: the header `origin`.
    pub(crate) origin: &'a str,
    /// Where tasks go.
    pub(crate) router: &'a Router,
    /// The sending task's priority, when `task_inherit_parent_priority` is on.
    pub(crate) inherited_priority: Option<u8>,
    /// Makes fresh ids.
    pub(crate) ids: &'a (dyn Fn() -> String + Sync),
}

/// Everything to write, in one transaction, for one call.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The messages.
    pub(crate) publish: Vec<Routed>,
    /// The chords to open.
    pub(crate) chords: Vec<NewChord>,
    /// The result of the whole: the last task's or group's, with those before it as parents.
    pub(crate) result: ResultTuple,
    /// What the sending task counts among its children: what was sent now.
    pub(crate) children: Vec<ResultTuple>,
}

/// Plans a call of `signature`.
pub(crate) fn plan(signature: &Signature, given: Given, cx: &Planner<'_>) -> Result<Plan, Error> {
    let mut out = Out::default();
    let applied = Node::read(signature)?.apply(given, cx, &mut out)?;
    Ok(Plan {
        publish: out.publish,
        chords: out.chords,
        result: applied.result,
        children: applied.child.into_iter().collect(),
    })
}

/// What is to be written so far.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) publish: Vec<Routed>,
    pub(super) chords: Vec<NewChord>,
    bytes: usize,
}

/// What came of applying a node.
pub(super) struct Applied {
    pub(super) result: ResultTuple,
    /// What the sending task counts among its children.
    pub(super) child: Option<ResultTuple>,
}

impl Out {
    pub(super) fn push(&mut self, routed: Routed) -> Result<(), Error> {
        let remedy = "split the canvas, or pass large values by reference";
        if self.publish.len() >= MESSAGES_MAX {
            return Err(Error::TooLarge { what: "the messages of one canvas", bound: MESSAGES_MAX, remedy });
        }
        self.bytes += routed.message.head.len() + routed.message.body.len();
        if self.bytes > BYTES_MAX {
            return Err(Error::TooLarge { what: "the bytes of one canvas", bound: BYTES_MAX, remedy });
        }
        self.publish.push(routed);
        Ok(())
    }
}

impl Node {
    pub(super) fn apply(mut self, given: Given, cx: &Planner<'_>, out: &mut Out) -> Result<Applied, Error> {
        let Given { args, kwargs, options, chain } = given;
        self.give(&args, &kwargs);
        self.merge(&options)?;
        let chain = match (chain, self.options.remove("chain")) {
            (Some(chain), _) => Some(chain),
            (None, Some(stored)) => {
                let part = format!("{}: option chain", self.task);
                let items = stored.array_items().map_err(|why| Error::invalid(&part, why))?;
                Some(items.iter().map(|item| decode(item, &part)).collect::<Result<_, _>>()?)
            }
            (None, None) => None,
        };
        match self.kind {
            Kind::Task { .. } => {
                let id = self.send(chain, cx, out)?;
                let result = ResultTuple::task(id);
                Ok(Applied { child: Some(result.clone()), result })
            }
            Kind::Chain(_) => self.apply_chain(chain, cx, out),
            Kind::Group(_) => self.apply_group(chain, cx, out),
            Kind::Chord { .. } => self.apply_chord(chain, cx, out),
        }
    }

    fn apply_chain(
        mut self,
        chain: Option<Vec<Signature>>,
        cx: &Planner<'_>,
        out: &mut Out,
    ) -> Result<Applied, Error> {
        let tail = Tail { id: self.text_option("task_id")?, seat: self.seat()? };
        let link = take_list(&mut self.options, "link", &self.task)?;
        let errbacks = take_list(&mut self.options, "link_error", &self.task)?;
        let mut options = std::mem::take(&mut self.options);
        for own in ["task_id", "group_id", "group_index", "chord"] {
            options.remove(own);
        }
        let given = Given { args: self.args.clone(), kwargs: self.kwargs.clone(), ..Given::default() };
        let Prepared { mut steps, result } = prepare(self, &tail, &errbacks, cx)?;
        if let Some(last) = steps.first_mut() {
            last.link(&link)?;
        }
        let mut chain = chain.unwrap_or_default();
        let Some(first) = steps.pop() else {
            return match chain.pop() {
                Some(next) => {
                    // Nothing stands between what came before and what comes after.
                    Node::read(&next)?.apply(Given { options, chain: Some(chain), ..given }, cx, out)
                }
                None => Ok(Applied { result: ResultTuple::group((cx.ids)(), Vec::new()), child: None }),
            };
        };
        let more = !steps.is_empty();
        if let Some(last) = steps.first_mut()
            && let Some(url) = take_wish(&mut options)
        {
            give_wish(&mut last.options, url);
        }
        chain.extend(steps.iter().map(Node::write));
        let first = first.apply(Given { options, chain: Some(chain), ..Given::default() }, cx, out)?;
        Ok(match result {
            Some(result) if more => Applied { result, child: first.child },
            _ => first,
        })
    }

    fn apply_group(
        mut self,
        chain: Option<Vec<Signature>>,
        cx: &Planner<'_>,
        out: &mut Out,
    ) -> Result<Applied, Error> {
        let mut chain = chain.unwrap_or_default();
        if let Some(next) = chain.pop() {
            let mut options = self.options.clone();
            options.remove("task_id");
            options.remove("link_error");
            if !options.contains_key("chord") {
                options.remove("group_id");
            }
            let chord = Node::chord(self, Node::read(&next)?);
            return chord.apply(Given { options, chain: Some(chain), ..Given::default() }, cx, out);
        }
        if self.options.contains_key("link") {
            // The same refusal as when one links to it.
            self.link(&[Json::null()])?;
        }
        let errbacks = take_list(&mut self.options, "link_error", &self.task)?;
        let id = self.text_option("task_id")?.unwrap_or_else(|| (cx.ids)());
        let seat = match self.seat()? {
            Some(seat) if seat.chord.is_some() => seat,
            _ => Seat { group_id: id.clone(), index: None, chord: None },
        };
        let mut options = std::mem::take(&mut self.options);
        for own in ["task_id", "group_id", "group_index", "chord"] {
            options.remove(own);
        }
        let Kind::Group(members) = self.kind else {
            return Ok(Applied { result: ResultTuple::group(id, Vec::new()), child: None });
        };
        let mut results = Vec::with_capacity(members.len());
        apply_members(members, &errbacks, &seat, &options, cx, out, &mut results)?;
        let result = match results.pop() {
            // As celery/canvas.py, group.apply_async: a group whose only member ends in a group is that group.
            Some(only) if results.is_empty() && only.children.is_some() => only,
            last => {
                results.extend(last);
                ResultTuple::group(id, results)
            }
        };
        Ok(Applied { child: Some(result.clone()), result })
    }

    fn apply_chord(
        mut self,
        chain: Option<Vec<Signature>>,
        cx: &Planner<'_>,
        out: &mut Out,
    ) -> Result<Applied, Error> {
        let link = take_list(&mut self.options, "link", &self.task)?;
        let errbacks = take_list(&mut self.options, "link_error", &self.task)?;
        let outer = self.seat()?;
        let hint = self.text_option("task_id")?;
        let mut options = std::mem::take(&mut self.options);
        for own in ["task_id", "group_id", "group_index", "chord"] {
            options.remove(own);
        }
        let Kind::Chord { mut header, mut body } = self.kind else {
            return Err(Error::invalid(self.task, "not a chord"));
        };
        let group_id = match header.text_option("task_id")? {
            Some(id) => id,
            None => (cx.ids)(),
        };
        header.set_text("task_id", &group_id);

        body.link(&link)?;
        body.link_error_to_end(&errbacks)?;
        let mut body_options = options.clone();
        for header_only in ["parent_id", "countdown", "eta"] {
            body_options.remove(header_only);
        }
        for (name, value) in body_options {
            body.options.insert(name, value);
        }
        if let Some(chain) = chain.filter(|chain| !chain.is_empty()) {
            let chain: Vec<Json> = chain.iter().map(Signature::encode).collect();
            body.options.insert("chain", Json::array(&chain));
        }
        let seat = outer.unwrap_or_else(|| Seat { group_id: group_id.clone(), index: None, chord: None });
        let mut result = body.freeze(&Tail { id: hint, seat: Some(seat) }, cx)?;
        let body_json = body.write().encode();

        let seat = Seat { group_id: group_id.clone(), index: None, chord: Some(body_json.clone()) };
        let header_result = header.freeze(&Tail { id: None, seat: Some(seat) }, cx)?;
        let size = header.ends();
        if size > MESSAGES_MAX {
            return Err(Error::TooLarge {
                what: "the header of a chord",
                bound: MESSAGES_MAX,
                remedy: "give each task more to do, as chunks",
            });
        }
        if size > 0 {
            out.chords.push(NewChord {
                group_id: GroupId::from(group_id.as_str()),
                size: size as u32,
                body: stored_body(&body, body_json, &header_result),
            });
        }
        let mut header_options = std::mem::take(&mut header.options);
        for own in ["task_id", "group_id", "group_index", "chord", "root_id", "parent_id"] {
            header_options.remove(own);
        }
        // The end of a chord is its body's.
        take_wish(&mut options);
        header_options.extend(options);
        if let Kind::Group(members) = header.kind {
            for member in members {
                member.apply(Given { options: header_options.clone(), ..Given::default() }, cx, out)?;
            }
        }
        if size == 0 {
            // Nobody's end will start the body.
            return body.apply(Given { args: vec![Json::array([])], ..Given::default() }, cx, out);
        }
        set_first_parent(&mut result, header_result.clone());
        Ok(Applied { result, child: Some(header_result) })
    }
}

fn apply_members(
    members: Vec<Node>,
    errbacks: &[Json],
    seat: &Seat,
    options: &JsonMap,
    cx: &Planner<'_>,
    out: &mut Out,
    results: &mut Vec<ResultTuple>,
) -> Result<(), Error> {
    for (index, mut member) in members.into_iter().enumerate() {
        member.link_error(errbacks)?;
        if member.is_empty_chain() {
            continue;
        }
        // A nested group is no group of its own: its members are among these, and count from 0 as Celery has it.
        if let Kind::Group(nested) = member.kind {
            let errbacks = take_list(&mut member.options, "link_error", &member.task)?;
            apply_members(nested, &errbacks, seat, options, cx, out, results)?;
            continue;
        }
        // Seats are kept as they were frozen; this one has none yet, or Celery froze it with an index alone.
        let tail = Tail { id: None, seat: Some(seat.at(index)) };
        member.freeze(&tail, cx)?;
        results.push(member.apply(Given { options: options.clone(), ..Given::default() }, cx, out)?.result);
    }
    Ok(())
}

/// The body as the store keeps it: with the nesting of the values, when there is any.
///
/// The parts of a chord are a flat list of ends. Where a header member ends in a group, Celery saves the tuple of the
/// header's result and joins along it, so that the body gets `[[3, 4], 6]`; here the same shape goes with the body.
fn stored_body(body: &Node, plain: Json, header: &ResultTuple) -> Json {
    let nested = header.children.iter().flatten().any(|member| member.children.is_some());
    if !nested {
        return plain;
    }
    let mut body = body.write();
    body.options.insert(SHAPE, shape(header));
    body.encode()
}

/// The ids of a result's tasks, nested as its groups are.
pub(super) fn shape(result: &ResultTuple) -> Json {
    match &result.children {
        None => Json::string(&result.id),
        Some(children) => {
            let children: Vec<Json> = children.iter().map(shape).collect();
            Json::array(&children)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RawMessage;

    fn routed(bytes: usize) -> Routed {
        Routed {
            task_id: "a".into(),
            task: "t".into(),
            queue: "q".into(),
            priority: 0,
            due: None,
            unique: false,
            tags: Vec::new(),
            message: RawMessage { head: "".into(), body: vec![0; bytes].into() },
        }
    }

    #[test]
    fn a_plan_is_bounded() {
        let mut full = Out { bytes: BYTES_MAX - 2, ..Out::default() };
        full.push(routed(2)).unwrap();
        assert!(full.push(routed(1)).unwrap_err().to_string().contains("the bytes of one canvas"));
        let mut many = Out { publish: vec![routed(0); MESSAGES_MAX - 1], ..Out::default() };
        many.push(routed(0)).unwrap();
        assert!(many.push(routed(0)).unwrap_err().to_string().contains("the messages of one canvas"));
    }
}
