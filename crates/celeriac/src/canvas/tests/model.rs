//! What a canvas means, worked out by recursion: no messages, no order, nothing of the code under test.

use std::collections::BTreeMap;

/// A canvas as a user writes it.
#[derive(Debug, Clone)]
pub(super) enum Canvas {
    Task(Task),
    /// One message that calls a task for each item.
    Map {
        label: u32,
        star: bool,
        items: Vec<u32>,
        fails: bool,
    },
    /// A group of starmaps.
    Chunks {
        label: u32,
        items: Vec<u32>,
        size: usize,
    },
    Chain {
        steps: Vec<Canvas>,
        errback: Option<u32>,
    },
    Group {
        members: Vec<Canvas>,
        errback: Option<u32>,
    },
    Chord {
        header: Vec<Canvas>,
        body: Box<Canvas>,
        errback: Option<u32>,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Names the task, and its id.
    pub(super) label: u32,
    pub(super) args: Vec<u32>,
    pub(super) immutable: bool,
    pub(super) fails: bool,
    pub(super) callbacks: Vec<u32>,
    pub(super) errbacks: Vec<u32>,
}

/// A value: what tasks return, alone or in lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u32),
    List(Vec<Value>),
}

/// How a task ended. A failure of a chord has an error of its own, whose text other tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Success(String),
    Failure,
}

/// What is to be seen after a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// By id, for tasks whose id is known beforehand.
    pub(super) ends: BTreeMap<String, End>,
    /// Every call: task and arguments, sorted. Ids among the arguments are left out.
    pub(super) calls: Vec<String>,
}

impl Value {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(Value::text).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// What a task returns, from its name and the text of its arguments.
pub(super) fn returns(task: &str, args: &str) -> u32 {
    let bytes = task.bytes().chain(args.bytes());
    bytes.fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619)) % 10_000
}

pub(super) fn expected(canvas: &Canvas) -> Seen {
    let mut model = Model::default();
    if let Some(form) = form(canvas.clone()) {
        let _ = model.run(&form, &[]);
    }
    model.seen.calls.sort();
    model.seen
}

/// A canvas in which no chain stands within a chain and no group before a step.
#[derive(Debug, Clone)]
enum Form {
    Task(Task),
    Map(Map),
    Chain { steps: Vec<Form>, errbacks: Vec<u32> },
    Group(Vec<Form>),
    Chord { header: Vec<Form>, body: Box<Form> },
}

#[derive(Debug, Clone)]
struct Map {
    label: u32,
    star: bool,
    items: Vec<u32>,
    fails: bool,
    /// Whether its id is known beforehand; those of chunks are not.
    known: bool,
    errbacks: Vec<u32>,
}

/// `None` for what a group drops: a chain without a single step.
fn form(canvas: Canvas) -> Option<Form> {
    Some(match canvas {
        Canvas::Task(task) => Form::Task(task),
        Canvas::Map { label, star, items, fails } => {
            Form::Map(Map { label, star, items, fails, known: true, errbacks: vec![] })
        }
        Canvas::Chunks { label, items, size } => Form::Group(
            items
                .chunks(size)
                .map(|items| {
                    Form::Map(Map {
                        label,
                        star: true,
                        items: items.to_vec(),
                        fails: false,
                        known: false,
                        errbacks: vec![],
                    })
                })
                .collect(),
        ),
        chain @ Canvas::Chain { .. } if is_nothing(&chain) => return None,
        Canvas::Chain { steps, errback } => {
            let steps = chained(steps);
            let mut chain = Form::Chain { steps, errbacks: vec![] };
            errback.into_iter().for_each(|errback| chain.add_errback(errback));
            chain
        }
        Canvas::Group { members, errback } => {
            let mut group = Form::Group(members.into_iter().filter_map(form).collect());
            errback.into_iter().for_each(|errback| group.add_errback(errback));
            group
        }
        Canvas::Chord { header, body, errback } => {
            let header = flat(header.into_iter().filter_map(form).collect());
            let body = match form(*body) {
                Some(Form::Group(members)) => Form::Group(flat(members)),
                body => body.unwrap_or(Form::Chain { steps: vec![], errbacks: vec![] }),
            };
            let mut chord = Form::Chord { header, body: Box::new(body) };
            errback.into_iter().for_each(|errback| chord.add_errback_to_end(errback));
            chord
        }
    })
}

