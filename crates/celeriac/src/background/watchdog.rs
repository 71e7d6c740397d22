//! Warns of what blocks the runtime of the background work: a poll that does not end, or all threads taken.
//!
//! It has a thread of its own, since what it watches is what would keep it from looking.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::worker::Polls;

/// Looks so often within the bound.
const LOOKS: u32 = 4;

#[derive(Debug)]
pub(super) struct Watchdog {
    polls: Arc<Polls>,
    bound: Duration,
    began: Instant,
    /// When the runtime ticked last, in milliseconds.
    ticked: AtomicU64,
    /// The tick after which the runtime was found to stand still.
    told: AtomicU64,
    stalls: AtomicU64,
}

impl Watchdog {
    /// Starts looking, until what it returns is dropped.
    pub(super) fn start(polls: Arc<Polls>, bound: Duration, runtime: &Handle) -> std::io::Result<Arc<Self>> {
        let watchdog = Arc::new(Self::new(polls, bound));
        let weak = Arc::downgrade(&watchdog);
        let thread = std::thread::Builder::new().name("celeriac-watchdog".to_owned());
        thread.spawn(move || watch(&weak, bound / LOOKS))?;
        runtime.spawn(tick(Arc::downgrade(&watchdog), bound / LOOKS));
        Ok(watchdog)
    }

    fn new(polls: Arc<Polls>, bound: Duration) -> Self {
        Self {
            polls,
            bound,
            began: Instant::now(),
            ticked: AtomicU64::new(0),
            told: AtomicU64::new(u64::MAX),
            stalls: AtomicU64::new(0),
        }
    }

    /// How many there were.
    pub(super) fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn look(&self) {
        let overdue = self.polls.overdue(self.bound);
        let mut news = 0;
        for poll in overdue.iter().filter(|poll| poll.is_news) {
            let (name, lasts) = (&*poll.name, poll.lasts);
            let task_id = poll.task_id.as_ref().map_or("none", |id| id.as_str());
            tracing::warn!(
                name,
                task_id,
                ?lasts,
                "it blocks a thread of the background runtime: blocking work belongs in a task that is a plain `fn`, or \
                 in `spawn_blocking`"
            );
            news += 1;
        }
        // Something else than what is watched takes all threads. A tick may be this much older than the poll that keeps
        // it from coming again, and that poll says more.
        let ticked = self.ticked.load(Ordering::Acquire);
        let silent = Duration::from_millis(self.now().saturating_sub(ticked));
        let stands = overdue.is_empty() && silent >= self.bound + self.bound * 2 / LOOKS;
        if stands && self.told.swap(ticked, Ordering::Relaxed) != ticked {
            tracing::warn!(?silent, running = ?self.polls.names(NAMES_MAX), "the background runtime stands still");
            news += 1;
        }
        self.stalls.fetch_add(news, Ordering::Relaxed);
    }
}

/// So many of what runs are named.
const NAMES_MAX: usize = 10;

async fn tick(watchdog: Weak<Watchdog>, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(watchdog) = watchdog.upgrade() else { return };
        watchdog.ticked.store(watchdog.now(), Ordering::Release);
    }
}

fn watch(watchdog: &Weak<Watchdog>, period: Duration) {
    let mut looked = Instant::now();
    loop {
        std::thread::sleep(period);
        let Some(watchdog) = watchdog.upgrade() else { return };
        // A process that was stopped, or a machine that slept, comes back to find everything late.
        let slept = looked.elapsed() > period * 2;
        looked = Instant::now();
        if !slept {
            watchdog.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_tick_is_told_of_once_for_each_time() {
        let watchdog = Watchdog::new(Polls::new(), BOUND);
        watchdog.look();
        assert_eq!(watchdog.stalls(), 0);
        for incident in 1..=2 {
            tokio::time::advance(BOUND * 2).await;
            watchdog.look();
            watchdog.look();
            assert_eq!(watchdog.stalls(), incident);
            watchdog.ticked.store(watchdog.now(), Ordering::Release);
            watchdog.look();
            assert_eq!(watchdog.stalls(), incident);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_lasts_is_told_of_instead_of_the_silence_it_causes() {
        let watchdog = Arc::new(Watchdog::new(Polls::new(), BOUND));
        let within = Arc::clone(&watchdog);
        let burn = async move {
            use futures_util::FutureExt;
            for _ in 0..10 {
                let _ = tokio::time::advance(BOUND / LOOKS).now_or_never();
                within.look();
            }
        };
        watchdog.polls.watch("burn", None, Box::pin(burn)).await;
        assert_eq!(watchdog.stalls(), 1);
    }
}
