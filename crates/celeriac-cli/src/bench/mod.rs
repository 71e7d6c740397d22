//! `celeriac bench`: what celeriac does on this machine. `engine` measures store and worker, `redis` the same on Redis
//! and next to Celery, `server` the API and the streams, `idle` the memory of a worker that waits. Every figure is the median
//! of several runs, with its range.

mod engine;
mod idle;
mod redis;
mod server;
mod tasks;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::Bench;
use crate::output::{Exit, Output, Problem};

pub(crate) use tasks::register;

/// The figures of one run.
#[derive(Debug, Default)]
struct Figures {
    rows: Vec<(&'static str, &'static str, f64)>,
}

pub(crate) async fn run(args: &Bench, output: Output) -> Result<Exit, Problem> {
    if args.runs == 0 || args.tasks == 0 || args.concurrency == 0 {
        return Err(Problem::usage("--runs, --tasks and --concurrency must be at least 1"));
    }
    match &args.redis {
        _ if args.serve => server::run(args, output).await,
        Some(program) => redis::run(args, program, output).await,
        None => engine::run(args, output).await,
    }
}

/// Prints the median of each figure, with its range.
fn print(output: Output, runs: &[Figures]) -> Result<Exit, Problem> {
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for (name, unit, _) in &runs[0].rows {
        let mut values: Vec<f64> =
            runs.iter().flat_map(|run| &run.rows).filter(|row| row.0 == *name).map(|row| row.2).collect();
        values.sort_by(f64::total_cmp);
        let show = |value: f64| {
            if value >= 100.0 { json!(value.round()) } else { json!((value * 100.0).round() / 100.0) }
        };
        let (least, most) = (values[0], values[values.len() - 1]);
        rows.push(vec![
            (*name).into(),
            show(values[values.len() / 2]),
            show(least),
            show(most),
            (*unit).into(),
        ]);
    }
    output.table(&["figure", "median", "min", "max", "unit"], &rows)?;
    Ok(Exit::Done)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(count: usize, began: Instant) -> f64 {
    count as f64 / began.elapsed().as_secs_f64()
}

/// For times in microseconds, up to two minutes. The range is there from the start: a recording that saturates does not
/// widen it.
fn histogram() -> Result<Histogram<u64>, Problem> {
    Histogram::new_with_max(120_000_000, 3).map_err(|error| Problem::new(Exit::Failed, error))
}

/// The memory of a process that is its own share, in KiB; 0 where the system does not tell.
fn pss(process: &str) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0.0)
}
