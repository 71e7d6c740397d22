//! Workers that are killed, frozen and shut down: real processes on one store, of either kind.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use celeriac::backend::FeedRecord;
use celeriac::catalog::AttemptOutcome;
use celeriac::clock::{Clock, SystemClock};
use celeriac::protocol::Exception;
use celeriac::{Celeriac, Config, Context, Error, Signature, TaskId, chord};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;

use super::support::{PATIENCE, config, count, each_ended_once, events, feed_until, sqlite_url};

const LEASE: Duration = Duration::from_secs(1);

// Tasks. Those that are to be interrupted stay in their first delivery for ever, and return in the next one.

#[celeriac::task(name = "kills.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "kills.sum")]
fn sum(values: Vec<i64>) -> i64 {
    values.iter().sum()
}

#[celeriac::task(name = "kills.hold")]
async fn hold(cx: Context) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    if cx.deliveries() == 1 {
        std::future::pending::<()>().await;
    }
    cx.deliveries()
}

#[celeriac::task(name = "kills.linger")]
async fn linger(cx: Context, millis: u64) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    if cx.deliveries() == 1 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    cx.deliveries()
}

fn burn_for(millis: u64) {
    let until = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

#[celeriac::task(name = "kills.burn_blocking")]
fn burn_blocking(notes: PathBuf, millis: u64) -> u64 {
    note(&notes, "blocking");
    burn_for(millis);
    millis
}

#[celeriac::task(name = "kills.burn_async")]
async fn burn_async(notes: PathBuf, millis: u64) -> u64 {
    note(&notes, "async");
    burn_for(millis);
    millis
}

#[celeriac::task(name = "kills.early", acks_late = false)]
async fn early(cx: Context, notes: PathBuf) -> i64 {
    note(&notes, "early");
    cx.emit("began", &cx.deliveries()).await;
    std::future::pending().await
}

#[celeriac::task(name = "kills.errback")]
async fn errback(failed: String) -> String {
    failed
}

#[celeriac::task(name = "kills.poison")]
async fn poison(notes: PathBuf, antidote: PathBuf) -> String {
    note(&notes, "poison");
    if !antidote.exists() {
        std::process::abort();
    }
    "cured".to_owned()
}

/// Three steps; each delivery does the next one and then stays, the last one goes through.
#[celeriac::task(name = "kills.steps")]
async fn steps(cx: Context, notes: PathBuf) -> Result<Vec<u32>, celeriac::task::StepError> {
    let mut values = Vec::new();
    for number in 1..=3 {
        let value = cx
            .step(&format!("step {number}"), || async {
                note(&notes, &format!("step {number}"));
                Ok::<u32, std::io::Error>(number)
            })
            .await?;
        values.push(value);
        if cx.deliveries() == number {
            cx.emit("began", &number).await;
            std::future::pending::<()>().await;
        }
    }
    Ok(values)
}

/// One line, in one write, at the end of the file: as good as a counter between processes.
fn note(notes: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(notes).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn noted(notes: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(notes).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn with_tasks(app: Celeriac) -> Celeriac {
    app.register(add)
        .register(sum)
        .register(hold)
        .register(linger)
        .register(burn_blocking)
        .register(burn_async)
        .register(early)
        .register(errback)
        .register(poison)
        .register(steps)
}

/// Settings under which as many kills as a test likes are forgiven.
fn patient(lease: Duration) -> Config {
    let mut config = config(lease);
    config.task_max_deliveries = 100;
    config
}

async fn connect(url: &str, config: Config) -> Celeriac {
    with_tasks(Celeriac::connect(url).await.unwrap().with_config(config))
}

/// The store that a test is about.
#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    #[cfg(feature = "redis")]
    Redis,
}

/// A store of a test's own.
struct Site {
    url: String,
    folder: tempfile::TempDir,
    #[cfg(feature = "redis")]
    _server: Option<super::redis_server::RedisServer>,
}

impl Site {
    async fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        match kind {
            Kind::Sqlite => Self {
                url: sqlite_url(folder.path()),
                folder,
                #[cfg(feature = "redis")]
                _server: None,
            },
            #[cfg(feature = "redis")]
            Kind::Redis => {
                let server = super::redis_server::RedisServer::start().await;
                Self { url: server.url(), folder, _server: Some(server) }
            }
        }
    }
}

impl Site {
    /// Keeps every process from writing for as long as it is held, where they take turns.
    async fn turn_to_write(&self) -> Option<std::fs::File> {
        let path = format!("{}-lock", self.url.strip_prefix("sqlite://")?);
        let turn = tokio::task::spawn_blocking(move || {
            let turn = std::fs::File::open(path).unwrap();
            turn.lock().unwrap();
            turn
        });
        Some(turn.await.unwrap())
    }
}

macro_rules! on_each_store {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Kind::Sqlite).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Kind::Redis).await;
            })*
        }
    };
}

