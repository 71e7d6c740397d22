//! The log of a task as a page of JSON.

use axum::Json;
use axum::response::{IntoResponse, Response};
use celeriac::TaskId;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::frame;
use crate::config::ServerConfig;
use crate::problem::{Invalid, Problem};
use crate::server::Server;

/// A piece of a task's log.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogView {
    /// The records, in order.
    items: Vec<LogItem>,
    /// The first position that is kept.
    first: u64,
    /// The last position there is; 0 for an empty log.
    last: u64,
    /// The task has ended: nothing will follow `last`.
    ended: bool,
    /// Ask with this as `after` for what follows, now or later; null when nothing will.
    next: Option<u64>,
}

/// A record of a task's log.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogItem {
    /// Its position, from 1 without gaps.
    id: u64,
    /// `state`, `progress`, `token`, `log`, `step`, `end`, or the task's own name for it.
    event: String,
    /// The content.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    at: String,
}

/// How many records a page is to have.
pub(super) fn limit(text: Option<&str>, config: &ServerConfig, errors: &mut Vec<Invalid>) -> usize {
    let Some(text) = text else { return config.page_default };
    let max = config.page_max;
    match text.parse::<usize>() {
        Ok(limit) if (1..=max).contains(&limit) => limit,
        _ => {
            let problem = format!("is not a whole number from 1 to {max}");
            errors.push(Invalid { at: "limit".to_owned(), problem });
            0
        }
    }
}

pub(super) async fn page(
    server: &Server,
    task_id: &TaskId,
    after: Option<u64>,
    limit: usize,
) -> Result<Response, Problem> {
    let page = server.app().log(task_id, after, limit).await?;
    let position = page.entries.last().map(|entry| entry.position);
    let position = position.or(after).unwrap_or(page.first - 1);
    let over = page.ended && position >= page.last;
    let items = page.entries.into_iter().map(|entry| LogItem {
        id: entry.position,
        event: entry.event.into(),
        data: RawValue::from_string(frame::valid(&entry.data).into_owned()).unwrap_or_default(),
        at: entry.at.to_string(),
    });
    let view = LogView {
        items: items.collect(),
        first: page.first,
        last: page.last,
        ended: page.ended,
        next: (!over).then_some(position),
    };
    Ok(Json(view).into_response())
}
