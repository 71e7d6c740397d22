//! The command line: what may be written. Nothing happens while it is parsed.

mod celery;

use std::path::PathBuf;

use celeriac::ProcessSignal;
use clap::{Args, Parser, Subcommand};

pub use celery::{Met, Refused};

/// A task queue for long-running work: Celery's model, with no service to install.
#[derive(Debug, Parser)]
#[command(name = "celeriac", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The Python application, as Celery names it: proj, proj.celery, proj:app. Its configuration says where the broker is
    /// when nothing here does.
    #[arg(short = 'A', long, global = true, value_name = "MODULE[:ATTR]")]
    pub app: Option<String>,
    /// The Python interpreter of the application. Also CELERIAC_PYTHON; else the one of the environment that this program
    /// is installed in, that of the active one, or python3.
    #[arg(long, global = true, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// A folder to work in, which the application is imported from.
    #[arg(long, global = true, value_name = "FOLDER")]
    pub workdir: Option<PathBuf>,
    /// Where messages are: sqlite://PATH. Also CELERIAC_BROKER_URL, then CELERY_BROKER_URL, then the configuration file;
    /// else sqlite://celeriac.db.
    #[arg(short = 'b', long, global = true, value_name = "URL")]
    pub broker: Option<String>,
    /// Where results are, when not in the broker's store. Also CELERIAC_RESULT_BACKEND, CELERY_RESULT_BACKEND.
    #[arg(long, global = true, value_name = "URL")]
    pub result_backend: Option<String>,
    /// The configuration file. Default: celeriac.toml here, if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print only data and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more: -v what happens, -vv how.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print data as JSON, one document a line.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the HTTP API, streams and documentation, and run tasks in a process beside it.
    Serve(Serve),
    /// Run tasks.
    Worker(Worker),
    /// Send a task; print its id, or its result.
    Call(Call),
    /// Look at a result.
    Result(ResultOf),
    /// Look at the log of a task, or of all.
    Events(Events),
    /// List the workers that are online.
    Status(Status),
    /// Ask workers how they stand.
    Inspect(Inspect),
    /// Tell workers what to do.
    #[command(after_help = CONTROL_HELP)]
    Control(Control),
    /// List the queues.
    Queues,
    /// Drop what waits on a queue.
    Purge(Purge),
    /// Revoke tasks.
    Revoke(Revoke),
    /// Look after dead letters.
    #[command(subcommand)]
    Dead(Dead),
    /// Check the store and the configuration, and say what to do.
    Doctor,
    /// Digest a folder of documents: the main job in one command.
    Demo(Demo),
    /// Measure this machine.
    Bench(Bench),
}

/// `celeriac serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen. Anything but loopback wants a token.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8787")]
    pub bind: String,
    /// What to do: web, worker.
    #[arg(long, value_name = "ROLES", value_delimiter = ',', default_value = "web,worker")]
    pub roles: Vec<String>,
    /// Who may use the API: SECRET (everything) or ROLE:SECRET with read, operate or admin; may be given again. Better
    /// in CELERIAC_TOKEN (separated by commas) or --token-file, where others on the machine do not see it.
    #[arg(long, value_name = "TOKEN")]
    pub token: Vec<String>,
    /// A file with one token a line.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Another name than localhost that a server without a token may be called by, as behind a proxy; may be given again.
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Let web pages of this origin use the API; may be given again.
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Let webhooks go to private and loopback addresses.
    #[arg(long)]
    pub webhook_private: bool,
    /// Accept tasks that no worker is known to run.
    #[arg(long)]
    pub accept_unknown_tasks: bool,
    /// Options of the worker beside the server.
    #[command(flatten)]
    pub worker: WorkerOptions,
}

