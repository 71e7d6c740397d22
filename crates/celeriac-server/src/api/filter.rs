//! Which tasks are meant: the same words in a query and in a body.

use celeriac::catalog::TaskQuery;
use celeriac::state::Phase;
use celeriac::{QueueName, State};
use utoipa::ToSchema;

use crate::input::{Fields, NAME_MAX, Params, Problems};
use crate::view::PhaseName;

/// The parameters of a list that say which tasks are meant.
pub(crate) const NAMES: [&str; 9] =
    ["state", "phase", "task", "queue", "worker", "tag", "q", "since", "until"];

/// Which tasks are meant: all of these hold.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what is read field by field")]
pub(crate) struct Filter {
    /// Their state is one of these.
    #[schema(nullable = false)]
    state: Option<Vec<String>>,
    /// Their message stands in one of these phases.
    #[schema(nullable = false)]
    phase: Option<Vec<PhaseName>>,
    /// Their name.
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    task: Option<String>,
    /// The queue they wait on or came from.
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    queue: Option<String>,
    /// The worker that holds or ended them: a node name, or one incarnation of it.
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    worker: Option<String>,
    /// One of their tags.
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    tag: Option<String>,
    /// Text that their id begins with, or that their name contains.
    #[schema(nullable = false, min_length = 1, max_length = 255)]
    q: Option<String>,
    /// They were accepted at this time or later.
    #[schema(nullable = false, format = DateTime)]
    since: Option<String>,
    /// They were accepted before this time.
    #[schema(nullable = false, format = DateTime)]
    until: Option<String>,
}

/// Reads a filter from the parameters of a query.
pub(crate) fn of_params(params: &mut Params, problems: &mut Problems) -> TaskQuery {
    TaskQuery {
        states: states(params.list("state", problems)),
        phases: phases(params.list("phase", problems), "phase", problems),
        task: params.text("task", NAME_MAX, problems).map(Into::into),
        queue: params.text("queue", NAME_MAX, problems).map(QueueName::from),
        worker: params.text("worker", NAME_MAX, problems).map(Into::into),
        tag: params.text("tag", NAME_MAX, problems).map(Into::into),
        text: params.text("q", NAME_MAX, problems).map(Into::into),
        since: params.time("since", problems),
        until: params.time("until", problems),
        before: None,
        limit: 1,
    }
}

/// Reads a filter from an object in a body. One that restricts nothing is a problem: `all` says that in words.
pub(crate) fn of_fields(mut fields: Fields, problems: &mut Problems) -> TaskQuery {
    if fields.is_empty() {
        problems.add(
            fields.at(),
            "empty, which would mean every task; if you mean that, send \"all\": true instead",
        );
    }
    for name in NAMES {
        if fields.is_null(name) {
            problems.add(fields.place(name), "null; leave the field out");
        }
    }
    let place = fields.place("phase");
    let state = fields.texts("state", 50, NAME_MAX, problems);
    let phase = fields.texts("phase", 50, NAME_MAX, problems);
    for (name, list) in [("state", &state), ("phase", &phase)] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            problems.add(fields.place(name), "an empty list; leave the field out");
        }
    }
    let query = TaskQuery {
        states: states(state.unwrap_or_default()),
        phases: phases(phase.unwrap_or_default(), &place, problems),
        task: fields.text("task", NAME_MAX, problems).map(Into::into),
        queue: fields.text("queue", NAME_MAX, problems).map(QueueName::from),
        worker: fields.text("worker", NAME_MAX, problems).map(Into::into),
        tag: fields.text("tag", NAME_MAX, problems).map(Into::into),
        text: fields.text("q", NAME_MAX, problems).map(Into::into),
        since: fields.time("since", problems),
        until: fields.time("until", problems),
        before: None,
        limit: 1,
    };
    fields.finish(&NAMES, problems);
    query
}

fn states(names: Vec<String>) -> Vec<State> {
    names.into_iter().map(State::from).collect()
}

fn phases(names: Vec<String>, at: &str, problems: &mut Problems) -> Vec<Phase> {
    let mut phases = Vec::with_capacity(names.len());
    for name in names {
        match PhaseName::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, phase)) => phases.push(*phase),
            None => {
                let known: Vec<&str> = PhaseName::ALL.iter().map(|(known, _)| *known).collect();
                problems.add(at, format!("{} is none of {}", crate::input::shown(&name), known.join(", ")));
            }
        }
    }
    phases
}