on_each_store! {
    what_a_killed_worker_held_finishes_elsewhere
    a_frozen_worker_cannot_finish_when_it_wakes
    a_task_that_burns_for_three_leases_runs_once
    a_task_acknowledged_early_fails_with_its_worker
    poison_is_put_aside_and_can_be_revived
    finished_steps_are_never_run_again
    what_is_accepted_finishes_whenever_workers_die
}

// The worker process.

const STORE: &str = "CELERIAC_TEST_STORE";
const CONCURRENCY: &str = "CELERIAC_TEST_CONCURRENCY";
const LEASE_MS: &str = "CELERIAC_TEST_LEASE_MS";
const DELIVERIES: &str = "CELERIAC_TEST_DELIVERIES";
const THREADS: &str = "CELERIAC_TEST_THREADS";

/// The body of the worker process: this very test, run by name with the variables set. Without them it is no test.
#[test]
fn child_worker() {
    let Ok(url) = std::env::var(STORE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let mut config = config(Duration::from_millis(number(LEASE_MS)));
    config.task_max_deliveries = u32::try_from(number(DELIVERIES)).unwrap();
    let threads = usize::try_from(number(THREADS)).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    // The parent ends it in peace by closing its input, and so does the parent's death.
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = stop.send(());
    });
    let report = runtime.block_on(runtime.spawn(async move {
        let app = connect(&url, config).await;
        let worker = app.worker().concurrency(usize::try_from(number(CONCURRENCY)).unwrap());
        println!("\nready");
        worker.run(async { drop(stopped.await) }).await.unwrap()
    }));
    let report = report.unwrap();
    println!("\nsucceeded={} failed={} lost={}", report.succeeded, report.failed, report.lost);
}

/// A worker process. Dropping it kills it.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

struct Options {
    concurrency: usize,
    lease: Duration,
    deliveries: u32,
    threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { concurrency: 2, lease: LEASE, deliveries: 100, threads: 2 }
    }
}

impl Process {
    async fn start(url: &str, options: Options) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::child_worker", "--nocapture", "--test-threads=1"])
            .env(STORE, url)
            .env(CONCURRENCY, options.concurrency.to_string())
            .env(LEASE_MS, options.lease.as_millis().to_string())
            .env(DELIVERIES, options.deliveries.to_string())
            .env(THREADS, options.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, lines };
        process.line_that(|line| line == "ready").await;
        process
    }

    async fn line_that(&mut self, fits: impl Fn(&str) -> bool) -> String {
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if fits(&line) {
                    return line;
                }
            }
            panic!("the worker process ended without the line awaited");
        });
        found.await.expect("the worker process says what is awaited")
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("the process lives").to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().await.unwrap();
        assert!(status.success());
    }

    /// Stops it with all its threads, while it does not write: who is frozen in the midst of a commit keeps everybody from
    /// the file until he wakes.
    async fn freeze(&self, site: &Site) {
        let turn = site.turn_to_write().await;
        self.signal("STOP").await;
        let tasks = format!("/proc/{}/task", self.child.id().expect("the process lives"));
        let stopped = || {
            std::fs::read_dir(&tasks).unwrap().all(|thread| {
                // Its state follows its name, which stands in parentheses.
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
                stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
            })
        };
        let deadline = Instant::now() + PATIENCE;
        while !stopped() {
            assert!(Instant::now() < deadline, "all of its threads stop");
            tokio::task::yield_now().await;
        }
        drop(turn);
    }

    /// Waits until it has ended by itself.
    async fn ended(mut self) {
        // Waiting closes the input, which would end it in peace.
        let _open = self.child.stdin.take();
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap();
    }

    /// A warm shutdown; what it says it did.
    async fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        self.line_that(|line| line.starts_with("succeeded=")).await
    }
}

