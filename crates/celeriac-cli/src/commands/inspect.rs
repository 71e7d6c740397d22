//! `celeriac inspect`: asks workers how they stand.

use std::time::Duration;

use celeriac::Json;
use celeriac::control::Reply;
use celeriac::protocol::JsonMap;
use serde_json::{Value, json};

use crate::Session;
use crate::args::{Inspect, Workers};
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: Inspect) -> Result<Exit, Problem> {
    let mut arguments = JsonMap::new();
    if args.command == "query_task" {
        if args.ids.is_empty() {
            return Err(Problem::usage("query_task: which tasks?").hint("celeriac inspect query_task ID…"));
        }
        arguments.insert("ids", value(&args.ids)?);
    } else if let Some(id) = args.ids.first() {
        return Err(Problem::usage(format!("{}: takes no argument, and {id:?} is one", args.command)));
    }
    let replies = ask(session, &args.command, arguments, &args.workers).await?;
    tell(session, &replies).await
}

/// Asks the workers that are meant.
pub(super) async fn ask(
    session: &Session,
    command: &str,
    arguments: JsonMap,
    workers: &Workers,
) -> Result<Vec<Reply>, Problem> {
    let names = workers.destination.iter().map(|name| Box::from(name.as_str())).collect::<Vec<_>>();
    let destination = Some(names).filter(|names| !names.is_empty());
    let wait = Duration::from_secs_f64(workers.timeout);
    Ok(session.app.control(command, arguments, destination, wait).await?)
}

/// Prints what the workers answered: a failure when nobody did, or one of them refused.
pub(super) async fn tell(session: &Session, replies: &[Reply]) -> Result<Exit, Problem> {
    if replies.is_empty() {
        return Err(nobody(session).await?);
    }
    let mut exit = Exit::Done;
    for reply in replies {
        let worker = reply.worker.as_str();
        let node = worker.split_once('/').map_or(worker, |(node, _)| node);
        let content: Value = reply.content.to().unwrap_or_else(|_| reply.content.as_str().into());
        let (word, text) = match (content.get("ok"), content.get("error")) {
            (Some(done), _) => ("OK", text(done)),
            (None, Some(why)) => {
                exit = Exit::Failed;
                ("ERROR", text(why))
            }
            (None, None) => ("OK", text(&content)),
        };
        let document = json!({ "node": node, "worker": worker, "reply": content });
        session.output.data(format_args!("{node}: {word}\n{}", indented(&text)), &document)?;
    }
    Ok(exit)
}

/// Why nobody answered, as far as the store knows.
pub(super) async fn nobody(session: &Session) -> Result<Problem, Problem> {
    let cards = session.app.workers().await?;
    let nodes: Vec<&str> = cards.iter().map(|card| &*card.node).collect();
    let problem = Problem::new(Exit::Failed, "no worker answered");
    Ok(if nodes.is_empty() {
        problem.hint("none is online; `celeriac worker` starts one")
    } else {
        problem.hint(format!("online are {}; -t gives them more time", nodes.join(", ")))
    })
}

/// A value as JSON that travels.
pub(super) fn value(value: &impl serde::Serialize) -> Result<Json, Problem> {
    Json::from_value(value).map_err(Problem::usage)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "- empty -".to_owned(),
        other => serde_json::to_string_pretty(other).unwrap_or_else(|_| other.to_string()),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
