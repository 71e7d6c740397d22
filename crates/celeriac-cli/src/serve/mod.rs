//! `celeriac serve`: the server and a worker in one process tree.
//!
//! ```text
//!  serve ─┬─ web: API, streams, webhooks, restorer        (this process)
//!         └─ supervisor ── worker: runs the tasks          (a child, started again when it ends)
//! ```
//!
//! The worker is a process of its own, so that tasks which burn the processor or exhaust memory slow neither the API nor
//! the streams. It notices the end of this process by the end of its standard input, however that comes about.

mod access;
mod limits;
mod supervisor;

use std::process::Stdio;
use std::time::Duration;

use celeriac::Worker;
use celeriac_server::{Access, Server, ServerConfig, listener, webhook};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::args::{Global, Serve, WorkerOptions};
use crate::output::{Exit, Output, Problem};
use crate::python::Python;
use crate::settings::Settings;
use crate::signals::{self, Shutdown};
use crate::{Session, commands};
use supervisor::Supervisor;

/// How long a worker may take to show itself at first; and one that imports an application before it does, which may load
/// a model with it.
const START_PATIENCE: Duration = Duration::from_secs(60);
const PYTHON_PATIENCE: Duration = Duration::from_secs(600);

/// What the process tree does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Roles {
    web: bool,
    worker: bool,
}

impl Roles {
    fn parse(names: &[String]) -> Result<Self, Problem> {
        let mut roles = Self { web: false, worker: false };
        for name in names {
            match name.trim() {
                "web" => roles.web = true,
                "worker" => roles.worker = true,
                "beat" => return Err(Problem::usage("--roles: beat: this build has no scheduler")),
                other => {
                    return Err(Problem::usage(format!("--roles: {other:?} is not a role"))
                        .hint("use web, worker, or both, separated by a comma"));
                }
            }
        }
        if roles.web || roles.worker {
            Ok(roles)
        } else {
            Err(Problem::usage("--roles: name at least one role"))
        }
    }
}

pub(crate) async fn run(
    session: Session,
    python: Option<Python>,
    global: &Global,
    settings: &Settings,
    args: Serve,
) -> Result<Exit, Problem> {
    let roles = Roles::parse(&args.roles)?;
    if roles.worker {
        commands::worker::check(&args.worker, python.is_some(), &session.app)?;
    }
    let result_backend = match (&settings.result_backend, &python) {
        (None, Some(python)) if roles.worker => python.backend_beside(&settings.broker),
        (named, _) => named.clone(),
    };
    let patience = if python.is_some() { PYTHON_PATIENCE } else { START_PATIENCE };
    // What is known of its tasks the application here has; the rest is the worker's.
    drop(python);
    let access = access::gather(&args, |name| std::env::var(name).ok())?;
    // Refused before anything starts.
    let tcp = if roles.web { Some(listen(&args.bind, &access).await?) } else { None };
    let config = server_config(&args, settings);
    let courier = match &config.webhook_secret {
        Some(_) if roles.web => Some(webhook::courier(&session.app, &config)?),
        _ => None,
    };
    limits::raise_open_files();
    let shutdown = signals::listen(signals::Manner::Plain)?;
    let supervisor = roles.worker.then(|| {
        let command = command(global, &settings.broker, result_backend, &args.worker);
        Supervisor::start(&session.app, command, patience, shutdown.clone())
    });
    let output = session.output;
    if let Some(tcp) = tcp {
        let server = Server::new(session.app.clone(), access, config);
        if let Some(supervisor) = &supervisor {
            server.watch("worker", supervisor.health());
        }
        web(output, server, tcp, courier, &shutdown).await?;
    } else {
        output.note("serving no web: only the worker runs");
        shutdown.warm.cancelled().await;
    }
    if let Some(supervisor) = supervisor {
        supervisor.ended().await;
    }
    Ok(Exit::Done)
}

/// Serves until told to stop, with the courier of webhooks beside.
async fn web(
    output: Output,
    server: Server,
    tcp: TcpListener,
    courier: Option<Worker>,
    shutdown: &Shutdown,
) -> Result<(), Problem> {
    let address = tcp.local_addr()?;
    let url = format!("http://{address}");
    let over = CancellationToken::new();
    // Beside the worker's own, so that what dead workers held waits again even while no worker lives.
    let restorer = {
        let (app, over) = (server.app().clone(), over.clone());
        tokio::spawn(async move { app.restore(over.cancelled_owned()).await })
    };
    // So that what others run on the same queues is listed and followed, too.
    let observer = {
        let (app, over) = (server.app().clone(), over.clone());
        tokio::spawn(async move { app.store().catalog.observe(&over).await })
    };
    let courier = courier.map(|courier| {
        tokio::spawn(courier.cold_shutdown(shutdown.cold.clone()).run(over.clone().cancelled_owned()))
    });
    let router = celeriac_server::router(server.clone());
    output.data(
        format_args!("celeriac serves on {url}, documentation at {url}/docs"),
        &json!({ "url": url }),
    )?;
    output.note(format_args!("[store] {}", server.app().url()));
    let served = listener::serve(tcp, server, router, shutdown.warm.clone().cancelled_owned()).await;
    over.cancel();
    for (name, beside) in [("restorer", restorer), ("observer", observer)] {
        if let Err(error) = beside.await {
            tracing::error!(%error, "the {name} ended badly");
        }
    }
    if let Some(courier) = courier {
        match courier.await {
            Ok(ended) => drop(ended?),
            Err(error) => tracing::error!(%error, "the courier of webhooks ended badly"),
        }
    }
    Ok(served?)
}

