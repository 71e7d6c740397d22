//! Queues: how they stand, pausing and purging them.

use axum::Json;
use axum::extract::State;
use celeriac::QueueName;
use celeriac::broker::QueueStatus;
use serde::Serialize;
use utoipa::ToSchema;

use crate::input::Name;
use crate::problem::Problem;
use crate::server::Server;

/// The queues.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueList {
    /// Those that hold a message, are paused, or are consumed from, by name.
    items: Vec<QueueView>,
}

/// How a queue stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueView {
    /// Its name.
    name: String,
    /// Messages that wait for a worker.
    ready: u64,
    /// Messages that wait for their time.
    delayed: u64,
    /// Messages that workers hold.
    reserved: u64,
    /// When the oldest message that waits for a worker was published.
    #[schema(format = DateTime)]
    oldest: Option<String>,
    /// No worker takes anything from it.
    paused: bool,
    /// The live workers that consume from it, by node name.
    workers: Vec<String>,
}

/// What became of a queue that was purged.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Purged {
    /// Its name.
    name: String,
    /// So many tasks that waited ended in REVOKED.
    purged: usize,
}

/// List the queues
#[utoipa::path(
    get, path = "/queues", tag = "queues", operation_id = "list_queues",
    responses((status = 200, description = "The queues, by name", body = QueueList)),
)]
pub(crate) async fn list(State(server): State<Server>) -> Result<Json<QueueList>, Problem> {
    let items = all(&server).await?;
    Ok(Json(QueueList { items }))
}

/// Pause a queue
///
/// No worker takes anything from it until it is resumed. What runs goes on.
#[utoipa::path(
    post, path = "/queues/{name}/pause", tag = "queues", operation_id = "pause_queue",
    params(("name" = String, Path, description = "The queue", min_length = 1, max_length = 255)),
    responses((status = 200, description = "How it stands", body = QueueView), (status = 422)),
)]
pub(crate) async fn pause(
    State(server): State<Server>,
    Name(name): Name,
) -> Result<Json<QueueView>, Problem> {
    set_paused(&server, &name, true).await
}

/// Resume a queue
#[utoipa::path(
    post, path = "/queues/{name}/resume", tag = "queues", operation_id = "resume_queue",
    params(("name" = String, Path, description = "The queue", min_length = 1, max_length = 255)),
    responses((status = 200, description = "How it stands", body = QueueView), (status = 422)),
)]
pub(crate) async fn resume(
    State(server): State<Server>,
    Name(name): Name,
) -> Result<Json<QueueView>, Problem> {
    set_paused(&server, &name, false).await
}

/// Purge a queue
///
/// Every task that waits on it ends in REVOKED. What runs goes on.
#[utoipa::path(
    post, path = "/queues/{name}/purge", tag = "queues", operation_id = "purge_queue",
    params(("name" = String, Path, description = "The queue", min_length = 1, max_length = 255)),
    responses((status = 200, description = "How many there were", body = Purged), (status = 422)),
)]
pub(crate) async fn purge(State(server): State<Server>, Name(name): Name) -> Result<Json<Purged>, Problem> {
    let queue = queue(&name)?;
    let purged = server.app().purge(&queue).await?;
    server.floor_cache().forget().await;
    Ok(Json(Purged { name, purged }))
}

async fn set_paused(server: &Server, name: &str, paused: bool) -> Result<Json<QueueView>, Problem> {
    let queue = queue(name)?;
    server.app().store().broker.pause(&queue, paused).await?;
    server.floor_cache().forget().await;
    let stands = all(server).await?.into_iter().find(|view| view.name == name);
    Ok(Json(stands.unwrap_or_else(|| view(&empty(queue, paused)))))
}

async fn all(server: &Server) -> Result<Vec<QueueView>, Problem> {
    let store = server.app().store();
    let (queues, workers) = futures_util::try_join!(store.broker.queues(), store.control.workers())?;
    let mut views: std::collections::BTreeMap<String, QueueView> =
        queues.into_iter().map(|status| (status.queue.to_string(), view(&status))).collect();
    for card in workers {
        for queue in card.queues {
            let view = views.entry(queue.to_string()).or_insert_with(|| view(&empty(queue.clone(), false)));
            view.workers.push(card.node.to_string());
        }
    }
    Ok(views.into_values().collect())
}

fn empty(queue: QueueName, paused: bool) -> QueueStatus {
    QueueStatus { queue, ready: 0, delayed: 0, reserved: 0, oldest: None, paused }
}

fn view(status: &QueueStatus) -> QueueView {
    QueueView {
        name: status.queue.to_string(),
        ready: status.ready,
        delayed: status.delayed,
        reserved: status.reserved,
        oldest: status.oldest.map(|at| at.to_string()),
        paused: status.paused,
        workers: Vec::new(),
    }
}

/// A queue need not exist to be named, so what is no name is refused here.
fn queue(name: &str) -> Result<QueueName, Problem> {
    let problem = match name.chars().count() {
        0 => "empty".to_owned(),
        count if count > crate::input::NAME_MAX => {
            format!("{count} characters; at most {} are taken", crate::input::NAME_MAX)
        }
        _ => return Ok(QueueName::from(name)),
    };
    Err(Problem::invalid(vec![crate::problem::Invalid { at: "name".to_owned(), problem }]))
}