fn chained(steps: Vec<Canvas>) -> Vec<Form> {
    let mut spliced = Vec::new();
    let mut stack: Vec<Canvas> = steps.into_iter().rev().collect();
    while let Some(step) = stack.pop() {
        match step {
            // A group of one is its member.
            Canvas::Group { mut members, .. } if members.len() == 1 => stack.extend(members.pop()),
            Canvas::Chain { steps, errback } => {
                assert!(errback.is_none(), "errbacks are for the outermost canvas and for tasks");
                stack.extend(steps.into_iter().rev());
            }
            Canvas::Chord { header, body, errback } => match *body {
                Canvas::Chain { mut steps, .. } if !steps.is_empty() && !begins_with_group(&steps) => {
                    let rest = steps.split_off(1);
                    stack.extend(rest.into_iter().rev());
                    stack.extend(steps.pop().map(|first| Canvas::Chord {
                        header,
                        body: Box::new(first),
                        errback,
                    }));
                }
                body => spliced.extend(form(Canvas::Chord { header, body: Box::new(body), errback })),
            },
            chunks @ Canvas::Chunks { .. } => match form(chunks) {
                Some(Form::Group(mut members)) if members.len() == 1 => spliced.extend(members.pop()),
                step => spliced.extend(step),
            },
            step => spliced.extend(form(step)),
        }
    }
    // An empty group is passed over, unless it is all there is.
    let all_empty = spliced.iter().all(|step| matches!(step, Form::Group(members) if members.is_empty()));
    if all_empty {
        spliced.truncate(1);
        return spliced;
    }
    spliced.retain(|step| !matches!(step, Form::Group(members) if members.is_empty()));
    let mut ready: Vec<Form> = Vec::new();
    for step in spliced.into_iter().rev() {
        let step = match step {
            Form::Group(members) => match ready.pop() {
                Some(body) => Form::Chord { header: flat(members), body: Box::new(body) },
                None => Form::Group(flat(members)),
            },
            step => step,
        };
        ready.push(step);
    }
    ready.reverse();
    ready
}

fn is_nothing(canvas: &Canvas) -> bool {
    match canvas {
        Canvas::Chain { steps, .. } => steps.iter().all(|step| match step {
            Canvas::Group { members, .. } if members.len() == 1 => is_nothing(&members[0]),
            step => is_nothing(step),
        }),
        _ => false,
    }
}

/// A body that does stays in one piece.
fn begins_with_group(steps: &[Canvas]) -> bool {
    matches!(steps.first(), Some(Canvas::Group { .. } | Canvas::Chunks { .. }))
}

/// Nested groups dissolve, in reverse each.
fn flat(members: Vec<Form>) -> Vec<Form> {
    let mut flat_members = Vec::new();
    for member in members {
        match member {
            Form::Group(nested) => flat_members.extend(flat_reversed(nested)),
            member => flat_members.push(member),
        }
    }
    flat_members
}

fn flat_reversed(members: Vec<Form>) -> Vec<Form> {
    let reversed: Vec<Form> = members.into_iter().rev().collect();
    flat(reversed)
}

impl Form {
    fn add_errback(&mut self, errback: u32) {
        match self {
            Self::Task(task) => task.errbacks.push(errback),
            Self::Map(map) => map.errbacks.push(errback),
            Self::Chain { steps, errbacks } => {
                errbacks.push(errback);
                steps.iter_mut().for_each(|step| step.add_errback(errback));
            }
            Self::Group(members) => members.iter_mut().for_each(|member| member.add_errback(errback)),
            Self::Chord { header, body } => {
                for member in header {
                    if matches!(member, Self::Chord { .. }) {
                        member.add_errback(errback);
                    }
                }
                body.add_errback(errback);
            }
        }
    }

    /// The same for an option given with a call, which goes no further than to the end.
    fn add_errback_to_end(&mut self, errback: u32) {
        match self {
            Self::Group(members) => members.iter_mut().for_each(|member| member.add_errback_to_end(errback)),
            Self::Chord { body, .. } => body.add_errback_to_end(errback),
            other => other.add_errback(errback),
        }
    }

    /// Whether a chord waits for anything in it.
    fn ends(&self) -> usize {
        match self {
            Self::Task(_) | Self::Map(_) => 1,
            Self::Chain { steps, .. } => steps.last().map_or(0, Form::ends),
            Self::Group(members) => members.iter().map(Form::ends).sum(),
            Self::Chord { body, .. } => body.ends(),
        }
    }
}

/// A failure, and whether it was one of the members of the group at the end: a step that follows is then the body of
/// a chord with that group as its header, and speaks for it.
#[derive(Clone, Copy)]
struct Failed {
    in_last_group: bool,
}

const FAILED: Failed = Failed { in_last_group: false };

#[derive(Default)]
struct Model {
    seen: Seen,
}