fn of_event<'a>(records: &'a [FeedRecord], event: &'a str) -> impl Iterator<Item = &'a FeedRecord> {
    records.iter().filter(move |record| &*record.entry.event == event)
}

async fn what_a_killed_worker_held_finishes_elsewhere(store: Kind) {
    let site = Site::new(store).await;
    let config = patient(LEASE);
    let restore = config.worker_restore_interval;
    let app = connect(&site.url, config).await;
    let doomed = Process::start(&site.url, Options { concurrency: 50, ..Options::default() }).await;
    let calls: Vec<_> = (0..50).map(|_| hold()).collect();
    let results = app.publish_batch(&calls).await.unwrap();
    let ids: Vec<TaskId> = results.iter().map(celeriac::AsyncResult::id).collect();
    feed_until(&app, |records| count(records, None, "began") == 50).await;
    let heir = Process::start(&site.url, Options { concurrency: 50, ..Options::default() }).await;

    let killed = SystemClock.now();
    doomed.kill().await;
    for result in &results {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2, "the second delivery finishes it");
    }
    each_ended_once(&app, &ids, "SUCCESS").await;
    let records = feed_until(&app, |_| true).await;
    assert_eq!(count(&records, None, "began"), 100, "each ran once in each worker");
    let restarts = of_event(&records, "began").filter(|record| record.entry.data.as_str() == "2");
    let first = restarts.map(|record| record.entry.at).min().unwrap();
    let took = Duration::try_from(first.duration_since(killed)).unwrap();
    // The bound is the promise; the slack is for a machine that does other things as well.
    assert!(took <= LEASE + restore.mul_f64(1.25) + Duration::from_secs(3), "restarted after {took:?}");
    assert_eq!(heir.stop().await, "succeeded=50 failed=0 lost=0");
}

async fn a_frozen_worker_cannot_finish_when_it_wakes(store: Kind) {
    // Awake, it finds the run over and its end refused, or the lease gone and the run to be stopped.
    for millis in [100, 600_000] {
        let site = Site::new(store).await;
        let app = connect(&site.url, patient(LEASE)).await;
        let frozen = Process::start(&site.url, Options::default()).await;
        let result = linger(millis).delay(&app).await.unwrap();
        events(&app, &result.id(), "began", 1).await;
        frozen.freeze(&site).await;
        if result.ready().await.unwrap() {
            continue; // It was quicker than the signal; the other length is there for that.
        }
        let heir = Process::start(&site.url, Options::default()).await;
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2);
        frozen.signal("CONT").await;
        assert_eq!(frozen.stop().await, "succeeded=0 failed=0 lost=1", "for {millis} ms");
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2);
        each_ended_once(&app, &[result.id()], "SUCCESS").await;
        assert_eq!(heir.stop().await, "succeeded=1 failed=0 lost=0");
    }
}

