//! `celeriac revoke`: revokes tasks, and says what happened to each.

use celeriac::id::WorkerName;
use celeriac::{Revoked, TaskId};
use serde_json::json;

use crate::Session;
use crate::args::Revoke;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: &Revoke) -> Result<Exit, Problem> {
    let ids: Vec<TaskId> = args.ids.iter().map(|id| TaskId::from(id.as_str())).collect();
    let revoked = match args.signal {
        Some(signal) => session.app.terminate(&ids, signal).await?,
        None => session.app.revoke(&ids, args.terminate).await?,
    };
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
            Revoked::Elsewhere { worker: Some(worker), stopped: true, .. } => {
                ("terminating", format!("was taken by {worker}, which stops it"))
            }
            Revoked::Elsewhere { worker, workers: 0, .. } => {
                let worker = by(worker.as_ref());
                let text =
                    format!("was taken by {worker}, and no worker answers; it runs on where that lives");
                ("elsewhere", text)
            }
            Revoked::Elsewhere { worker, workers, .. } => {
                let (worker, told) = (by(worker.as_ref()), told(*workers));
                let then = match args.terminate {
                    true => "none of them runs it now",
                    false => "it is refused unless it has begun; --terminate stops it even then",
                };
                ("elsewhere", format!("was taken by {worker}; {told}: {then}"))
            }
            Revoked::Finished => ("finished", "has finished already".to_owned()),
            Revoked::Noted { workers: 0 } => {
                let text =
                    "is not known to the store; no worker answers, it is noted for ours, which refuse it";
                ("noted", text.to_owned())
            }
            Revoked::Noted { workers } => {
                let told = told(*workers);
                ("noted", format!("is not known to the store; {told}, and refuse it when they meet it"))
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

fn by(worker: Option<&WorkerName>) -> String {
    worker.map_or_else(|| "a worker of Celery's".to_owned(), ToString::to_string)
}

fn told(workers: usize) -> String {
    if workers == 1 { "1 worker was told".to_owned() } else { format!("{workers} workers were told") }
}