async fn listen(address: &str, access: &Access) -> Result<TcpListener, Problem> {
    listener::bind(address, access).await.map_err(|error| match error {
        listener::BindError::Open { .. } => {
            Problem::usage(error).hint("set CELERIAC_TOKEN, or give --token or --token-file")
        }
        other => {
            let why = std::error::Error::source(&other).map_or_else(String::new, |why| format!(": {why}"));
            Problem::usage(format!("--bind: {other}{why}"))
        }
    })
}

fn server_config(args: &Serve, settings: &Settings) -> ServerConfig {
    let mut config = settings.server.clone();
    config.cors_origins.extend(args.cors_origin.iter().cloned());
    config.webhook_private |= args.webhook_private;
    config.accept_unknown_tasks |= args.accept_unknown_tasks;
    config
}

/// How the worker is started: as this program, on the same store. The store's URL may hold a password, so it goes by
/// the environment and not by the command line, which everybody on the machine can read.
fn command(
    global: &Global,
    broker: &str,
    result_backend: Option<String>,
    options: &WorkerOptions,
) -> impl Fn() -> std::io::Result<tokio::process::Command> + Send + 'static {
    let mut arguments: Vec<String> = Vec::new();
    let mut give = |parts: &[&str]| arguments.extend(parts.iter().map(|part| (*part).to_owned()));
    if let Some(path) = &global.config {
        give(&["--config", &path.display().to_string()]);
    }
    if let Some(app) = &global.app {
        give(&["--app", app]);
    }
    for (option, path) in [("--python", &global.python), ("--workdir", &global.workdir)] {
        if let Some(path) = path {
            give(&[option, &path.display().to_string()]);
        }
    }
    if global.quiet {
        give(&["--quiet"]);
    }
    if global.json {
        give(&["--json"]);
    }
    for _ in 0..global.verbose {
        give(&["--verbose"]);
    }
    give(&["worker", "--beside-server"]);
    if !options.queues.is_empty() {
        give(&["--queues", &options.queues.join(",")]);
    }
    if let Some(concurrency) = options.concurrency {
        give(&["--concurrency", &concurrency.to_string()]);
    }
    if let Some(name) = &options.hostname {
        give(&["--hostname", name]);
    }
    if let Some(level) = &options.loglevel {
        give(&["--loglevel", level]);
    }
    if let Some(seconds) = options.time_limit {
        give(&["--time-limit", &seconds.to_string()]);
    }
    if let Some(seconds) = options.soft_time_limit {
        give(&["--soft-time-limit", &seconds.to_string()]);
    }
    for (option, names) in [("--exclude-queues", &options.exclude_queues), ("--include", &options.include)] {
        if !names.is_empty() {
            give(&[option, &names.join(",")]);
        }
    }
    for (option, text) in [
        ("--logfile", &options.logfile),
        ("--pool", &options.pool),
        ("--start-method", &options.start_method),
    ] {
        if let Some(text) = text {
            give(&[option, text]);
        }
    }
    if let Some(scale) = options.autoscale {
        give(&["--autoscale", &format!("{},{}", scale.most, scale.least)]);
    }
    let counts = [
        ("--max-tasks-per-child", options.max_tasks_per_child.map(u64::from)),
        ("--max-memory-per-child", options.max_memory_per_child),
        ("--memory-limit-per-child", options.memory_limit_per_child),
    ];
    for (option, count) in counts {
        if let Some(count) = count {
            give(&[option, &count.to_string()]);
        }
    }
    for (given, option) in [
        (options.task_events, "--task-events"),
        (options.without_mingle, "--without-mingle"),
        (options.without_gossip, "--without-gossip"),
    ] {
        if given {
            give(&[option]);
        }
    }
    if options.bench_tasks {
        give(&["--bench-tasks"]);
    }
    let broker = broker.to_owned();
    move || {
        let mut command = this_program()?;
        command.args(&arguments).env("CELERIAC_BROKER_URL", &broker).stdin(Stdio::piped()).process_group(0);
        match &result_backend {
            Some(url) => command.env("CELERIAC_RESULT_BACKEND", url),
            None => command.env_remove("CELERIAC_RESULT_BACKEND").env_remove("CELERY_RESULT_BACKEND"),
        };
        // The API's secrets are no business of tasks.
        command.env_remove(access::TOKEN_VARIABLE);
        Ok(command)
    }
}

/// This very program, also where its file was replaced or removed since it was started: as a package's upgrade does. The
/// worker is then as old as the server is, until both are started anew.
fn this_program() -> std::io::Result<tokio::process::Command> {
    const IMAGE: &str = "/proc/self/exe";
    let path = std::env::current_exe()?;
    if path.exists() || !std::path::Path::new(IMAGE).exists() {
        return Ok(tokio::process::Command::new(path));
    }
    // It names the process that is to become the worker, which is a copy of this one until then.
    let mut command = tokio::process::Command::new(IMAGE);
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "celeriac".into()));
    Ok(command)
}
