//! The records of all tasks, or of some, as one stream.

use std::collections::HashSet;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use celeriac::backend::Watch;
use celeriac::{Celeriac, TaskId};
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};
use utoipa::IntoParams;

use super::body::{self, Source};
use super::page::{self, FeedView};
use super::request::{self, Form};
use super::{frame, named_heartbeat, slot, stream, unreadable};
use crate::problem::{Invalid, Problem};
use crate::server::Server;

/// So many tasks can be named.
const IDS_MAX: usize = 100;

/// Records read at once, at most; fewer where they are large.
const PAGE: usize = 256;

/// A watcher holds frames of so many bytes that it has not been sent, or one that is larger by itself. What else was read
/// is read again when its turn comes.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// A watcher of the feed reads it at most this often: what comes closer together is one batch.
const REST: Duration = Duration::from_millis(20);

/// A wait is cut into pieces, so that a wake lost with a connection costs seconds and not for ever.
const WAIT: Duration = Duration::from_secs(15);

const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// What may stand in the query of the feed.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FeedQuery {
    /// The number after which records are sent: the id of the last one seen. The header `Last-Event-ID` goes before it.
    /// Default: of a stream only what comes from now on, of pages from the first record that is kept.
    #[param(value_type = Option<u64>, minimum = 0)]
    after: Option<String>,
    /// The same as `after`.
    #[param(value_type = Option<u64>, minimum = 0)]
    last_event_id: Option<String>,
    /// The same as `after`.
    #[param(value_type = Option<u64>, minimum = 0)]
    starting_after: Option<String>,
    /// Only records of these tasks: at most 100 ids, with commas between.
    ids: Option<String>,
    /// `comment`, which only connections notice, or `event`: heartbeats that a page can see. Default `comment`.
    heartbeat: Option<String>,
    /// How many records a page has at most, when JSON is asked for.
    #[param(value_type = Option<u64>, minimum = 1)]
    limit: Option<String>,
}

/// Follows all tasks, or some.
#[utoipa::path(
    get,
    path = "/events",
    tag = "tasks",
    operation_id = "events",
    description = "The records of all logs in the order of their writing, as a stream of server-sent events that does \
        not end. `data` is `{task_id, task, position, data}`; `id` is a number of the feed, which grows with gaps. With `Accept: application/json` one page of what is kept.",
    params(
        FeedQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event seen."),
    ),
    responses(
        (status = 200, description = "The records.", content(
            (String = "text/event-stream"),
            (FeedView = "application/json"),
        )),
        (status = 406, description = "Neither form is accepted.", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not valid.", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Too many streams, a shutdown, or the store is away.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub async fn feed(
    State(server): State<Server>,
    query: Result<Query<FeedQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let form = request::form(&headers)?;
    let Query(query) = query.map_err(|error| unreadable(&error))?;
    let mut errors = Vec::new();
    let parameters = [
        ("after", query.after.as_deref()),
        ("last_event_id", query.last_event_id.as_deref()),
        ("starting_after", query.starting_after.as_deref()),
    ];
    let after = request::position(&headers, &parameters, &mut errors);
    let named_heartbeat = named_heartbeat(query.heartbeat.as_deref(), &mut errors);
    let ids: Option<HashSet<TaskId>> = query
        .ids
        .as_deref()
        .map(|ids| ids.split(',').filter(|id| !id.is_empty()).map(TaskId::from).collect());
    if ids.as_ref().is_some_and(|ids| ids.is_empty() || ids.len() > IDS_MAX) {
        let problem = format!("names from 1 to {IDS_MAX} tasks; open more streams for more");
        errors.push(Invalid { at: "ids".to_owned(), problem });
    }
    let limit = page::limit(query.limit.as_deref(), server.config(), &mut errors);
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    if form == Form::Page {
        let after = after.unwrap_or(0);
        let records = server.app().store().backend.feed(after, limit).await?;
        return Ok(page::feed(records, after, ids.as_ref()));
    }
    let slot = slot(&server)?;
    let app = server.app().clone();
    let after = match after {
        Some(after) => after,
        None => app.store().backend.feed_end().await?,
    };
    let source = Feed { app, ids, after, page: PAGE, rested: Instant::now() };
    Ok(stream(body::body(source, named_heartbeat, slot)))
}

struct Feed {
    app: Celeriac,
    ids: Option<HashSet<TaskId>>,
    /// The number of the last record taken.
    after: u64,
    /// How many records are read next.
    page: usize,
    /// When it may be read again.
    rested: Instant,
}

impl Source for Feed {
    type Batch = std::vec::IntoIter<Bytes>;

    async fn next(&mut self) -> celeriac::Result<Option<Self::Batch>> {
        loop {
            sleep_until(self.rested).await;
            match self.read().await {
                Ok(frames) if !frames.is_empty() => return Ok(Some(frames.into_iter())),
                Ok(_) => {}
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the feed cannot be read, trying again");
                    sleep(AWAY_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn position(&self) -> u64 {
        self.after
    }
}

impl Feed {
    /// What is there, or after a wait nothing.
    async fn read(&mut self) -> celeriac::store::Result<Vec<Bytes>> {
        let backend = &self.app.store().backend;
        let records = backend.feed(self.after, self.page).await?;
        if records.is_empty() {
            backend.wait(&Watch::Feed { after: self.after }, WAIT).await?;
            return Ok(Vec::new());
        }
        let (read, mut taken, mut bytes) = (records.len(), 0, 0);
        let mut frames = Vec::new();
        for record in records {
            if self.ids.as_ref().is_none_or(|ids| ids.contains(&record.task_id)) {
                let frame = frame::of_feed(&record);
                bytes += frame.len();
                if bytes > HELD_BYTES_MAX && !frames.is_empty() {
                    break;
                }
                frames.push(frame);
            }
            taken += 1;
            self.after = record.number;
        }
        if taken < read {
            self.page = 2 * taken;
        } else if read == self.page {
            // A full page is followed by the next at once.
            self.page = (2 * self.page).min(PAGE);
        } else {
            self.rested = Instant::now() + REST;
        }
        Ok(frames)
    }
}