/// Options that a worker has whether it stands alone or beside the server.
#[derive(Debug, Args)]
pub struct WorkerOptions {
    /// The queues to consume from, separated by commas. Default: celery, or those of the Python application.
    #[arg(short = 'Q', long, value_name = "QUEUES", value_delimiter = ',')]
    pub queues: Vec<String>,
    /// Queues of the Python application not to consume from.
    #[arg(short = 'X', long, value_name = "QUEUES", value_delimiter = ',')]
    pub exclude_queues: Vec<String>,
    /// Modules to import beside the Python application.
    #[arg(short = 'I', long, value_name = "MODULES", value_delimiter = ',')]
    pub include: Vec<String>,
    /// How many tasks run at once. Default: the number of cores.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// The node name. Default: celeriac@HOST. %h stands for the host.
    #[arg(short = 'n', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// What to log: debug, info, warning, error.
    #[arg(short, long, value_name = "LEVEL")]
    pub loglevel: Option<String>,
    /// Stop runs after this many seconds, unless the task says otherwise.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub time_limit: Option<f64>,
    /// Ask runs to stop after this many seconds, unless the task says otherwise.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub soft_time_limit: Option<f64>,
    /// The file that the Python application logs to; %n, %h, %i … as Celery has them.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub logfile: Option<String>,
    /// How Python tasks run: prefork (a process each), asyncio (`async def` tasks, many on the loop of one process), threads.
    #[arg(short = 'P', long, value_name = "POOL")]
    pub pool: Option<String>,
    /// How Python processes start: fork, from one that has imported the application; or spawn, each for itself, as CUDA
    /// wants it.
    #[arg(long, visible_alias = "pool-start-method", value_name = "METHOD", value_parser = ["fork", "spawn"])]
    pub start_method: Option<String>,
    /// Let the number of Python processes follow what there is to do.
    #[arg(long, value_name = "MAX,MIN", value_parser = autoscale)]
    pub autoscale: Option<Autoscale>,
    /// Replace a Python process that has run so many tasks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tasks_per_child: Option<u32>,
    /// Replace a Python process that has grown beyond this, in KiB.
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_memory_per_child: Option<u64>,
    /// Kill a Python process that grows beyond this in the midst of a task, in KiB; 0: none. Default: twice
    /// --max-memory-per-child, where that is given.
    #[arg(long, value_name = "KIB")]
    pub memory_limit_per_child: Option<u64>,
    /// Tell from the start what becomes of tasks, in Celery's events, to Flower and others that listen; on Redis. Without
    /// it they ask for that when they begin to.
    #[arg(short = 'E', long, visible_alias = "events")]
    pub task_events: bool,
    /// Do not ask other workers what is revoked at the start.
    #[arg(long)]
    pub without_mingle: bool,
    /// Take no part in elections among workers.
    #[arg(long)]
    pub without_gossip: bool,
    /// Register the tasks of `celeriac bench serve`.
    #[arg(long, hide = true)]
    pub bench_tasks: bool,
}

/// Between how many processes a pool may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// At least.
    pub least: usize,
    /// At most.
    pub most: usize,
}

/// Reads `MAX,MIN` in either order, or MAX alone, as Celery does.
fn autoscale(text: &str) -> Result<Autoscale, String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse::<usize>()).collect();
    let wrong = || format!("{text:?} is not MAX,MIN with MAX from 1");
    let found = match numbers.as_deref() {
        Ok([most]) => Autoscale { least: 1, most: *most },
        Ok([one, other]) => Autoscale { least: (*one).min(*other).max(1), most: (*one).max(*other) },
        _ => return Err(wrong()),
    };
    if found.most == 0 { Err(wrong()) } else { Ok(found) }
}

/// `celeriac worker`.
#[derive(Debug, Args)]
pub struct Worker {
    /// What and how much it runs.
    #[command(flatten)]
    pub options: WorkerOptions,
    /// Shut down when standard input ends, and leave the processor to others: for a worker beside a server.
    #[arg(long, hide = true)]
    pub beside_server: bool,
    /// Run Celery's beat beside it, for the schedules of the Python application: with one worker of each application.
    #[arg(short = 'B', long)]
    pub beat: bool,
    /// With --beat, the file in which it keeps when each schedule ran last.
    #[arg(short = 's', long, value_name = "FILE", visible_alias = "schedule", requires = "beat")]
    pub schedule_filename: Option<String>,
    /// With --beat, the class of its scheduler.
    #[arg(long, value_name = "CLASS", requires = "beat")]
    pub scheduler: Option<String>,
    /// Write the process id to this file; removed at the end.
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Options of Celery's that have no meaning here yet; each is refused by name.
    #[command(flatten)]
    pub refused: Refused,
    /// Options of Celery's that are met in another way.
    #[command(flatten)]
    pub met: Met,
}