async fn a_task_that_burns_for_three_leases_runs_once(store: Kind) {
    let site = Site::new(store).await;
    let notes = site.folder.path().join("notes");
    let app = connect(&site.url, patient(LEASE)).await;
    let millis = 3 * u64::try_from(LEASE.as_millis()).unwrap();
    let options = || Options { concurrency: 1, threads: 1, ..Options::default() };
    let first = Process::start(&site.url, options()).await;
    let blocking = burn_blocking(notes.clone(), millis).delay(&app).await.unwrap();
    let starving = burn_async(notes.clone(), millis).delay(&app).await.unwrap();
    // Idle, restoring, and hungry.
    let second = Process::start(&site.url, options()).await;
    let third = Process::start(&site.url, options()).await;
    assert_eq!(blocking.get_timeout(PATIENCE).await.unwrap(), millis);
    assert_eq!(starving.get_timeout(PATIENCE).await.unwrap(), millis);
    let mut runs = noted(&notes);
    runs.sort();
    assert_eq!(runs, ["async", "blocking"]);
    for process in [first, second, third] {
        assert!(process.stop().await.ends_with("lost=0"));
    }
}

async fn a_task_acknowledged_early_fails_with_its_worker(store: Kind) {
    let site = Site::new(store).await;
    let notes = site.folder.path().join("notes");
    let app = connect(&site.url, patient(LEASE)).await;
    let doomed = Process::start(&site.url, Options::default()).await;
    let told = TaskId::from("told");
    let alone = early(notes.clone()).link_error(errback::s().task_id(&told)).delay(&app).await.unwrap();
    let part = TaskId::from("part");
    let header: [Signature; 2] =
        [early(notes.clone()).task_id(&part).into_dynamic(), add(1, 1).into_dynamic()];
    let joined = chord(header, sum::s()).delay(&app).await.unwrap();
    feed_until(&app, |records| count(records, None, "began") == 2).await;
    doomed.kill().await;
    let heir = Process::start(&site.url, Options::default()).await;

    assert_eq!(exception(alone.get_timeout(PATIENCE).await).exc_type, "WorkerLostError");
    let body = exception(joined.get_timeout(PATIENCE).await);
    assert_eq!(body.exc_type, "ChordError");
    assert!(body.message().unwrap().contains("part"), "{body}");
    let errback = app.async_result::<String>(told.clone());
    assert_eq!(errback.get_timeout(PATIENCE).await.unwrap(), alone.id().as_str());
    each_ended_once(&app, &[alone.id(), part, joined.id()], "FAILURE").await;
    assert_eq!(noted(&notes).len(), 2, "neither ran again");
    assert_eq!(heir.stop().await.split_once(' ').unwrap().1, "failed=2 lost=0");
}

fn exception<T: std::fmt::Debug>(result: Result<T, Error>) -> Exception {
    match result.unwrap_err() {
        Error::Task(failure) => failure.exception.expect("a failure has an exception"),
        other => panic!("not the failure of a task: {other}"),
    }
}

async fn poison_is_put_aside_and_can_be_revived(store: Kind) {
    let site = Site::new(store).await;
    let (notes, antidote) = (site.folder.path().join("notes"), site.folder.path().join("antidote"));
    let app = connect(&site.url, config(LEASE)).await;
    let options = || Options { lease: Duration::from_millis(500), deliveries: 3, ..Options::default() };
    let result = poison(notes.clone(), antidote.clone()).delay(&app).await.unwrap();
    for _ in 0..3 {
        Process::start(&site.url, options()).await.ended().await;
    }
    let survivor = Process::start(&site.url, options()).await;
    assert_eq!(exception(result.get_timeout(PATIENCE).await).exc_type, "WorkerLostError");
    assert_eq!(noted(&notes).len(), 3);
    let dead = app.store().broker.dead(0, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((&dead[0].task_id, &*dead[0].task), (&result.id(), "kills.poison"));
    assert!(dead[0].reason.contains("3 workers"), "{}", dead[0].reason);
    assert!(!dead[0].message.body.is_empty());

    std::fs::write(&antidote, "").unwrap();
    assert_eq!(app.store().broker.revive(&[result.id()]).await.unwrap(), [result.id()]);
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), "cured");
    assert_eq!(app.store().broker.dead(0, 10).await.unwrap().len(), 0);
    assert_eq!(survivor.stop().await, "succeeded=1 failed=1 lost=0");
}

