//! A signature taken apart, so that its parts can be moved around.

use super::Error;
use super::freeze::Seat;
use super::links;
use crate::protocol::{Json, JsonMap, Signature};

/// How deep canvases may nest.
pub(super) const DEPTH_MAX: usize = 64;

const COMPOSITES: [&str; 6] = ["chain", "group", "chord", "chunks", "xmap", "xstarmap"];

/// Celeriac's own option: the key from which a task's id is made. It never leaves this process.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// A signature with its composite parts as nodes of their own.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) task: String,
    pub(super) args: Vec<Json>,
    /// Named arguments of a task or of a chain's first task. The parts of composites are not in here; what a chord
    /// has in its `kwargs.kwargs`, named arguments for the header, was handed to the header.
    pub(super) kwargs: JsonMap,
    pub(super) options: JsonMap,
    pub(super) immutable: bool,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// One message: a plain task, a map or a starmap, which differ in `subtask_type` only.
    Task { subtask_type: Option<String> },
    /// The steps, in order.
    Chain(Vec<Node>),
    /// The members.
    Group(Vec<Node>),
    /// The header, which is always a group, and the body.
    Chord { header: Box<Node>, body: Box<Node> },
}

impl Node {
    pub(super) fn read(signature: &Signature) -> Result<Self, Error> {
        Self::read_at(signature, 0)
    }

    pub(super) fn read_json(json: &Json, part: &str) -> Result<Self, Error> {
        Self::read(&decode(json, part)?)
    }