/// `celeriac call`.
#[derive(Debug, Args)]
pub struct Call {
    /// The task's name.
    pub task: String,
    /// Positional arguments: a JSON array.
    #[arg(short, long, value_name = "JSON", default_value = "[]")]
    pub args: String,
    /// Named arguments: a JSON object.
    #[arg(short, long, value_name = "JSON", default_value = "{}")]
    pub kwargs: String,
    /// The queue.
    #[arg(short = 'Q', long, value_name = "QUEUE")]
    pub queue: Option<String>,
    /// Run it this many seconds from now.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "eta")]
    pub countdown: Option<f64>,
    /// Run it at this time: ISO 8601, UTC unless it says otherwise.
    #[arg(long, value_name = "TIME")]
    pub eta: Option<String>,
    /// Revoke it when it has not begun by then: ISO 8601, or seconds from now.
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// 0 is consumed first, 9 last.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub priority: Option<u8>,
    /// The id; by default a fresh one.
    #[arg(long, value_name = "ID")]
    pub task_id: Option<String>,
    /// Calls with the same key are one call.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Wait for the result and print it.
    #[arg(long)]
    pub wait: bool,
    /// Print the task's log as it comes, and wait for its end.
    #[arg(long)]
    pub follow: bool,
    /// Wait no longer than this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
}

/// `celeriac result`.
#[derive(Debug, Args)]
pub struct ResultOf {
    /// The task's id.
    pub id: String,
    /// Wait until it has finished.
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Print where the error came from.
    #[arg(long)]
    pub traceback: bool,
}

/// `celeriac events`.
#[derive(Debug, Args)]
pub struct Events {
    /// The task's id; without it the records of all tasks.
    pub id: Option<String>,
    /// Go on as new records come; for one task until it ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin after this position. Without an id and a position, --follow begins with what is new.
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
}

/// Which workers are asked, and for how long.
#[derive(Debug, Args)]
pub struct Workers {
    /// Only these workers, by node name, separated by commas. Default: all.
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',')]
    pub destination: Vec<String>,
    /// Wait no longer than this many seconds for answers.
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub timeout: f64,
}

/// `celeriac status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Which workers.
    #[command(flatten)]
    pub workers: Workers,
}

/// `celeriac inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// What to ask for.
    #[arg(value_name = "CMD", value_parser = INSPECT_COMMANDS)]
    pub command: String,
    /// The tasks' ids, for query_task.
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Which workers.
    #[command(flatten)]
    pub workers: Workers,
}

/// What `celeriac inspect` knows.
const INSPECT_COMMANDS: [&str; 11] = [
    "active",
    "active_queues",
    "conf",
    "ping",
    "query_task",
    "registered",
    "report",
    "reserved",
    "revoked",
    "scheduled",
    "stats",
];

/// `celeriac control`.
#[derive(Debug, Args)]
pub struct Control {
    /// What to do.
    #[arg(value_name = "CMD", value_parser = CONTROL_COMMANDS)]
    pub command: String,
    /// With what; see below.
    #[arg(value_name = "ARGS")]
    pub arguments: Vec<String>,
    /// Which workers.
    #[command(flatten)]
    pub workers: Workers,
}

/// What `celeriac control` knows.
const CONTROL_COMMANDS: [&str; 8] = [
    "add_consumer",
    "cancel_consumer",
    "heartbeat",
    "pool_grow",
    "pool_shrink",
    "rate_limit",
    "shutdown",
    "time_limit",
];

const CONTROL_HELP: &str = "\
Commands:
  add_consumer QUEUE             consume from one queue more
  cancel_consumer QUEUE          consume from it no longer
  heartbeat                      say at once how the worker stands
  pool_grow [N=1]                add slots
  pool_shrink [N=1]              take slots away, those in use as they come free
  rate_limit TASK RATE           10/s, 100/m, 1000/h; 0 for none
  time_limit TASK SOFT [HARD]    seconds
  shutdown                       let what runs finish, and end";

/// `celeriac purge`.
#[derive(Debug, Args)]
pub struct Purge {
    /// The queues.
    #[arg(short = 'Q', long, value_name = "QUEUES", value_delimiter = ',', required = true)]
    pub queues: Vec<String>,
    /// Do it without asking.
    #[arg(short, long)]
    pub force: bool,
}

/// `celeriac revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// The tasks' ids.
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Stop them even when they run.
    #[arg(long)]
    pub terminate: bool,
    /// With --terminate, the signal for tasks that are processes, as Python's are. Default: SIGTERM. Rust tasks are told,
    /// not signalled.
    #[arg(long, value_name = "SIGNAL", requires = "terminate")]
    pub signal: Option<ProcessSignal>,
}