async fn finished_steps_are_never_run_again(store: Kind) {
    let site = Site::new(store).await;
    let notes = site.folder.path().join("notes");
    let app = connect(&site.url, patient(LEASE)).await;
    let result = steps(notes.clone()).delay(&app).await.unwrap();
    let options = || Options { lease: Duration::from_millis(500), ..Options::default() };
    for killed in 1..=3 {
        let doomed = Process::start(&site.url, options()).await;
        events(&app, &result.id(), "began", killed).await;
        doomed.kill().await;
    }
    let last = Process::start(&site.url, options()).await;
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), [1, 2, 3]);
    assert_eq!(noted(&notes), ["step 1", "step 2", "step 3"]);
    each_ended_once(&app, &[result.id()], "SUCCESS").await;
    last.stop().await;
}

async fn what_is_accepted_finishes_whenever_workers_die(store: Kind) {
    // A long run: `CELERIAC_TEST_KILLS=200`.
    let rounds: usize = std::env::var("CELERIAC_TEST_KILLS").map_or(8, |kills| kills.parse().unwrap());
    let seed: u64 =
        std::env::var("CELERIAC_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("CELERIAC_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let site = Site::new(store).await;
    let app = connect(&site.url, patient(LEASE)).await;
    let options = || Options { concurrency: 8, lease: Duration::from_millis(500), ..Options::default() };
    let mut workers =
        vec![Process::start(&site.url, options()).await, Process::start(&site.url, options()).await];
    let mut again = 0;
    for round in 0..rounds {
        // 200 ids: 150 alone, and ten chords of four and a body.
        let numbers = 0..150;
        let alone: Vec<_> = numbers.map(|number| add(number, 1)).collect();
        let alone = app.publish_batch(&alone).await.unwrap();
        let mut chords = Vec::new();
        let mut ids: Vec<TaskId> = alone.iter().map(celeriac::AsyncResult::id).collect();
        for number in 0..10 {
            let header_ids: Vec<TaskId> = (0..4).map(|_| TaskId::random()).collect();
            let header: Vec<_> = header_ids.iter().map(|id| add(number, 1).task_id(id)).collect();
            let body = chord(header, sum::s()).delay(&app).await.unwrap();
            ids.extend(header_ids);
            ids.push(body.id());
            chords.push(body);
        }
        // An instant that nobody chose, in the midst of the work.
        tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        let victim = random.usize(0..workers.len());
        workers.swap_remove(victim).kill().await;
        workers.push(Process::start(&site.url, options()).await);
        for (number, result) in (0..).zip(&alone) {
            assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), number + 1, "round {round}");
        }
        for (number, result) in (0..).zip(&chords) {
            assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 4 * (number + 1), "round {round}");
        }
        assert_eq!(ids.len(), 200);
        each_ended_once(&app, &ids, "SUCCESS").await;
        again += second_runs(&app, &ids).await;
    }
    println!(
        "{rounds} kills, {} tasks, each ended once; {again} were held when their worker was killed and ran again",
        rounds * 200
    );
    let queues = app.store().broker.queues().await.unwrap();
    assert!(queues.iter().all(|queue| queue.ready + queue.delayed + queue.reserved == 0), "{queues:?}");
    for worker in workers {
        worker.stop().await;
    }
}

/// How many runs of these tasks were lost with their workers, and so begun again.
async fn second_runs(app: &Celeriac, ids: &[TaskId]) -> usize {
    let mut lost = 0;
    for id in ids {
        let record = app.store().catalog.task(id).await.unwrap().expect("the task is known");
        lost += record.attempts.iter().filter(|attempt| attempt.outcome == AttemptOutcome::Lost).count();
    }
    lost
}