    fn read_at(signature: &Signature, depth: usize) -> Result<Self, Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep { bound: DEPTH_MAX });
        }
        let mut node = Self {
            task: signature.task.clone(),
            args: signature.args.clone(),
            kwargs: JsonMap::new(),
            options: signature.options.clone(),
            immutable: signature.immutable,
            kind: Kind::Task { subtask_type: None },
        };
        node.options.retain(|_, value| !value.is_null());
        let kind = COMPOSITES.iter().find(|kind| signature.is_composite(kind)).copied();
        let many = matches!(kind, Some("chain" | "group" | "chord" | "chunks"));
        if many && node.options.contains_key(IDEMPOTENCY_KEY) {
            return Err(Error::invalid(
                format!("{}: option {IDEMPOTENCY_KEY}", signature.task),
                "it makes the id of one task; give each task its own key",
            ));
        }
        let kwargs = &signature.kwargs;
        let part = |field: &str| format!("{}: {field}", signature.task);
        match kind {
            Some("chain") => node.kind = Kind::Chain(read_list(kwargs, "tasks", &part("tasks"), depth)?),
            Some("group") => node.kind = Kind::Group(read_list(kwargs, "tasks", &part("tasks"), depth)?),
            Some("chord") => {
                let mut header = read_header(kwargs, &part("header"), depth, &node.options)?;
                let body = match kwargs.get("body") {
                    Some(body) if !body.is_null() => Self::read_at(&decode(body, &part("body"))?, depth + 1)?,
                    _ => {
                        return Err(Error::invalid(
                            part("body"),
                            "a chord needs one; use a group without it",
                        ));
                    }
                };
                if let Some(inner) = kwargs.get("kwargs").filter(|inner| !inner.is_null()) {
                    let inner = inner.entries().map_err(|why| Error::invalid(part("kwargs"), why))?;
                    header.give(&[], &inner);
                }
                node.kind = Kind::Chord { header: Box::new(header), body: Box::new(body) };
            }
            Some("chunks") => {
                node.kind = Kind::Group(read_chunks(kwargs, &part)?);
                node.task = "celery.group".to_owned();
                node.immutable = false;
            }
            _ => {
                node.kwargs = kwargs.clone();
                node.immutable |= kind.is_some();
                let subtask_type = kind.map(str::to_owned).or_else(|| signature.subtask_type.clone());
                node.kind = Kind::Task { subtask_type };
            }
        }
        Ok(node)
    }

    /// A plain group, chain or chord around parts.
    pub(super) fn group(members: Vec<Node>) -> Self {
        Self::composite("celery.group", Kind::Group(members))
    }

    pub(super) fn chord(header: Node, body: Node) -> Self {
        Self::composite("celery.chord", Kind::Chord { header: Box::new(header), body: Box::new(body) })
    }

    fn composite(task: &str, kind: Kind) -> Self {
        Self {
            task: task.to_owned(),
            args: Vec::new(),
            kwargs: JsonMap::new(),
            options: JsonMap::new(),
            immutable: false,
            kind,
        }
    }

    /// The signature as it travels.
    pub(super) fn write(&self) -> Signature {
        let list = |nodes: &[Node]| {
            let nodes: Vec<Json> = nodes.iter().map(|node| node.write().encode()).collect();
            Json::array(&nodes)
        };
        let (subtask_type, kwargs) = match &self.kind {
            Kind::Task { subtask_type } => (subtask_type.as_deref(), self.kwargs.clone()),
            Kind::Chain(steps) => (Some("chain"), JsonMap::from([("tasks", list(steps))])),
            Kind::Group(members) => (Some("group"), JsonMap::from([("tasks", list(members))])),
            Kind::Chord { header, body } => (
                Some("chord"),
                JsonMap::from([
                    ("kwargs", JsonMap::new().to_json()),
                    ("header", header.write().encode()),
                    ("body", body.write().encode()),
                ]),
            ),
        };
        let mut options = self.options.clone();
        options.remove(IDEMPOTENCY_KEY);
        Signature {
            task: self.task.clone(),
            args: self.args.clone(),
            kwargs,
            options,
            subtask_type: subtask_type.map(str::to_owned),
            immutable: self.immutable,
        }
    }

    /// Puts arguments before its own; what takes them is every member of a group, the header of a chord, the first
    /// step of a chain. Named ones win over its own.
    pub(super) fn give(&mut self, args: &[Json], kwargs: &JsonMap) {
        if self.immutable || (args.is_empty() && kwargs.is_empty()) {
            return;
        }
        match &mut self.kind {
            Kind::Task { .. } | Kind::Chain(_) => {
                self.args.splice(0..0, args.iter().cloned());
                for (key, value) in kwargs {
                    self.kwargs.insert(key.clone(), value.clone());
                }
            }
            Kind::Group(members) => members.iter_mut().for_each(|member| member.give(args, kwargs)),
            Kind::Chord { header, .. } => header.give(args, kwargs),
        }
    }

    /// Merges options given with a call over the node's own, as Celery does: a `null` says nothing, and neither the
    /// group nor stamps that are there already can be changed, as that would stall whoever waits for them.
    pub(super) fn merge(&mut self, given: &JsonMap) -> Result<(), Error> {
        if given.is_empty() {
            return Ok(());
        }
        let mut fixed: Vec<String> = self
            .list_option("stamped_headers")?
            .iter()
            .filter_map(|name| name.as_string().map(Into::into))
            .collect();
        fixed.extend(["group_id".to_owned(), "stamped_headers".to_owned()]);
        for (key, value) in given {
            let held = fixed.contains(key) && self.options.contains_key(key);
            if !(held || value.is_null()) {
                self.options.insert(key.clone(), value.clone());
            }
        }
        Ok(())
    }

    /// The name a message is routed by: that of the inner task for a map or a starmap.
    pub(super) fn routed_name(&self) -> String {
        match &self.kind {
            Kind::Task { subtask_type: Some(kind) } if kind == "xmap" || kind == "xstarmap" => {
                let inner = self.kwargs.get("task").and_then(|task| Signature::decode(task).ok());
                inner.map_or_else(|| self.task.clone(), |inner| inner.task)
            }
            _ => self.task.clone(),
        }
    }

    /// A text option; absent and null are one.
    pub(super) fn text_option(&self, name: &str) -> Result<Option<String>, Error> {
        text_of(&self.options, name, &self.task)
    }

    /// An option that is a list, or one value that stands for a list of one.
    pub(super) fn list_option(&self, name: &str) -> Result<Vec<Json>, Error> {
        match self.options.get(name) {
            None => Ok(Vec::new()),
            Some(value) => links::as_list(value).map_err(|why| Error::option(&self.task, name, &why)),
        }
    }

    /// Signatures in an option, as `link`.
    pub(super) fn signatures_option(&self, name: &str) -> Result<Vec<Signature>, Error> {
        let list = self.list_option(name)?;
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let part = format!("{}: option {name}", self.task);
        list.iter().map(|item| decode(item, &part)).collect()
    }

    /// Sets an option to a text.
    pub(super) fn set_text(&mut self, name: &str, text: &str) {
        self.options.insert(name, Json::string(text));
    }

    /// Its place in a group or chord, if its options tell.
    pub(super) fn seat(&self) -> Result<Option<Seat>, Error> {
        Seat::read(&self.options, &self.task)
    }

    /// How many ends of tasks it contributes to the chord it is a header member of. The node must be frozen, which
    /// took empty parts out.
    pub(super) fn ends(&self) -> usize {
        match &self.kind {
            Kind::Task { .. } => 1,
            Kind::Group(members) => members.iter().map(Node::ends).sum(),
            // The last step has the chain's place in the chord. Celery counts the last step that has any end, which
            // nobody reports when a chord with an empty body comes after it.
            Kind::Chain(steps) => steps.last().map_or(0, Node::ends),
            Kind::Chord { body, .. } => body.ends(),
        }
    }

    pub(super) fn is_empty_group(&self) -> bool {
        matches!(&self.kind, Kind::Group(members) if members.is_empty())
    }

    /// A chain without a single step, which a group drops.
    pub(super) fn is_empty_chain(&self) -> bool {
        let nothing = |step: &Node| match &step.kind {
            Kind::Group(members) if members.len() == 1 => members[0].is_empty_chain(),
            _ => step.is_empty_chain(),
        };
        matches!(&self.kind, Kind::Chain(steps) if steps.iter().all(nothing))
    }
}

