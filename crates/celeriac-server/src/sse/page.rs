//! Logs as pages of JSON: that of a task, and the feed of all.

use std::collections::HashSet;

use axum::Json;
use axum::response::{IntoResponse, Response};
use celeriac::TaskId;
use celeriac::backend::FeedRecord;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::ServerConfig;
use crate::json::Raw;
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
    data: Raw,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    at: String,
}

/// A piece of the feed. With `ids` it may hold fewer records than there are to come, or none.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedView {
    /// The records, in the order of their writing.
    items: Vec<FeedItem>,
    /// Ask with this as `after` for what follows, now or later.
    next: u64,
}

/// A record of the feed.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedItem {
    /// Its number in the feed, which grows with gaps.
    id: u64,
    /// The task.
    task_id: String,
    /// The task's name.
    task: String,
    /// The record's position in the task's log.
    position: u64,
    /// As in the task's log.
    event: String,
    /// The content.
    #[schema(value_type = serde_json::Value)]
    data: Raw,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    at: String,
}

/// The page of `records` after number `after`, of tasks named in `ids` alone if there are some.
pub(super) fn feed(records: Vec<FeedRecord>, after: u64, ids: Option<&HashSet<TaskId>>) -> Response {
    let next = records.last().map_or(after, |record| record.number);
    let wanted = records.into_iter().filter(|record| ids.is_none_or(|ids| ids.contains(&record.task_id)));
    let items = wanted.map(|record| FeedItem {
        id: record.number,
        task_id: record.task_id.to_string(),
        task: record.task.to_string(),
        position: record.entry.position,
        event: record.entry.event.to_string(),
        data: Raw::new(&record.entry.data),
        at: record.entry.at.to_string(),
    });
    Json(FeedView { items: items.collect(), next }).into_response()
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
        data: Raw::new(&entry.data),
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
