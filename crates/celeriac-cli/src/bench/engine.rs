//! What the embedded store and the worker do on this machine, each commit on the disk.
//!
//! Every figure is the median of several runs on a fresh database, with its range. A drain ends with an exact count of
//! deliveries. Since disks and machines differ, the rate of plain synced writes to the same folder stands beside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::Store;
use celeriac::{Celeriac, State, TaskId};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::time::Instant;

use super::tasks::{RUNS, noop};
use super::{Figures, idle, pss, rate};
use crate::args::Bench;
use crate::output::{Exit, Output, Problem};

/// Messages in one batch.
const BATCH: usize = 500;
/// Callers that publish batches at once.
const BATCH_CALLERS: usize = 4;
/// Callers that publish one at a time.
const CALLERS: usize = 16;
/// Tasks that each of them publishes.
const EACH: usize = 250;
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is asked whether the queue is drained, once its last task is.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub(super) async fn run(args: &Bench, output: Output) -> Result<Exit, Problem> {
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder =
        folder.map_err(|error| Problem::usage(format!("cannot make a folder for the databases: {error}")))?;
    let bar = progress(output, args.runs * 5);
    let mut runs = Vec::new();
    for run in 0..args.runs {
        let path = folder.path().join(format!("{run}.db"));
        runs.push(one(args, &path, &bar).await?);
    }
    if args.queued > 0 {
        bar.set_message("deep queue");
        runs[0].rows.extend(deep(args, folder.path()).await?);
    }
    bar.finish_and_clear();
    output.note(format_args!(
        "celeriac {} · SQLite {} synchronous=FULL · {} cores · {} no-op tasks with results, -c {} · {} runs",
        env!("CARGO_PKG_VERSION"),
        celeriac::sqlite::version(),
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        args.tasks,
        args.concurrency,
        args.runs,
    ));
    super::print(output, &runs)
}

async fn one(args: &Bench, path: &Path, bar: &ProgressBar) -> Result<Figures, Problem> {
    let mut figures = Figures::default();
    figures.rows.push(("synced writes of 4 KiB", "/s", synced_writes(path)?));
    bar.inc(1);
    measure(&open(path).await?, args, bar, &mut figures).await?;
    Ok(figures)
}

/// What is measured of any store: publishing, draining, round trips.
pub(super) async fn measure(
    app: &Celeriac,
    args: &Bench,
    bar: &ProgressBar,
    figures: &mut Figures,
) -> Result<(), Problem> {
    figures.rows.push(("memory of an idle worker", "KiB PSS", idle::worker(app).await?));
    if let Some(program) = &args.worker {
        let memory = idle::worker_of_its_own(app, program).await?;
        figures.rows.push(("memory of an idle worker of the library alone", "KiB PSS", memory));
    }
    figures.rows.push(("publish, one at a time", "/s", publish_singly(app).await?));
    bar.inc(1);
    app.purge(&app.config().task_default_queue).await?;
    let half = args.tasks / 2;
    let (published, mut ids) = publish_batches(app, half, 1).await?;
    figures.rows.push(("publish, in batches of 500", "/s", published));
    let (published, others) = publish_batches(app, args.tasks - half, BATCH_CALLERS).await?;
    ids.extend(others);
    figures.rows.push(("publish, in batches of 500, 4 callers", "/s", published));
    bar.inc(1);
    figures.rows.push(("run with result, backlog drained", "/s", drain(app, args, &ids).await?));
    figures.rows.push(("memory of the benchmark after the drain", "KiB PSS", pss("self")));
    bar.inc(1);
    let latency = round_trips(app, args).await?;
    for (name, quantile) in [
        ("round trip when idle, p50", 0.5),
        ("round trip when idle, p90", 0.9),
        ("round trip when idle, p99", 0.99),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of one call")]
        figures.rows.push((name, "µs", latency.value_at_quantile(quantile) as f64));
    }
    bar.inc(1);
    Ok(())
}

/// How far a benchmark is, for people.
pub(super) fn progress(output: Output, length: usize) -> ProgressBar {
    if output.json || output.quiet {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
    } else {
        ProgressBar::new(length as u64)
    }
}

async fn open(path: &Path) -> Result<Celeriac, Problem> {
    let url = format!("sqlite://{}", path.display());
    Ok(Celeriac::builder().broker(url).register(noop).connect().await?)
}

/// What the disk does: small writes, each waited for.
fn synced_writes(path: &Path) -> Result<f64, Problem> {
    const WRITES: u32 = 200;
    let mut file = std::fs::File::create(path.with_extension("probe"))?;
    let page = [0u8; 4096];
    let began = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&page)?;
        file.sync_data()?;
    }
    Ok(f64::from(WRITES) / began.elapsed().as_secs_f64())
}

async fn publish_singly(app: &Celeriac) -> Result<f64, Problem> {
    let began = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    noop(n as u64).delay(&app).await?;
                }
                Ok::<_, celeriac::Error>(())
            })
        })
        .collect();
    for caller in callers {
        caller.await.map_err(|panic| Problem::new(Exit::Failed, panic))??;
    }
    Ok(rate(CALLERS * EACH, began))
}

