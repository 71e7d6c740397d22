//! `celeriac queues`: lists the queues.

use serde_json::Value;

use crate::Session;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session) -> Result<Exit, Problem> {
    let now = session.app.clock().now();
    let queues = session.app.store().broker.queues().await?;
    let rows: Vec<Vec<Value>> = queues
        .iter()
        .map(|queue| {
            let waits = queue.oldest.map(|oldest| celeriac::clock::until(oldest, now).as_secs());
            vec![
                queue.queue.as_str().into(),
                queue.ready.into(),
                queue.delayed.into(),
                queue.reserved.into(),
                waits.into(),
                queue.paused.into(),
            ]
        })
        .collect();
    if rows.is_empty() {
        session.output.note("no queue holds a message or is paused");
    }
    session.output.table(&["queue", "ready", "delayed", "reserved", "oldest_seconds", "paused"], &rows)?;
    Ok(Exit::Done)
}
