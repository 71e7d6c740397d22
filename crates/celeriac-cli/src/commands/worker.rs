//! `celeriac worker`: runs tasks until told to stop.

use std::path::PathBuf;
use std::time::Duration;

use crate::args::Worker;
use crate::output::{Exit, Problem};
use crate::{Session, signals};

pub(crate) async fn run(session: Session, args: Worker) -> Result<Exit, Problem> {
    if let Some((option, why)) = args.refused.given() {
        return Err(Problem::usage(format!("{option} is not supported: {why}")));
    }
    let mut config = session.app.config().clone();
    config.task_time_limit = args.time_limit.map(Duration::from_secs_f64).or(config.task_time_limit);
    config.task_soft_time_limit =
        args.soft_time_limit.map(Duration::from_secs_f64).or(config.task_soft_time_limit);
    let app = session.app.with_config(config);
    let mut worker = app.worker();
    if !args.queues.is_empty() {
        worker = worker.queues(args.queues.iter().map(String::as_str));
    }
    if let Some(concurrency) = args.concurrency {
        worker = worker.concurrency(concurrency as usize);
    }
    if let Some(name) = &args.hostname {
        worker = worker.name(name.replace("%h", &celeriac::worker::hostname()));
    }
    let shutdown = signals::listen()?;
    let _pidfile = args.pidfile.map(Pidfile::write).transpose()?;
    let names: Vec<_> = app.registry().names().collect();
    session.output.note(format_args!(
        "{} on {}\n[queues] {}\n[tasks]  {}",
        worker.node_name(),
        app.url(),
        worker.queue_names().join(", "),
        names.join(", "),
    ));
    let report = worker.cold_shutdown(shutdown.cold).run(shutdown.warm.cancelled_owned()).await?;
    session.output.note(format_args!(
        "done: {} succeeded, {} failed, {} retried, {} revoked, {} handed back",
        report.succeeded, report.failed, report.retried, report.revoked, report.handed_back,
    ));
    Ok(Exit::Done)
}

/// A file with the process id, for as long as the process lives.
struct Pidfile(PathBuf);

impl Pidfile {
    fn write(path: PathBuf) -> Result<Self, Problem> {
        let written = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        let mut file = written.map_err(|error| {
            Problem::usage(format!("cannot write pidfile {}: {error}", path.display()))
                .hint("is a worker running already? if not, remove the file")
        })?;
        std::io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Nothing is left to be done when it is gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}
