//! `celeriac worker`: runs tasks until told to stop.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use celeriac::Celeriac;
use celeriac_python::{PoolOptions, Zygote};

use crate::args::{Worker, WorkerOptions};
use crate::output::{Exit, Problem};
use crate::python::{self, Python};
use crate::settings::Settings;
use crate::{Session, signals};

pub(crate) async fn run(
    session: Session,
    python: Option<Python>,
    settings: &Settings,
    args: Worker,
) -> Result<Exit, Problem> {
    if let Some((option, why)) = args.refused.given() {
        return Err(Problem::usage(format!("{option} is not supported: {why}")));
    }
    for (option, instead) in args.met.given() {
        tracing::info!(option, instead, "this option has nothing to do");
    }
    check(&args.options, python.is_some(), &session.app)?;
    if python.is_none() && args.beat {
        return Err(Problem::usage("--beat is not supported: it is about Python applications")
            .hint("name a Python application by -A"));
    }
    let WorkerOptions {
        queues,
        concurrency,
        hostname,
        time_limit,
        soft_time_limit,
        task_events,
        without_mingle,
        without_gossip,
        max_tasks_per_child,
        max_memory_per_child,
        memory_limit_per_child,
        autoscale,
        ..
    } = args.options;
    if let Some(python) = &python {
        python.check_beat(&settings.broker)?;
    }
    let mut config = session.app.config().clone();
    config.task_time_limit = time_limit.map(Duration::from_secs_f64).or(config.task_time_limit);
    config.task_soft_time_limit =
        soft_time_limit.map(Duration::from_secs_f64).or(config.task_soft_time_limit);
    let app = session.app.with_config(config);
    let mut worker = app.worker().task_events(task_events).mingle(!without_mingle).gossip(!without_gossip);
    if let Some(python) = &python {
        // With -Q and -X applied there.
        worker = worker.queues(python.manifest.queues.iter().map(String::as_str));
        worker = worker.name(python.hostname.as_str());
    } else if !queues.is_empty() {
        worker = worker.queues(queues.iter().map(String::as_str));
    }
    if let (Some(name), None) = (&hostname, &python) {
        worker = worker.name(python::node_name(name));
    }
    let concurrency = match autoscale {
        Some(scale) => scale.most,
        None => concurrency.map_or(app.config().worker_concurrency, |concurrency| concurrency as usize),
    };
    worker = worker.concurrency(concurrency);
    let pool = python.as_ref().map(|python| {
        let max_memory_per_child =
            max_memory_per_child.or_else(|| python.setting("worker_max_memory_per_child"));
        let options = PoolOptions {
            size: autoscale.map_or(concurrency, |scale| scale.least),
            autoscale: autoscale.map(|scale| (scale.least, scale.most)),
            max_tasks_per_child: max_tasks_per_child.or_else(|| python.setting("worker_max_tasks_per_child")),
            max_memory_per_child,
            memory_limit_per_child: python.memory_limit(memory_limit_per_child, max_memory_per_child),
            leaves_results: python.leaves_results(&settings.broker)
                && settings.result_backend.as_deref().is_none_or(|url| python.leaves_results(url)),
            birth_patience: python.manifest.birth_patience(),
        };
        python.start_children(options)
    });
    if let Some(pool) = &pool {
        worker = worker.executor(pool.executor());
    }
    let manner = python.as_ref().map_or(signals::Manner::Plain, Python::manner);
    let shutdown = signals::listen(manner)?;
    if args.beside_server {
        stand_beside(shutdown.clone())?;
    }
    let _pidfile = args.pidfile.map(Pidfile::write).transpose()?;
    match &python {
        Some(python) => session.output.note(python.banner(&app, &worker, concurrency, task_events)),
        None => {
            let names: Vec<_> = app.registry().names().collect();
            session.output.note(format_args!(
                "{} on {}\n[queues] {}\n[tasks]  {}",
                worker.node_name(),
                app.url(),
                worker.queue_names().join(", "),
                names.join(", "),
            ));
        }
    }
    let zygote = python.as_ref().and_then(|python| python.zygote.clone());
    let gone = async {
        match &zygote {
            Some(zygote) => zygote.gone().await,
            None => std::future::pending().await,
        }
    };
    let (warm, cold) = (shutdown.warm.clone(), shutdown.cold.clone());
    let lost = std::sync::atomic::AtomicBool::new(false);
    if let Some(zygote) = &zygote {
        zygote.signal("worker_ready").await;
    }
    let mut beat = python.as_ref().map_or(Ok(None), Python::start_beat)?;
    let over = async {
        tokio::select! {
            () = warm.cancelled() => {}
            () = gone => {
                lost.store(true, std::sync::atomic::Ordering::Relaxed);
                tracing::error!("without Python nothing can run here");
                cold.cancel();
            }
        }
        // What is due from now on is for another worker's beat.
        if let Some(beat) = &mut beat {
            beat.end();
        }
    };
    let ran = {
        let ran = worker.cold_shutdown(shutdown.cold.clone()).run(over);
        let telling = tell_python(zygote.as_deref(), &shutdown);
        tokio::pin!(ran, telling);
        tokio::select! { biased; () = &mut telling => ran.await, ran = &mut ran => ran }
    };
    if let Some(zygote) = &zygote {
        zygote.signal("worker_shutdown").await;
    }
    if let Some(beat) = beat {
        beat.close().await;
    }
    if let Some(pool) = &pool {
        pool.close().await;
    }
    let report = ran?;
    if lost.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Problem::new(Exit::Failed, "the Python process that imports the application has ended"));
    }
    session.output.note(format_args!(
        "done: {} succeeded, {} failed, {} retried, {} revoked, {} handed back",
        report.succeeded, report.failed, report.retried, report.revoked, report.handed_back,
    ));
    Ok(Exit::Done)
}

