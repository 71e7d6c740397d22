//! Which tasks an operation on many means.

use celeriac::catalog::TaskQuery;
use celeriac::state::Phase;
use celeriac::{State, TaskId};

use super::filter;
use crate::input::{Fields, NAME_MAX, Problems};
use crate::problem::Problem;
use crate::server::Server;

/// The tasks meant.
#[derive(Debug)]
pub(crate) enum Meant {
    /// These.
    Ids(Vec<TaskId>),
    /// Those that match.
    Matching(Box<TaskQuery>),
}

/// So many tasks are taken in one call of the library.
pub(crate) const CHUNK: usize = 500;

/// Where a task stands that is not finished.
pub(crate) const UNFINISHED: &[Phase] = &[Phase::Delayed, Phase::Queued, Phase::Reserved];

impl Meant {
    /// Reads one of `ids`, `filter` and `all`.
    pub(crate) fn read(fields: &mut Fields, server: &Server, problems: &mut Problems) -> Self {
        let given: Vec<&str> =
            ["ids", "filter", "all"].into_iter().filter(|name| fields.peek(name).is_some()).collect();
        if given.len() != 1 && problems.none_so_far() {
            let given = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
            problems.add("", format!("one of ids, filter and all is needed, and {given} was given"));
        }
        let everything = fields.any("all");
        if everything.is_some_and(|value| value.as_str() != "true") {
            problems.add("/all", "it can only be true; leave it out otherwise");
        }
        let filter = fields.fields("filter", problems).map(|fields| filter::of_fields(fields, problems));
        match read_ids(fields, server, problems) {
            Some(ids) => Self::Ids(ids),
            None => Self::Matching(Box::new(filter.unwrap_or_default())),
        }
    }

    /// Finds them, at most as many as one operation may take, and says whether there are more. For a query that names
    /// neither phases nor states, these are `phases` and `states`.
    pub(crate) async fn find(
        self,
        server: &Server,
        phases: &[Phase],
        states: &[State],
    ) -> Result<(Vec<TaskId>, bool), Problem> {
        let mut query = match self {
            Self::Ids(ids) => return Ok((ids, false)),
            Self::Matching(query) => query,
        };
        if query.phases.is_empty() {
            query.phases = phases.to_vec();
        }
        if query.states.is_empty() {
            query.states = states.to_vec();
        }
        let max = server.config().bulk_max;
        let mut ids = Vec::new();
        for _ in 0..STORE_PAGES_MAX {
            query.limit = (max - ids.len()).min(CHUNK);
            let page = server.app().store().catalog.tasks(&query).await?;
            ids.extend(page.tasks.into_iter().map(|listed| listed.task_id));
            query.before = page.next;
            if page.next.is_none() || ids.len() >= max {
                break;
            }
        }
        Ok((ids, query.before.is_some()))
    }
}

/// Reads `ids`.
pub(crate) fn read_ids(fields: &mut Fields, server: &Server, problems: &mut Problems) -> Option<Vec<TaskId>> {
    if fields.is_null("ids") {
        problems.add(fields.place("ids"), "null where a list belongs");
    }
    let ids = fields.texts("ids", server.config().bulk_max, NAME_MAX, problems)?;
    Some(ids.into_iter().map(TaskId::from).collect())
}

/// The schema of what can only be true.
pub(crate) fn only_true() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::Boolean)).enum_values(Some([true])).build()
}

/// So many pages of the store one operation looks through; what is beyond is told as `more`.
const STORE_PAGES_MAX: usize = 100;