impl Model {
    fn run(&mut self, form: &Form, given: &[Value]) -> Result<Value, Failed> {
        match form {
            Form::Task(task) => self.task(task, given),
            Form::Map(map) => self.map(map),
            Form::Chain { steps, .. } => {
                let mut given = given.to_vec();
                // Without steps, what came before goes through.
                let mut last = given.first().cloned().unwrap_or(Value::List(vec![]));
                for (place, step) in steps.iter().enumerate() {
                    match self.run(step, &given) {
                        Ok(value) => last = value,
                        Err(failed) => {
                            steps[place + 1..].iter().for_each(|step| self.never(step));
                            let Some(next) = steps.get(place + 1) else { return Err(failed) };
                            if failed.in_last_group {
                                self.header_failed(next);
                            }
                            return Err(FAILED);
                        }
                    }
                    given = vec![last.clone()];
                }
                Ok(last)
            }
            Form::Group(members) => self.each(members, given),
            Form::Chord { header, body } => {
                let waits = header.iter().map(Form::ends).sum::<usize>() > 0;
                let values = self.each(header, given);
                match values {
                    Ok(values) => self.run(body, &[if waits { values } else { Value::List(vec![]) }]),
                    Err(_) => {
                        self.never(body);
                        self.header_failed(body);
                        Err(FAILED)
                    }
                }
            }
        }
    }

    fn each(&mut self, members: &[Form], given: &[Value]) -> Result<Value, Failed> {
        let end = |member: &Form| match self.run(member, given) {
            // What has no end, as a chord whose body is an empty group, cannot be heard to fail.
            _ if member.ends() == 0 => Ok(Value::List(vec![])),
            end => end,
        };
        let ends: Vec<_> = members.iter().map(end).collect();
        let values = ends.into_iter().collect::<Result<Vec<_>, Failed>>();
        values.map(Value::List).map_err(|_| Failed { in_last_group: true })
    }

    fn task(&mut self, task: &Task, given: &[Value]) -> Result<Value, Failed> {
        let given = if task.immutable { &[] } else { given };
        let args = Value::List(
            given.iter().cloned().chain(task.args.iter().map(|&arg| Value::Number(arg))).collect(),
        );
        let name = format!("{}.{}", if task.fails { "fail" } else { "task" }, task.label);
        let id = format!("k{}", task.label);
        self.seen.calls.push(format!("{name}{}", args.text()));
        if task.fails {
            self.seen.ends.insert(id, End::Failure);
            self.errbacks(&task.errbacks);
            return Err(FAILED);
        }
        let value = Value::Number(returns(&name, &args.text()));
        self.seen.ends.insert(id, End::Success(value.text()));
        for callback in &task.callbacks {
            self.seen.calls.push(format!("callback.{callback}[{}]", value.text()));
        }
        Ok(value)
    }

    fn map(&mut self, map: &Map) -> Result<Value, Failed> {
        let name = format!("{}.{}", if map.fails { "fail" } else { "task" }, map.label);
        let text = Value::List(map.items.iter().map(|&item| item_value(map.star, item)).collect()).text();
        self.seen.calls.push(format!("{name}*{text}"));
        let each =
            |&item: &u32| Value::Number(returns(&name, &Value::List(vec![Value::Number(item)]).text()));
        let value = Value::List(map.items.iter().map(each).collect());
        if map.known {
            let end = if map.fails { End::Failure } else { End::Success(value.text()) };
            self.seen.ends.insert(format!("k{}", map.label), end);
        }
        if map.fails {
            self.errbacks(&map.errbacks);
            return Err(FAILED);
        }
        Ok(value)
    }

    /// Nothing in it will run.
    fn never(&mut self, form: &Form) {
        match form {
            Form::Task(task) => {
                self.seen.ends.insert(format!("k{}", task.label), End::Failure);
            }
            Form::Map(map) => {
                if map.known {
                    self.seen.ends.insert(format!("k{}", map.label), End::Failure);
                }
            }
            Form::Chain { steps, .. } => steps.iter().for_each(|step| self.never(step)),
            Form::Group(members) => members.iter().for_each(|member| self.never(member)),
            Form::Chord { header, body } => {
                header.iter().for_each(|member| self.never(member));
                self.never(body);
            }
        }
    }

    /// A body speaks for its header.
    fn header_failed(&mut self, body: &Form) {
        match body {
            Form::Task(task) => self.errbacks(&task.errbacks),
            Form::Map(map) => self.errbacks(&map.errbacks),
            // A body of nothing has no id to speak under.
            Form::Chain { steps, .. } if steps.is_empty() => {}
            Form::Chain { errbacks, .. } => self.errbacks(errbacks),
            Form::Group(members) => members.iter().for_each(|member| self.header_failed(member)),
            Form::Chord { body, .. } => self.header_failed(body),
        }
    }

    fn errbacks(&mut self, errbacks: &[u32]) {
        self.seen.calls.extend(errbacks.iter().map(|errback| format!("errback.{errback}[?]")));
    }
}

pub(super) fn item_value(star: bool, item: u32) -> Value {
    if star { Value::List(vec![Value::Number(item)]) } else { Value::Number(item) }
}
