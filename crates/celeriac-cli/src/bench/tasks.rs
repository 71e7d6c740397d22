//! The tasks of the benchmark. A worker knows them when it is started with `--bench-tasks`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use celeriac::{Builder, Context};
use tokio::time::Instant;

/// Runs of [`noop`] in this process.
pub(super) static RUNS: AtomicU64 = AtomicU64::new(0);

/// The most that one of these tasks runs, whatever it is asked for.
const LONGEST: Duration = Duration::from_secs(600);

pub(crate) fn register(builder: Builder) -> Builder {
    builder.register(noop).register(burn).register(ticks).register(tokens)
}

#[celeriac::task(name = "celeriac.bench.noop")]
pub(super) async fn noop(n: u64) -> u64 {
    RUNS.fetch_add(1, Ordering::Relaxed);
    n
}

/// Burns a core for so many seconds.
#[celeriac::task(name = "celeriac.bench.burn")]
pub(super) fn burn(seconds: f64) -> u64 {
    let until = Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or_default().min(LONGEST);
    let mut mixed = 0x9e37_79b9_7f4a_7c15_u64;
    while Instant::now() < until {
        for round in 0..10_000_u64 {
            mixed = (mixed ^ round).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
        }
        std::hint::black_box(mixed);
    }
    mixed
}

/// Writes `count` records to its log, one each `interval` seconds, each with its time in nanoseconds since 1970.
#[celeriac::task(name = "celeriac.bench.ticks")]
pub(super) async fn ticks(cx: Context, count: u64, interval: f64) -> u64 {
    let interval = Duration::try_from_secs_f64(interval).unwrap_or_default().min(LONGEST);
    let began = Instant::now();
    for n in 0..count {
        tokio::time::sleep_until(began + interval * u32::try_from(n).unwrap_or(u32::MAX)).await;
        let at = cx.app().clock().now().as_nanosecond();
        cx.emit("tick", &serde_json::json!({ "n": n, "at": at.to_string() })).await;
    }
    count
}

/// Streams `count` words, with a pause of so many microseconds after each ten, and returns how many bytes that were.
#[celeriac::task(name = "celeriac.bench.tokens")]
pub(super) async fn tokens(cx: Context, count: u64, pause_us: u64) -> usize {
    let mut word = String::new();
    let mut bytes = 0;
    for n in 0..count {
        word.clear();
        // Not all of one byte, so that a cut may fall within a letter.
        write!(word, "w\u{f6}rd{n} ").expect("writing to a string does not fail");
        bytes += word.len();
        cx.token(&word).await;
        if pause_us > 0 && n % 10 == 9 {
            tokio::time::sleep(Duration::from_micros(pause_us)).await;
        }
    }
    bytes
}
