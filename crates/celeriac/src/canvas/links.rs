//! Callbacks and errbacks: lists of signatures in the options `link` and `link_error`.

use super::Error;
use super::node::{Kind, Node};
use crate::protocol::{Json, JsonError, JsonMap};

/// A list, or one value that stands for a list of one.
pub(super) fn as_list(value: &Json) -> Result<Vec<Json>, JsonError> {
    match value.as_str().as_bytes().first() {
        Some(b'[') => value.array_items(),
        _ if value.is_null() => Ok(Vec::new()),
        _ => Ok(vec![value.clone()]),
    }
}

impl Node {
    /// Links callbacks to what ends the node.
    pub(super) fn link(&mut self, callbacks: &[Json]) -> Result<(), Error> {
        if callbacks.is_empty() {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Task { .. } | Kind::Chain(_) => self.append("link", callbacks),
            Kind::Chord { body, .. } => body.link(callbacks),
            Kind::Group(_) => Err(Error::invalid(
                format!("{}: option link", self.task),
                "a group has no end of its own; make it the header of a chord",
            )),
        }
    }

    /// Links errbacks to whatever can fail: a task itself, each member of a group, the body of a chord, and through a
    /// chain's own option each of its steps.
    pub(super) fn link_error(&mut self, errbacks: &[Json]) -> Result<(), Error> {
        if errbacks.is_empty() {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Task { .. } | Kind::Chain(_) => self.append("link_error", errbacks),
            Kind::Group(members) => members.iter_mut().try_for_each(|member| member.link_error(errbacks)),
            Kind::Chord { header, body } => {
                // As celery/canvas.py, _chord.link_error: header tasks report through the body, but a chord in the
                // header has a body of its own.
                header.link_error_in_header(errbacks)?;
                body.link_error(errbacks)
            }
        }
    }

    /// Links errbacks that came as an option of a call: to what ends the node, and to no chord on the way there.
    pub(super) fn link_error_to_end(&mut self, errbacks: &[Json]) -> Result<(), Error> {
        match &mut self.kind {
            _ if errbacks.is_empty() => Ok(()),
            Kind::Group(members) => {
                members.iter_mut().try_for_each(|member| member.link_error_to_end(errbacks))
            }
            // A chord hands its option on to its own body when it is applied.
            Kind::Task { .. } | Kind::Chain(_) | Kind::Chord { .. } => self.append("link_error", errbacks),
        }
    }

    fn link_error_in_header(&mut self, errbacks: &[Json]) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Group(members) => {
                members.iter_mut().try_for_each(|member| member.link_error_in_header(errbacks))
            }
            Kind::Chord { .. } => self.link_error(errbacks),
            Kind::Task { .. } | Kind::Chain(_) => Ok(()),
        }
    }

    /// Takes the steps out of a chain, each with what the chain as a whole stood for: its arguments go to the first,
    /// its callbacks to the last, its errbacks to all.
    pub(super) fn into_steps(self) -> Result<Vec<Node>, Error> {
        let (link, link_error) = (self.list_option("link")?, self.list_option("link_error")?);
        let Kind::Chain(mut steps) = self.kind else { return Ok(vec![self]) };
        if let Some(first) = steps.first_mut() {
            first.give(&self.args, &self.kwargs);
        }
        if let Some(last) = steps.last_mut() {
            last.link(&link)?;
        }
        for step in &mut steps {
            step.link_error(&link_error)?;
        }
        Ok(steps)
    }

    /// A group of one is its member: Celery treats the two as the same within a chain.
    pub(super) fn unroll_single(self) -> Result<Node, Error> {
        let mut node = self;
        loop {
            let errbacks = node.list_option("link_error")?;
            match node.kind {
                Kind::Group(ref mut members) if members.len() == 1 => {
                    let Some(mut member) = members.pop() else { return Ok(node) };
                    let mut options = std::mem::take(&mut node.options);
                    for own in
                        ["task_id", "group_id", "group_index", "chord", "link_error", "root_id", "parent_id"]
                    {
                        options.remove(own);
                    }
                    member.merge(&options)?;
                    member.link_error(&errbacks)?;
                    node = member;
                }
                _ => return Ok(node),
            }
        }
    }

    /// A chord whose body is a chain, as the chord with the body's first step and then the rest, so that header
    /// messages need not carry all that follows. A body that begins with a group stays: its steps belong to one body.
    pub(super) fn split_body(mut self) -> Result<Vec<Node>, Error> {
        let (link, link_error) = (self.list_option("link")?, self.list_option("link_error")?);
        let Kind::Chord { body, .. } = &mut self.kind else { return Ok(vec![self]) };
        let mut first_options = body.options.clone();
        for own in
            ["chord", "group_id", "group_index", "link", "link_error", "parent_id", "root_id", "task_id"]
        {
            first_options.remove(own);
        }
        let whole = std::mem::replace(&mut **body, Node::group(Vec::new()));
        let mut steps = whole.into_steps()?.into_iter();
        if let Some(mut first) = steps.next() {
            first.merge(&first_options)?;
            **body = first;
        }
        let mut rest: Vec<Node> = steps.collect();
        for step in &mut rest {
            step.link_error(&link_error)?;
        }
        if let Some(last) = rest.last_mut() {
            last.link(&link)?;
            self.options.remove("link");
        }
        rest.insert(0, self);
        Ok(rest)
    }

    /// Whether this is a chord whose body [`Node::split_body`] takes apart.
    pub(super) fn body_can_split(&self) -> bool {
        let Kind::Chord { body, .. } = &self.kind else { return false };
        matches!(&body.kind, Kind::Chain(steps)
            if steps.first().is_some_and(|first| !matches!(first.kind, Kind::Group(_))))
    }

    fn append(&mut self, option: &str, items: &[Json]) -> Result<(), Error> {
        let mut list = self.list_option(option)?;
        for item in items {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        self.options.insert(option, Json::array(&list));
        Ok(())
    }
}

/// Takes a list out of options.
pub(super) fn take_list(options: &mut JsonMap, name: &str, task: &str) -> Result<Vec<Json>, Error> {
    match options.remove(name) {
        None => Ok(Vec::new()),
        Some(value) => as_list(&value).map_err(|why| Error::option(task, name, &why)),
    }
}
