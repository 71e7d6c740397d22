//! What worker and store do on Redis, with Celery and Redis's own benchmark beside them on the same servers.
//!
//! Each run starts a server of its own, without persistence, and stops it. Redis, the benchmark and the worker share the
//! cores of this machine, for Celery as for us.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use celeriac::Celeriac;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::tasks::noop;
use super::{Figures, engine};
use crate::args::Bench;
use crate::output::{Exit, Output, Problem};

/// Tasks by which the memory of a queued one is found.
const QUEUED: usize = 20_000;
/// Tasks that Celery is measured with: it would take too long with more.
const CELERY_TASKS: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(20);
const CELERY: &str = include_str!("celery.py");

pub(super) async fn run(args: &Bench, program: &Path, output: Output) -> Result<Exit, Problem> {
    let bar = engine::progress(output, args.runs * 6);
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(one(args, program, &bar).await?);
    }
    bar.finish_and_clear();
    let server = Command::new(program).arg("--version").output().await?;
    let version = String::from_utf8_lossy(&server.stdout);
    let version = version.split_whitespace().find(|word| word.starts_with("v=")).unwrap_or_default();
    output.note(format_args!(
        "celeriac {} · Redis {} without persistence · {} cores for all of it · {} no-op tasks with results, -c {} · {} runs",
        env!("CARGO_PKG_VERSION"),
        version.trim_start_matches("v="),
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        args.tasks,
        args.concurrency,
        args.runs,
    ));
    super::print(output, &runs)
}

async fn one(args: &Bench, program: &Path, bar: &ProgressBar) -> Result<Figures, Problem> {
    let mut figures = Figures::default();
    let server = Server::start(program).await?;
    if let Some(rate) = server.own_benchmark().await? {
        figures.rows.push(("redis-benchmark, SET, 16 at a time", "/s", rate));
    }
    server.ask(&["FLUSHALL"]).await?;
    if let Some(python) = &args.celery {
        for worker in [Worker::Prefork, Worker::Solo, Worker::Celeriac] {
            celery(python, worker, args, &server, &mut figures).await?;
            server.ask(&["FLUSHALL"]).await?;
        }
    }
    bar.inc(1);
    let app = Celeriac::builder().broker(server.url()).register(noop).connect().await?;
    let before = server.memory().await?;
    engine::publish_batches(&app, QUEUED, 1).await?;
    #[expect(clippy::cast_precision_loss, reason = "bytes")]
    figures.rows.push((
        "memory of a queued task in Redis",
        "bytes",
        (server.memory().await? - before) / QUEUED as f64,
    ));
    app.purge(&app.config().task_default_queue).await?;
    bar.inc(1);
    engine::measure(&app, args, bar, &mut figures).await?;
    figures.rows.extend(ratios(&figures));
    server.stop().await;
    Ok(figures)
}

/// How the figures of this very run stand to each other: what they are worth on a machine that others share.
fn ratios(figures: &Figures) -> Vec<(&'static str, &'static str, f64)> {
    let ratios = [
        (
            "Rust tasks to Celery prefork",
            "run with result, backlog drained",
            "Celery prefork, run with result",
        ),
        (
            "Python tasks to Celery prefork",
            "the same application, run with result",
            "Celery prefork, run with result",
        ),
        (
            "Python tasks to Celery's solo workers",
            "the same application, run with result",
            "as many of Celery's solo workers, run with result",
        ),
        (
            "round trip of a Python task, p50, to Celery prefork",
            "the same application, round trip when idle, p50",
            "Celery prefork, round trip when idle, p50",
        ),
        (
            "round trip of a Python task, p90, to Celery prefork",
            "the same application, round trip when idle, p90",
            "Celery prefork, round trip when idle, p90",
        ),
        (
            "round trip of a Python task, p99, to Celery prefork",
            "the same application, round trip when idle, p99",
            "Celery prefork, round trip when idle, p99",
        ),
        (
            "memory of a Python worker to Celery prefork",
            "the same application, memory of all processes",
            "Celery prefork, memory of all processes",
        ),
    ];
    let figure = |name| figures.rows.iter().find(|row| row.0 == name).map(|row| row.2);
    let ratio = |(name, ours, theirs)| Some((name, "×", figure(ours)? / figure(theirs)?));
    ratios.into_iter().filter_map(ratio).collect()
}

/// Who runs the tasks of a Python application.
#[derive(Debug, Clone, Copy)]
enum Worker {
    /// Celery's, with children.
    Prefork,
    /// Several of Celery's without children, one for each process that the others have.
    Solo,
    Celeriac,
}