/// Publishes `tasks` in batches, by one caller or by several at once, and says how many a second, and their ids.
pub(super) async fn publish_batches(
    app: &Celeriac,
    tasks: usize,
    callers: usize,
) -> Result<(f64, Vec<TaskId>), Problem> {
    let mut ids = Vec::with_capacity(tasks);
    let left = Arc::new(AtomicUsize::new(tasks));
    let began = Instant::now();
    let publish = |_| {
        let (app, left) = (app.clone(), left.clone());
        tokio::spawn(async move {
            let mut ids = Vec::new();
            loop {
                let take = |left: usize| left.checked_sub(BATCH.min(left));
                let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
                let size = before.map_or(0, |before| BATCH.min(before));
                if size == 0 {
                    return Ok::<_, celeriac::Error>(ids);
                }
                let batch: Vec<_> = (0..size).map(|n| noop(n as u64)).collect();
                ids.extend(app.publish_batch(&batch).await?.iter().map(celeriac::AsyncResult::id));
            }
        })
    };
    let callers: Vec<_> = (0..callers).map(publish).collect();
    for caller in callers {
        ids.extend(caller.await.map_err(|panic| Problem::new(Exit::Failed, panic))??);
    }
    Ok((rate(tasks, began), ids))
}

/// Runs everything that waits, and counts: every task SUCCESS, and run exactly once.
async fn drain(app: &Celeriac, args: &Bench, ids: &[TaskId]) -> Result<f64, Problem> {
    let before = RUNS.load(Ordering::Relaxed);
    let began = Instant::now();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(app.worker().concurrency(args.concurrency).run(async { drop(stopped.await) }));
    // The last is the last to run, more or less.
    if let Some(id) = ids.last() {
        app.async_result::<u64>(id).wait(PATIENCE).await?;
    }
    while app.store().broker.queues().await?.iter().any(|queue| queue.ready + queue.reserved > 0) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let rate = rate(ids.len(), began);
    // What is counted now is not part of the work.
    let mut open: Vec<TaskId> = ids.to_vec();
    while !open.is_empty() {
        let mut still = Vec::new();
        for chunk in open.chunks(BATCH) {
            let metas = app.store().backend.fetch(chunk).await?;
            for (id, meta) in chunk.iter().zip(metas) {
                match meta.map(|meta| meta.state) {
                    Some(State::Success) => {}
                    Some(State::Failure | State::Revoked) => {
                        return Err(Problem::new(Exit::Failed, format!("task {id} did not succeed")));
                    }
                    _ => still.push(id.clone()),
                }
            }
        }
        if let Some(last) = still.last() {
            app.async_result::<u64>(last).wait(PATIENCE).await?;
        }
        open = still;
    }
    let runs = RUNS.load(Ordering::Relaxed) - before;
    if runs != ids.len() as u64 {
        return Err(Problem::new(Exit::Failed, format!("{} tasks were run {runs} times", ids.len())));
    }
    drop(stop);
    worker.await.map_err(|panic| Problem::new(Exit::Failed, panic))??;
    Ok(rate)
}

async fn round_trips(app: &Celeriac, args: &Bench) -> Result<Histogram<u64>, Problem> {
    let mut latency = super::histogram()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(app.worker().concurrency(4).run(async { drop(stopped.await) }));
    for n in 0..args.round_trips as u64 {
        let began = Instant::now();
        noop(n).delay(app).await?.get().await?;
        // The first warm things up.
        if n >= 20 || args.round_trips <= 20 {
            latency.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
    }
    drop(stop);
    worker.await.map_err(|panic| Problem::new(Exit::Failed, panic))??;
    Ok(latency)
}

/// The cost of a task with few and with many others queued.
async fn deep(args: &Bench, folder: &Path) -> Result<Vec<(&'static str, &'static str, f64)>, Problem> {
    const SAMPLE: usize = 20_000;
    let mut rows = Vec::new();
    let mut costs = Vec::new();
    for (name, queued) in [("cost with 1,000 queued", 1_000), ("cost with --queued", args.queued)] {
        let path: PathBuf = folder.join(format!("deep-{queued}.db"));
        let app = open(&path).await?;
        publish_batches(&app, queued, 1).await?;
        let store = Store::of(
            SqliteStore::open(&path, SqliteOptions::default(), app.clock().clone()).map_err(Problem::from)?,
        );
        let mut done = 0;
        let mut spent = Duration::ZERO;
        while done < SAMPLE {
            // The depth stays what it is.
            if done > 0 {
                publish_batches(&app, BATCH, 1).await?;
            }
            let began = Instant::now();
            settle_some(&app, &store, BATCH).await?;
            spent += began.elapsed();
            done += BATCH;
        }
        let cost = spent.as_secs_f64() * 1e6 / SAMPLE as f64;
        rows.push((name, "µs", cost));
        costs.push(cost);
    }
    rows.push(("ratio of the two", "", costs[1] / costs[0]));
    Ok(rows)
}

/// Reserves and settles `count` tasks through the store alone.
async fn settle_some(app: &Celeriac, store: &Store, count: usize) -> Result<(), Problem> {
    use celeriac::broker::Reserve;
    use celeriac::protocol::{Json, ResultMeta};
    use celeriac::store::{Then, Transaction};
    let request = Reserve {
        worker: "bench".into(),
        queues: vec![app.config().task_default_queue.clone()],
        limit: count,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let deliveries = store.broker.reserve(&request).await?;
    let now = app.clock().now();
    let settlements = deliveries
        .into_iter()
        .map(|delivery| {
            let mut transaction = Transaction::fenced(delivery.tag, Then::Ack);
            let mut meta = ResultMeta::new(delivery.task_id, State::Success, Json::null());
            meta.date_done = Some(now);
            transaction.record.results = vec![meta];
            transaction
        })
        .collect();
    store.transact.commit(settlements).await?;
    Ok(())
}