/// Refuses options that cannot mean anything here.
pub(crate) fn check(options: &WorkerOptions, has_python: bool, app: &Celeriac) -> Result<(), Problem> {
    if !has_python && let Some(option) = python::only_there(options) {
        return Err(Problem::usage(format!("{option} is not supported: it is about Python processes"))
            .hint("name a Python application by -A"));
    }
    if options.task_events && app.store().control.announcer().is_none() {
        return Err(Problem::usage(
            "--task-events is not supported: nobody can listen to events on this store",
        )
        .hint("task logs are always kept; see `celeriac events --follow`"));
    }
    Ok(())
}

/// Tells the application of each signal that asks the worker to stop, as Celery does; never ends.
async fn tell_python(zygote: Option<&Zygote>, shutdown: &signals::Shutdown) {
    let mut asked = shutdown.asked.subscribe();
    let Some(zygote) = zygote else { return std::future::pending().await };
    // Whatever came before counts.
    asked.mark_changed();
    // It holds a sender itself.
    while asked.changed().await.is_ok() {
        let told = *asked.borrow_and_update();
        if let Some(signals::Asked { sig, how }) = told {
            // As celery/apps/worker.py: SIGTERM and nothing else is how a worker is to be stopped.
            let exitcode = u8::from(how == "Cold" || sig == "SIGINT");
            zygote.shutting_down(sig, how, exitcode).await;
        }
    }
}

/// How much a worker beside a server leaves the processor to it, in steps of `nice`: tasks that burn the processor then
/// hardly delay an answer of the API, and lose next to nothing while the API is idle.
const NICE: i32 = 5;

/// Shuts down with the server: however that ends, the pipe that it holds to this process ends with it.
fn stand_beside(shutdown: signals::Shutdown) -> Result<(), Problem> {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "the worker runs at the server's priority");
    }
    std::thread::Builder::new().name("server-watch".to_owned()).spawn(move || {
        let mut rest = [0; 64];
        // The server writes nothing; every answer but an interruption means that it is gone.
        loop {
            match std::io::stdin().read(&mut rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        shutdown.asked.send_replace(Some(signals::Asked { sig: "SIGTERM", how: "Warm" }));
        shutdown.warm.cancel();
    })?;
    Ok(())
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
