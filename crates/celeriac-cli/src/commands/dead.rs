//! `celeriac dead`: lists dead letters, sends them back, forgets them.

use celeriac::TaskId;
use serde_json::{Value, json};

use crate::Session;
use crate::args::Dead;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: &Dead) -> Result<Exit, Problem> {
    let broker = &session.app.store().broker;
    let (ids, done, word) = match args {
        Dead::List { limit, after } => {
            let letters = broker.dead(*after, (*limit).min(10_000)).await?;
            let rows: Vec<Vec<Value>> = letters
                .iter()
                .map(|letter| {
                    vec![
                        letter.number.into(),
                        letter.task_id.as_str().into(),
                        (&*letter.task).into(),
                        letter.queue.as_str().into(),
                        letter.deliveries.into(),
                        letter.died.to_string().into(),
                        letter.reason.as_str().into(),
                    ]
                })
                .collect();
            let header = ["number", "id", "task", "queue", "deliveries", "died", "reason"];
            session.output.table(&header, &rows)?;
            return Ok(Exit::Done);
        }
        Dead::Retry { ids } => {
            let ids = task_ids(ids);
            let done = broker.revive(&ids).await?;
            (ids, done, "queued again")
        }
        Dead::Drop { ids } => {
            let ids = task_ids(ids);
            let done = broker.drop_dead(&ids).await?;
            (ids, done, "forgotten")
        }
    };
    let mut exit = Exit::Done;
    for id in ids {
        let was_dead = done.contains(&id);
        let text = if was_dead { word } else { "is no dead letter" };
        if !was_dead {
            exit = Exit::NotFound;
        }
        session.output.data(format_args!("{id} {text}"), &json!({ "id": id, "dead": was_dead }))?;
    }
    Ok(exit)
}

fn task_ids(ids: &[String]) -> Vec<TaskId> {
    ids.iter().map(|id| TaskId::from(id.as_str())).collect()
}