pub(super) fn text_of(options: &JsonMap, name: &str, task: &str) -> Result<Option<String>, Error> {
    match options.get(name) {
        Some(value) if !value.is_null() => match value.as_string() {
            Some(text) => Ok(Some(text.into_owned())),
            None => {
                Err(Error::invalid(format!("{task}: option {name}"), format_args!("{value} is not a text")))
            }
        },
        _ => Ok(None),
    }
}

pub(super) fn decode(json: &Json, part: &str) -> Result<Signature, Error> {
    Signature::decode(json).map_err(|why| Error::invalid(part, why))
}

fn read_list(kwargs: &JsonMap, key: &str, part: &str, depth: usize) -> Result<Vec<Node>, Error> {
    let Some(list) = kwargs.get(key) else { return Err(Error::invalid(part, "missing")) };
    let items = list.array_items().map_err(|why| Error::invalid(part, why))?;
    read_items(&items, part, depth)
}

fn read_items(items: &[Json], part: &str, depth: usize) -> Result<Vec<Node>, Error> {
    items.iter().map(|item| Node::read_at(&decode(item, part)?, depth + 1)).collect()
}

/// A header is a group, a list, a chain (whose steps are then the members, as in Celery) or one signature.
fn read_header(kwargs: &JsonMap, part: &str, depth: usize, options: &JsonMap) -> Result<Node, Error> {
    let Some(header) = kwargs.get("header") else { return Err(Error::invalid(part, "missing")) };
    if header.as_str().starts_with('[') {
        let items = header.array_items().map_err(|why| Error::invalid(part, why))?;
        let mut group = Node::group(read_items(&items, part, depth)?);
        if let Some(id) = options.get("task_id") {
            group.options.insert("task_id", id.clone());
        }
        return Ok(group);
    }
    let node = Node::read_at(&decode(header, part)?, depth + 1)?;
    Ok(match node.kind {
        Kind::Group(_) => node,
        Kind::Chain(steps) => Node::group(steps),
        Kind::Task { .. } | Kind::Chord { .. } => Node::group(vec![node]),
    })
}

/// Celery leaves chunks to the moment of applying; here they are the group of starmaps they stand for from the start,
/// so that a chain waits for all of them before its next step.
fn read_chunks(kwargs: &JsonMap, part: &dyn Fn(&str) -> String) -> Result<Vec<Node>, Error> {
    let get = |name: &str| kwargs.get(name).ok_or_else(|| Error::invalid(part(name), "missing"));
    let items = get("it")?.array_items().map_err(|why| Error::invalid(part("it"), why))?;
    let size: usize = get("n")?.to().map_err(|why| Error::invalid(part("n"), why))?;
    if size == 0 {
        return Err(Error::invalid(part("n"), "a chunk holds at least one item"));
    }
    let task = get("task")?;
    let chunk = |items: &[Json]| Node {
        task: "celery.starmap".to_owned(),
        args: Vec::new(),
        kwargs: JsonMap::from([("task", task.clone()), ("it", Json::array(items))]),
        options: JsonMap::new(),
        immutable: true,
        kind: Kind::Task { subtask_type: Some("xstarmap".to_owned()) },
    };
    Ok(items.chunks(size).map(chunk).collect())
}