/// `celeriac dead`.
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List them, oldest first.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Begin after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// Send them back to their queues.
    Retry {
        /// The tasks' ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Forget them.
    Drop {
        /// The tasks' ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// `celeriac demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// The folder, or one document. Default: here.
    #[arg(default_value = ".")]
    pub path: PathBuf,
    /// Where the report goes. Default: digest.md here.
    #[arg(short, long, value_name = "FILE", default_value = "digest.md")]
    pub output: PathBuf,
    /// How many sections are worked on at once. Default: the number of cores.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// Let the OpenAI-compatible endpoint here write the summaries, streaming; OPENAI_API_KEY is its key, if it needs one.
    #[arg(long, value_name = "URL")]
    pub llm_url: Option<String>,
    /// The model to ask for there.
    #[arg(long, value_name = "NAME", default_value = "default", requires = "llm_url")]
    pub llm_model: String,
    /// Forget what an earlier run has done.
    #[arg(long)]
    pub fresh: bool,
    /// End when the report is written. Without a dashboard to look at this is always so.
    #[arg(long)]
    pub exit: bool,
}

/// `celeriac bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// How many tasks drain the queue.
    #[arg(long, default_value_t = 50_000)]
    pub tasks: usize,
    /// How many tasks run at once.
    #[arg(short, long, default_value_t = 256)]
    pub concurrency: usize,
    /// How many single round trips measure latency.
    #[arg(long, default_value_t = 2_000)]
    pub round_trips: usize,
    /// How often; medians are printed with their range.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Also measure the cost of a task with this many queued, against 1,000.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub queued: usize,
    /// Measure on Redis instead: on servers of this program, started for the benchmark and stopped after it.
    #[arg(long, value_name = "REDIS-SERVER", num_args = 0..=1, default_missing_value = "redis-server",
        conflicts_with_all = ["serve", "queued", "folder"])]
    pub redis: Option<PathBuf>,
    /// With --redis: measure an application of Celery's in the same run, with Celery's prefork workers and with ours, with
    /// this Python, which has Celery.
    #[arg(long, value_name = "PYTHON", requires = "redis")]
    pub celery: Option<PathBuf>,
    /// With --celery: how many processes run its tasks. Default: as many as there are cores.
    #[arg(long, value_name = "N", requires = "celery")]
    pub celery_processes: Option<usize>,
    /// With --celery: modules that the application imports, as an application with a large framework does.
    #[arg(long, value_name = "MODULES", value_delimiter = ',', requires = "celery")]
    pub celery_imports: Vec<String>,
    /// Measure the memory of this worker, too, when it is idle: a program that takes the URL of its broker, as the example
    /// `worker` does.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "serve")]
    pub worker: Option<PathBuf>,
    /// Measure the server instead: answers of the API while every core burns, and watchers of streams.
    #[arg(long)]
    pub serve: bool,
    /// With --serve: how many watchers.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub watchers: usize,
    /// Where the database of the benchmark is made. Default: a temporary folder.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if seconds.is_finite() && (0.0..=1e10).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("{text} is not a number of seconds from 0 to 10,000,000,000"))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_without_meaning_are_named() {
        let worker = |options: &[&str]| {
            let all = ["celeriac", "worker"].into_iter().chain(options.iter().copied());
            let Command::Worker(worker) = Cli::try_parse_from(all).unwrap().command else {
                panic!("not worker")
            };
            worker
        };
        assert_eq!(worker(&["-D"]).refused.given().unwrap().0, "--detach");
        let met = worker(&["--prefetch-multiplier", "1", "-O", "fair"]).met.given();
        assert_eq!(
            met.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["--prefetch-multiplier", "--optimization"]
        );
    }

    #[test]
    fn autoscale_takes_either_order() {
        let scale = |text: &str| autoscale(text).map(|scale| (scale.least, scale.most));
        assert_eq!((scale("10,3"), scale("3,10"), scale("4")), (Ok((3, 10)), Ok((3, 10)), Ok((1, 4))));
        for wrong in ["", "0", "0,0", "a", "1,2,3", "-1"] {
            assert!(scale(wrong).is_err(), "{wrong:?}");
        }
    }
}
