//! The Python application that `-A` names: what it says of itself, and the pool that runs its tasks.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use celeriac::task::Executor;
use celeriac::{Celeriac, Config, Worker};
use celeriac_python::{
    Beat, BeatOptions, Crowd, Error, FromApp, Manifest, Pool, PoolOptions, StartOptions, Zygote,
};

use crate::args::{Command, Global, WorkerOptions};
use crate::output::{Exit, Problem};
use crate::signals::Manner;

/// The application.
pub(crate) struct Python {
    /// What it is.
    pub(crate) manifest: Manifest,
    /// The process that has imported it, where its tasks are to run.
    pub(crate) zygote: Option<Arc<Zygote>>,
    /// The node name of its worker.
    pub(crate) hostname: String,
    loglevel: Option<String>,
    /// The kind of pool.
    kind: &'static str,
    /// How beat is started beside the worker, where it is to be.
    beat: Option<(PathBuf, BeatOptions)>,
}

/// The children, in one of their forms.
pub(crate) enum Children {
    /// One task each.
    Pool(Arc<Pool>),
    /// Many tasks in one.
    Crowd(Arc<Crowd>),
}

impl Children {
    /// What the worker runs them by.
    pub(crate) fn executor(&self) -> Arc<dyn Executor> {
        match self {
            Self::Pool(pool) => Arc::clone(pool) as Arc<dyn Executor>,
            Self::Crowd(crowd) => Arc::clone(crowd) as Arc<dyn Executor>,
        }
    }

    /// Lets them go, which do nothing any more.
    pub(crate) async fn close(&self) {
        match self {
            Self::Pool(pool) => pool.close().await,
            Self::Crowd(crowd) => crowd.close().await,
        }
    }
}

/// The pools there are.
const POOLS: &[&str] = &["prefork", "asyncio", "threads"];

/// Imports the application, where one is named.
pub(crate) async fn load(global: &Global, command: &Command) -> Result<Option<Python>, Problem> {
    let Some(app) = &global.app else { return Ok(None) };
    // A server has them checked before it starts a worker that would be refused, again and again.
    let worker = match command {
        Command::Worker(worker) => Some(&worker.options),
        Command::Serve(serve) => Some(&serve.worker),
        Command::Bench(_) | Command::Demo(_) => return Ok(None),
        _ => None,
    };
    let runs_tasks = matches!(command, Command::Worker(_));
    let asked = worker.and_then(|worker| worker.pool.as_deref());
    if let Some(pool) = asked {
        known_pool("--pool", pool)?;
    }
    let interpreter = celeriac_python::interpreter(global.python.as_deref())
        .map_err(|error| Problem::usage(error).hint("name one by --python"))?;
    let hostname = node_name(worker.and_then(|worker| worker.hostname.as_deref()).unwrap_or("celeriac@%h"));
    let mut options =
        StartOptions { app: app.clone(), hostname: hostname.clone(), ..StartOptions::default() };
    options.signatures = matches!(command, Command::Serve(_));
    options.workdir.clone_from(&global.workdir);
    options.pool = asked.map(ToOwned::to_owned);
    options.start_method =
        worker.and_then(|worker| worker.start_method.clone()).unwrap_or_else(|| "fork".to_owned());
    // As `celery -b` and `--result-backend` have it: what tasks send goes where they are consumed from.
    let broker = global.broker.clone().or_else(|| variable("CELERIAC_BROKER_URL"));
    let backend = global.result_backend.clone().or_else(|| variable("CELERIAC_RESULT_BACKEND"));
    for (name, value) in [("CELERY_BROKER_URL", broker), ("CELERY_RESULT_BACKEND", backend)] {
        if let Some(value) = value {
            options.environment.insert(name.to_owned(), value.into());
        }
    }
    if let Some(worker) = worker {
        options.queues.clone_from(&worker.queues);
        options.exclude_queues.clone_from(&worker.exclude_queues);
        options.include.clone_from(&worker.include);
        options.loglevel.clone_from(&worker.loglevel);
        options.logfile.clone_from(&worker.logfile);
        options.concurrency = worker.concurrency.map(|concurrency| concurrency as usize);
    }
    tracing::info!(python = %interpreter.display(), app, "importing the Python application");
    let loaded = if runs_tasks {
        Zygote::start(&interpreter, &options).await.map(|(zygote, manifest)| (Some(zygote), manifest))
    } else {
        celeriac_python::describe(&interpreter, &options).await.map(|manifest| (None, manifest))
    };
    let (zygote, manifest) = loaded.map_err(problem)?;
    let foreign = celeriac_python::foreign_layout(&manifest);
    if !foreign.is_empty() {
        let names = foreign.join(", ");
        return Err(Problem::usage(format!("broker_transport_options of {app}: {names}: not supported"))
            .hint("celeriac keeps to the layout that Celery has by default; global_keyprefix may be set"));
    }
    let kind = match (asked, manifest.text("worker_pool")) {
        (None, Some(pool)) if worker.is_some() => known_pool("worker_pool", pool)?,
        (asked, _) => asked.map_or(Ok(POOLS[0]), |pool| known_pool("--pool", pool))?,
    };
    for (task, why) in &manifest.undescribed {
        tracing::debug!(task, why, "not all of a task is described");
    }
    let loglevel = worker.and_then(|worker| worker.loglevel.clone());
    let beat = match command {
        Command::Worker(worker) if worker.beat => Some((interpreter, beat(&options, worker, &manifest))),
        _ => None,
    };
    Ok(Some(Python { manifest, zygote, hostname, loglevel, kind, beat }))
}

