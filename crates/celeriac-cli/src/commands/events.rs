//! `celeriac events`: prints task logs, and follows them.

use std::time::Duration;

use celeriac::backend::{LogEntry, Watch};
use celeriac::{Error, Json, TaskId};
use serde_json::{Value, json};

use crate::Session;
use crate::args::Events;
use crate::output::{Exit, Problem};

const PAGE: usize = 500;
const WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn run(session: &Session, args: &Events) -> Result<Exit, Problem> {
    match &args.id {
        Some(id) => {
            let id = TaskId::from(id.as_str());
            let after = args.after.unwrap_or(0);
            if args.follow {
                follow_task(session, &id, after).await
            } else {
                print_task(session, &id, after).await
            }
        }
        None => feed(session, args).await,
    }
}

async fn print_task(session: &Session, id: &TaskId, mut after: u64) -> Result<Exit, Problem> {
    loop {
        let page = session.app.store().backend.log(id, after, PAGE).await?;
        let page = page.ok_or_else(|| Error::UnknownTask(id.clone()))?;
        let Some(last) = page.entries.last() else { return Ok(Exit::Done) };
        after = last.position;
        for entry in &page.entries {
            print(session, id, None, entry)?;
        }
    }
}

/// Prints the log of a task from a position on, until the task ends.
pub(crate) async fn follow_task(session: &Session, id: &TaskId, mut after: u64) -> Result<Exit, Problem> {
    let backend = &session.app.store().backend;
    loop {
        let page = backend.log(id, after, PAGE).await?.ok_or_else(|| Error::UnknownTask(id.clone()))?;
        for entry in &page.entries {
            after = entry.position;
            print(session, id, None, entry)?;
        }
        if page.entries.is_empty() {
            if page.ended {
                return Ok(Exit::Done);
            }
            backend.wait(&Watch::Log { task_id: id.clone(), after }, WAIT).await?;
        }
    }
}

/// Prints the records of all tasks.
async fn feed(session: &Session, args: &Events) -> Result<Exit, Problem> {
    let backend = &session.app.store().backend;
    let mut after = match args.after {
        Some(after) => after,
        None if args.follow => backend.feed_end().await?,
        None => 0,
    };
    loop {
        let records = backend.feed(after, PAGE).await?;
        for record in &records {
            after = record.number;
            print(session, &record.task_id, Some((record.number, &record.task)), &record.entry)?;
        }
        if records.is_empty() {
            if !args.follow {
                return Ok(Exit::Done);
            }
            backend.wait(&Watch::Feed { after }, WAIT).await?;
        }
    }
}

fn print(
    session: &Session,
    id: &TaskId,
    of_feed: Option<(u64, &str)>,
    entry: &LogEntry,
) -> Result<(), Problem> {
    let data: Value = entry.data.to().unwrap_or_else(|_| Value::String(entry.data.to_string()));
    let mut document = json!({
        "id": id,
        "position": entry.position,
        "event": entry.event,
        "data": data,
        "at": entry.at.to_string(),
    });
    let text = match of_feed {
        Some((number, task)) => {
            document["number"] = number.into();
            document["task"] = task.into();
            format!("{number} {task} {id} {} {} {}", entry.position, entry.event, short(&entry.data))
        }
        None => format!("{} {} {}", entry.position, entry.event, short(&entry.data)),
    };
    Ok(session.output.data(text, &document)?)
}

fn short(data: &Json) -> String {
    const LENGTH: usize = 2_000;
    let text = data.as_str();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
