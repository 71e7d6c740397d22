//! `celeriac revoke`: revokes tasks, and says what happened to each.

use celeriac::{Revoked, TaskId};
use serde_json::json;

use crate::Session;
use crate::args::Revoke;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: &Revoke) -> Result<Exit, Problem> {
    if let Some(signal) = &args.signal {
        return Err(Problem::usage(format!(
            "--signal {signal}: Rust tasks have no process of their own to signal"
        ))
        .hint("--terminate tells the run to stop, and drops it after worker_revoke_grace"));
    }
    let ids: Vec<TaskId> = args.ids.iter().map(|id| TaskId::from(id.as_str())).collect();
    let revoked = session.app.revoke(&ids, args.terminate).await?;
    let mut exit = Exit::Done;
    for (id, revoked) in ids.iter().zip(revoked) {
        let (word, text) = match &revoked {
            Revoked::Scheduled => ("scheduled", "revoked while it waited for its time".to_owned()),
            Revoked::Queued => ("queued", "revoked while it waited for a worker".to_owned()),
            Revoked::Running { worker, terminate: true } => {
                ("terminating", format!("runs on {worker}, which is told to stop it"))
            }
            Revoked::Running { worker, terminate: false } => {
                ("running", format!("runs on {worker} and goes on; --terminate stops it"))
            }
            Revoked::Finished => ("finished", "has finished already".to_owned()),
            Revoked::Noted { workers } => {
                let workers =
                    if *workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
                (
                    "noted",
                    format!("is not known to the store; {workers} told, and it is refused when it is met"),
                )
            }
            Revoked::Unknown => {
                exit = Exit::NotFound;
                ("unknown", "is not known to the store".to_owned())
            }
        };
        session.output.data(format_args!("{id} {text}"), &json!({ "id": id, "was": word, "text": text }))?;
    }
    Ok(exit)
}
