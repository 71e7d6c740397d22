//! `celeriac status`: which workers are online, and how they stand.

use celeriac::clock::until;
use celeriac::protocol::JsonMap;
use serde_json::Value;

use super::inspect::{ask, nobody};
use crate::Session;
use crate::args::Status;
use crate::output::{Exit, Problem};

const HEADER: [&str; 9] =
    ["node", "status", "pid", "host", "running", "concurrency", "queues", "uptime_seconds", "version"];

pub(crate) async fn run(session: &Session, args: &Status) -> Result<Exit, Problem> {
    let now = session.app.clock().now();
    let replies = ask(session, "ping", JsonMap::new(), &args.workers).await?;
    let cards = session.app.workers().await?;
    let answered = |worker: &celeriac::id::WorkerName| replies.iter().any(|reply| reply.worker == *worker);
    let named = |node: &str, worker: &str| {
        let names = &args.workers.destination;
        names.is_empty() || names.iter().any(|name| name == node || name == worker)
    };
    let asked = cards.iter().filter(|card| named(&card.node, card.worker.as_str()));
    let rows: Vec<Vec<Value>> = asked
        .map(|card| {
            let status = match (answered(&card.worker), card.stopping) {
                (true, false) => "online",
                (true, true) => "stopping",
                (false, _) => "no answer",
            };
            let queues: Vec<&str> = card.queues.iter().map(|queue| queue.as_str()).collect();
            vec![
                (*card.node).into(),
                status.into(),
                card.pid.into(),
                (*card.hostname).into(),
                card.running.into(),
                card.concurrency.into(),
                queues.join(",").into(),
                until(card.started, now).as_secs().into(),
                (*card.version).into(),
            ]
        })
        .collect();
    session.output.table(&HEADER, &rows)?;
    if replies.is_empty() {
        return Err(nobody(session).await?);
    }
    let online = replies.len();
    session.output.note(format_args!("{online} {} online", if online == 1 { "node" } else { "nodes" }));
    Ok(Exit::Done)
}