impl Worker {
    /// What is measured: its name, its unit, and what the script calls it.
    fn rows(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Self::Prefork => &[
                ("Celery prefork, publish", "/s", "publish"),
                ("Celery prefork, run with result", "/s", "run"),
                ("Celery prefork, memory of a queued task in Redis", "bytes", "bytes"),
                ("Celery prefork, round trip when idle, p50", "µs", "p50"),
                ("Celery prefork, round trip when idle, p90", "µs", "p90"),
                ("Celery prefork, round trip when idle, p99", "µs", "p99"),
                ("Celery prefork, memory of all processes", "KiB PSS", "pss"),
            ],
            Self::Solo => &[
                ("as many of Celery's solo workers, run with result", "/s", "run"),
                ("as many of Celery's solo workers, round trip when idle, p50", "µs", "p50"),
                ("as many of Celery's solo workers, round trip when idle, p90", "µs", "p90"),
                ("as many of Celery's solo workers, round trip when idle, p99", "µs", "p99"),
                ("as many of Celery's solo workers, memory of all processes", "KiB PSS", "pss"),
            ],
            Self::Celeriac => &[
                ("the same application, run with result", "/s", "run"),
                ("the same application, round trip when idle, p50", "µs", "p50"),
                ("the same application, round trip when idle, p90", "µs", "p90"),
                ("the same application, round trip when idle, p99", "µs", "p99"),
                ("the same application, memory of all processes", "KiB PSS", "pss"),
            ],
        }
    }
}

/// An application of Celery's with as many processes as there are cores, or as were asked for.
async fn celery(
    python: &Path,
    worker: Worker,
    args: &Bench,
    server: &Server,
    figures: &mut Figures,
) -> Result<(), Problem> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("celery_bench.py");
    std::fs::write(&script, CELERY)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let processes = args.celery_processes.unwrap_or(cores);
    let mut command = Command::new(python);
    command.arg(&script).args([server.url(), CELERY_TASKS.to_string(), processes.to_string()]);
    match worker {
        Worker::Prefork => command.arg("prefork"),
        Worker::Solo => command.arg("solo"),
        Worker::Celeriac => command.arg(std::env::current_exe()?).env("CELERIAC_PYTHON", python),
    };
    let ran = command
        .env("BENCH_IMPORT", args.celery_imports.join(","))
        .current_dir(folder.path())
        .kill_on_drop(true)
        .output()
        .await?;
    let figures_of: Value = serde_json::from_slice(&ran.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&ran.stderr);
        let who = python.display();
        Problem::new(Exit::Failed, format!("{who} could not measure {worker:?}: {said}"))
    })?;
    for (name, unit, field) in worker.rows() {
        figures.rows.push((name, unit, figures_of[*field].as_f64().unwrap_or_default()));
    }
    Ok(())
}

/// A Redis of the benchmark's own.
struct Server {
    child: Child,
    port: u16,
    program: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(program: &Path) -> Result<Self, Problem> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Problem::usage(format!("cannot start {}: {error}", program.display())))?;
        let server = Self { child, port, program: program.to_owned(), _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if Instant::now() > deadline {
                let said = format!("{} does not listen on port {port}", program.display());
                return Err(Problem::new(Exit::Failed, said));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A program that comes with the server's.
    fn beside(&self, name: &str) -> Command {
        let mut command = Command::new(self.program.with_file_name(name));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).kill_on_drop(true);
        command
    }

    async fn ask(&self, words: &[&str]) -> Result<String, Problem> {
        let answer = self.beside("redis-cli").args(words).output().await?;
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// Bytes that it uses.
    async fn memory(&self) -> Result<f64, Problem> {
        let info = self.ask(&["INFO", "memory"]).await?;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        let bytes = line.and_then(|text| text.trim().parse().ok());
        bytes.ok_or_else(|| Problem::new(Exit::Failed, "the server does not say how much memory it uses"))
    }

    /// What `redis-benchmark` makes of it; `None` where that is not to be had.
    async fn own_benchmark(&self) -> Result<Option<f64>, Problem> {
        let ran =
            self.beside("redis-benchmark").args(["-t", "set", "-n", "1000000", "-P", "16", "--csv"]).output();
        let Ok(ran) = ran.await else { return Ok(None) };
        let text = String::from_utf8_lossy(&ran.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("\"SET\","));
        Ok(line.and_then(|rest| rest.split(',').next()?.trim_matches('"').parse().ok()))
    }

    async fn stop(mut self) {
        // It holds nothing that is to be kept.
        let _ = self.child.kill().await;
    }
}