/// Beat as the worker is: with the application, the folder and the environment of that.
fn beat(options: &StartOptions, worker: &crate::args::Worker, manifest: &Manifest) -> BeatOptions {
    let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned);
    let mut environment: Vec<_> =
        options.environment.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    if manifest.reaches_a_server() {
        // The address of the worker's store is no address for Python; the application's own leads to the server.
        environment.extend(ADDRESSES.iter().map(|name| ((*name).to_owned(), None)));
    }
    BeatOptions {
        app: options.app.clone(),
        workdir: options.workdir.clone(),
        environment,
        schedule: worker.schedule_filename.clone(),
        scheduler: worker.scheduler.clone(),
        loglevel: options.loglevel.clone(),
        logfile: options.logfile.clone(),
    }
}

/// Variables that name an address before the application does.
const ADDRESSES: &[&str] =
    &["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"];

/// A pool by its name, as the option or the setting `given` has it.
fn known_pool(given: &str, pool: &str) -> Result<&'static str, Problem> {
    // As celery/concurrency/__init__.py, which keeps that for old configurations.
    let pool = if pool == "processes" { "prefork" } else { pool };
    POOLS.iter().copied().find(|known| *known == pool).ok_or_else(|| {
        Problem::usage(format!("{given} {pool} is not supported"))
            .hint(format!("--pool may be {}", POOLS.join(", ")))
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn problem(error: Error) -> Problem {
    match error {
        Error::Application { ref traceback, .. } => {
            let hint = traceback.trim_end().to_owned();
            Problem::usage(&error).hint(hint)
        }
        Error::Setting { remedy, .. } => Problem::usage(&error).hint(remedy),
        Error::NoInterpreter(_) | Error::Start { .. } | Error::Version { .. } => Problem::usage(error),
        _ => Problem::new(Exit::Failed, error),
    }
}

/// A node name, with what Celery puts in for `%h`, `%n` and `%d`.
pub(crate) fn node_name(given: &str) -> String {
    let host = celeriac::worker::hostname();
    let (short, domain) = host.split_once('.').unwrap_or((&host, ""));
    let name = given.replace("%h", &host).replace("%n", short).replace("%d", domain);
    if name.contains('@') { name } else { format!("celeriac@{name}") }
}

/// The first option given that only makes sense with Python.
pub(crate) fn only_there(options: &WorkerOptions) -> Option<&'static str> {
    [
        (options.pool.is_some(), "--pool"),
        (options.autoscale.is_some(), "--autoscale"),
        (options.max_tasks_per_child.is_some(), "--max-tasks-per-child"),
        (options.max_memory_per_child.is_some(), "--max-memory-per-child"),
        (options.memory_limit_per_child.is_some(), "--memory-limit-per-child"),
        (options.logfile.is_some(), "--logfile"),
        (options.start_method.is_some(), "--start-method"),
        (!options.include.is_empty(), "--include"),
        (!options.exclude_queues.is_empty(), "--exclude-queues"),
    ]
    .into_iter()
    .find_map(|(given, name)| given.then_some(name))
}

impl Python {
    /// The settings that the application has made, over `base`, and where it says that things are.
    pub(crate) fn settings(&self, base: Config) -> Result<(Config, FromApp), Problem> {
        let config = celeriac_python::overlay(&self.manifest, self.beat.is_some(), base);
        Ok((config, celeriac_python::from_app(&self.manifest).map_err(problem)?))
    }

    /// The result backend that the worker beside a server is to be given, where nobody names one: the broker's store, which
    /// the server reads.
    pub(crate) fn backend_beside(&self, broker: &str) -> Option<String> {
        let is_ours = ["sqlite:", "memory:"].iter().any(|scheme| broker.starts_with(scheme));
        if self.manifest.names_backend || is_ours {
            return None;
        }
        // What else the address has to say to Celery's backend is the application's to know.
        if broker.starts_with("redis://") {
            return Some(broker.to_owned());
        }
        tracing::warn!(
            "the application names no result backend, and results are not kept; give --result-backend"
        );
        None
    }

    /// A number among the application's settings.
    pub(crate) fn setting<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        self.manifest.number(name).filter(|number| *number > 0).and_then(|number| T::try_from(number).ok())
    }

    /// The most memory that a child may have in the midst of a task, in KiB: as `asked`, else as the application's
    /// `worker_memory_limit_per_child` says, else twice what it may have after one.
    pub(crate) fn memory_limit(&self, asked: Option<u64>, after_a_task: Option<u64>) -> Option<u64> {
        let said = asked.or_else(|| self.manifest.number("worker_memory_limit_per_child"));
        said.or_else(|| after_a_task.map(|most| most.saturating_mul(2))).filter(|limit| *limit > 0)
    }

    /// How signals are to be taken.
    pub(crate) fn manner(&self) -> Manner {
        let soft = self.manifest.seconds("worker_soft_shutdown_timeout").unwrap_or_default();
        let remap_term = variable("REMAP_SIGTERM").is_some_and(|signal| signal == "SIGQUIT");
        Manner::Celery { soft, remap_term }
    }

    /// Checks that beat can reach the store at `url`.
    pub(crate) fn check_beat(&self, url: &str) -> Result<(), Problem> {
        let is_ours = url.starts_with("sqlite:") || url.starts_with("memory:");
        if self.beat.is_none() || !is_ours || self.manifest.reaches_a_server() {
            return Ok(());
        }
        Err(Problem::usage("--beat is not supported here: Celery's beat reaches a store of celeriac's own only by a server")
            .hint("run `celeriac serve` on it, and let the application say broker_url = \"celeriac+http://127.0.0.1:8787\""))
    }

    /// Has beat started, where it is to run.
    pub(crate) fn start_beat(&self) -> Result<Option<Beat>, Problem> {
        let beat = self.beat.as_ref().map(|(python, options)| Beat::start(python, options)).transpose();
        beat.map_err(problem)
    }

    /// Whether children leave results to the worker, whose store is at `url`.
    pub(crate) fn leaves_results(&self, url: &str) -> bool {
        celeriac_python::leaves_results(&self.manifest, url)
    }

    /// Has the children started.
    pub(crate) fn start_children(&self, options: PoolOptions) -> Children {
        let zygote = self.zygote.clone().expect("a worker has imported the application");
        let manifest = &self.manifest;
        match self.kind {
            "threads" => Children::Crowd(Crowd::start(zygote, manifest, "threads", &options)),
            "asyncio" => Children::Crowd(Crowd::start(zygote, manifest, "asyncio", &options)),
            _ => Children::Pool(Pool::start(zygote, manifest, options)),
        }
    }

    /// What a user of Celery looks for at the start.
    pub(crate) fn banner(&self, app: &Celeriac, worker: &Worker, concurrency: usize, events: bool) -> String {
        let manifest = &self.manifest;
        let events = if events { "ON" } else { "OFF (enable -E to monitor tasks in this worker)" };
        let mut text = format!(
            "\n {name} celeriac {version} (celery {celery}, python {python})\n\n[config]\n.> app:         {application}\n\
             .> transport:   {url}\n.> results:     {results}\n.> concurrency: {concurrency} ({kind})\n\
             .> task events: {events}\n\n[queues]\n",
            name = worker.node_name(),
            version = env!("CARGO_PKG_VERSION"),
            celery = manifest.celery,
            python = manifest.python,
            application = manifest.app,
            url = app.url(),
            results = manifest.result_backend_shown,
            kind = self.kind,
        );
        for queue in worker.queue_names() {
            let _ = writeln!(text, ".> {queue:<16} exchange={queue}(direct) key={queue}");
        }
        let level = self.loglevel.as_deref().map(str::to_lowercase);
        if let Some(level @ ("debug" | "info")) = level.as_deref() {
            text.push_str("\n[tasks]\n");
            for task in manifest.tasks.keys() {
                if level == "debug" || !task.starts_with("celery.") {
                    let _ = writeln!(text, "  . {task}");
                }
            }
        }
        text
    }
}
