//! What a failure does to signatures that will never run.
//!
//! As celery/backends/base.py, `_fail_chain`, and wider: every task in there ends as FAILURE, the members of groups and
//! the headers of chords too, so that nobody waits for one forever; and every end that a chord counts on is counted,
//! where Celery counts one for a whole group. The ids of groups and chords themselves get no result: they are no tasks.

use super::freeze::Seat;
use super::node::{Kind, Node};
use super::webhook::{Ended, webhook};
use super::{Error, Planner};
use crate::backend::ChordPart;
use crate::broker::Routed;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta, Signature};
use crate::state::State;

/// Collects the ends of tasks that never ran.
pub(super) struct Failing<'a> {
    pub(super) exception: Json,
    pub(super) traceback: Option<&'a str>,
    pub(super) results: Vec<ResultMeta>,
    pub(super) parts: Vec<ChordPart>,
    /// Messages that tell of these ends.
    pub(super) webhooks: Vec<Routed>,
    /// Signatures that cannot be read; what can be is failed all the same.
    pub(super) problems: Vec<Error>,
}

impl<'a> Failing<'a> {
    pub(super) fn new(exception: Json, traceback: Option<&'a str>) -> Self {
        Self {
            exception,
            traceback,
            results: Vec::new(),
            parts: Vec::new(),
            webhooks: Vec::new(),
            problems: Vec::new(),
        }
    }

    pub(super) fn signatures(&mut self, signatures: &[Signature], cx: &Planner<'_>) {
        for signature in signatures {
            match Node::read(signature) {
                Ok(node) => self.node(&node, cx),
                Err(why) => self.problems.push(why),
            }
        }
    }

    /// Fails a node, and whatever is to follow it.
    pub(super) fn node(&mut self, node: &Node, cx: &Planner<'_>) {
        self.seated(node, None, cx);
        match node.signatures_option("chain") {
            Ok(chain) => self.signatures(&chain, cx),
            Err(why) => self.problems.push(why),
        }
    }

    fn seated(&mut self, node: &Node, inherited: Option<&Seat>, cx: &Planner<'_>) {
        let (id, seat) = match (node.text_option("task_id"), node.seat()) {
            (Ok(id), Ok(seat)) => (id, seat),
            (Err(why), _) | (_, Err(why)) => {
                self.problems.push(why);
                return;
            }
        };
        let seat = match (seat, inherited) {
            (Some(seat), Some(inherited)) if seat.chord.is_none() && inherited.chord.is_some() => {
                Some(inherited.clone())
            }
            (Some(seat), _) => Some(seat),
            (None, inherited) => inherited.cloned(),
        };
        match &node.kind {
            Kind::Task { .. } => {
                // Without an id it was never frozen, and nobody can know of it.
                if let Some(id) = id {
                    self.task(&id, node, seat.as_ref(), cx);
                }
            }
            Kind::Chain(steps) => {
                for (place, step) in steps.iter().enumerate() {
                    let last = place + 1 == steps.len();
                    self.seated(step, if last { seat.as_ref() } else { None }, cx);
                }
            }
            Kind::Group(members) => {
                for (index, member) in members.iter().enumerate() {
                    let seat = seat.as_ref().map(|seat| seat.at(index));
                    self.seated(member, seat.as_ref(), cx);
                }
            }
            Kind::Chord { header, body } => {
                self.unopened(header, cx);
                self.seated(body, seat.as_ref(), cx);
            }
        }
    }

    /// The header of a chord that never opened: its tasks fail, and no chord counts them.
    fn unopened(&mut self, header: &Node, cx: &Planner<'_>) {
        let counted = self.parts.len();
        self.seated(header, None, cx);
        self.parts.truncate(counted);
    }

    fn task(&mut self, id: &str, node: &Node, seat: Option<&Seat>, cx: &Planner<'_>) {
        let mut meta = ResultMeta::new(id, State::Failure, self.exception.clone());
        meta.traceback = self.traceback.map(str::to_owned);
        meta.children = Some(Vec::new());
        meta.date_done = Some(cx.now);
        meta.group_id = seat.map(|seat| GroupId::from(seat.group_id.as_str()));
        // It never ran, so its id alone names this end.
        let told = node.custom_headers().and_then(|headers| {
            webhook(&Ended { task: &node.task, headers: &headers, retries: 0, meta: &meta, run: "" }, cx)
        });
        match told {
            Ok(told) => self.webhooks.extend(told),
            Err(why) => self.problems.push(why),
        }
        self.results.push(meta);
        if let Some(seat) = seat.filter(|seat| seat.chord.is_some()) {
            self.parts.push(ChordPart {
                group_id: GroupId::from(seat.group_id.as_str()),
                task_id: TaskId::from(id),
                index: seat.index,
                state: State::Failure,
                result: self.exception.clone(),
            });
        }
    }
}
