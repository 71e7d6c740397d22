//! One loop for each followed log, however many follow it.
//!
//! ```text
//!            ┌───────────── the store is away: pause ◄────────────┐
//!            ▼                                                    │
//!  read what is after the newest ─► put it in the ring, wake ─► wait for the log to grow
//!            │                                                    │ look again, now and then
//!            └─► the log has ended: say so, and stop              └──► read …
//! ```
//!
//! Watchers hold the tail, its loop does not: the last watcher's leave stops it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::ring::{Ring, Taken};
use super::{Ending, Event, PAGE, ending, read_page};
use crate::backend::Watch;
use crate::id::TaskId;
use crate::store::{Result, Store};

/// One ring keeps at most so many bytes.
const RING_BYTES_MAX: usize = 1 << 20;

/// All rings of an application together keep about so many bytes: each has its share.
const RINGS_BYTES_MAX: usize = 32 << 20;

/// So many watchers at once read from the store what the rings no longer have. Fewer than the store has readers, so that
/// those who are late never stand in the way of those who are not.
const CATCHING_UP_MAX: usize = 2;

/// How often a log that does not grow is looked at all the same: whether its task has ended without a last record.
const LOOK: Duration = Duration::from_secs(15);

/// The same for a log whose newest record is the end of a life: it only remains to see whether another follows.
const LOOK_AFTER_END: Duration = Duration::from_millis(500);

const AWAY_PAUSE_MIN: Duration = Duration::from_millis(50);
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The tails of one application.
#[derive(Debug)]
pub(crate) struct Tails {
    open: Mutex<HashMap<TaskId, Weak<Tail>>>,
    count: AtomicUsize,
    catching_up: Semaphore,
}

/// The shared end of one log.
#[derive(Debug)]
pub(super) struct Tail {
    task_id: TaskId,
    tails: Arc<Tails>,
    shared: Arc<Shared>,
    work: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    moved: watch::Sender<()>,
}

/// Pauses while the store is away, longer each time.
#[derive(Debug)]
pub(super) struct Patience(Duration);

impl Tails {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            count: AtomicUsize::new(0),
            catching_up: Semaphore::new(CATCHING_UP_MAX),
        })
    }

    /// Room to read from the store.
    pub(super) fn catching_up(&self) -> &Semaphore {
        &self.catching_up
    }

    /// The tail of a task that has everything after `position`.
    pub(super) fn find(&self, task_id: &TaskId, position: u64) -> Option<Arc<Tail>> {
        let tail = self.lock().get(task_id)?.upgrade()?;
        // Not in one expression: a tail dropped here locks the map.
        let covers = tail.shared.lock().covers(position);
        covers.then_some(tail)
    }

    /// The tail of a task that has not ended, started after position `start` if need be, with `seed` as its first
    /// records.
    pub(super) fn join(
        self: &Arc<Self>,
        store: &Store,
        task_id: &TaskId,
        start: u64,
        seed: &[Arc<Event>],
    ) -> Arc<Tail> {
        let mut open = self.lock();
        if let Some(tail) = open.get(task_id).and_then(Weak::upgrade) {
            if tail.shared.lock().is_open() {
                return tail;
            }
            // It is the tail of an earlier life. Its last watchers may just be leaving, and dropping it locks the map.
            drop(open);
            drop(tail);
            open = self.lock();
        }
        let mut ring = Ring::new(start);
        let bound = self.bound();
        seed.iter().for_each(|event| ring.push(event.clone(), bound));
        let shared = Arc::new(Shared { ring: Mutex::new(ring), moved: watch::Sender::new(()) });
        let work = run(store.clone(), task_id.clone(), shared.clone(), self.clone());
        let work = tokio::spawn(work).abort_handle();
        self.count.fetch_add(1, Ordering::Relaxed);
        let tail = Arc::new(Tail { task_id: task_id.clone(), tails: self.clone(), shared, work });
        open.insert(task_id.clone(), Arc::downgrade(&tail));
        tail
    }

    /// What one ring may keep.
    fn bound(&self) -> usize {
        (RINGS_BYTES_MAX / self.count.load(Ordering::Relaxed).max(1)).min(RING_BYTES_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Weak<Tail>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tail {
    /// Changes whenever there may be news.
    pub(super) fn moved(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
    }

    /// What there is after `position`.
    pub(super) fn take(&self, position: u64) -> Taken {
        self.shared.lock().take(position)
    }

    /// Stops it: it is not the tail of the log that the store has now.
    pub(super) fn abandon(&self) {
        self.work.abort();
        self.shared.lock().abandon();
        self.shared.wake();
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.work.abort();
        self.tails.count.fetch_sub(1, Ordering::Relaxed);
        let mut open = self.tails.lock();
        // The entry may be that of a tail that has taken this one's place.
        if open.get(&self.task_id).is_some_and(|tail| tail.strong_count() == 0) {
            open.remove(&self.task_id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.moved.send_replace(());
    }
}

/// Whatever ends the loop, a panic included, watchers learn that nobody fills the ring any more.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.lock().abandon();
        self.0.wake();
    }
}

async fn run(store: Store, task_id: TaskId, shared: Arc<Shared>, tails: Arc<Tails>) {
    let _farewell = Farewell(shared.clone());
    let mut patience = Patience::default();
    loop {
        match advance(&store, &task_id, &shared, &tails).await {
            Ok(true) => patience = Patience::default(),
            Ok(false) => return,
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, %task_id, "a log cannot be followed, trying again");
                patience.pause().await;
            }
            Err(error) => {
                tracing::warn!(%error, %task_id, "a log cannot be followed");
                return;
            }
        }
    }
}

/// Reads what there is, or waits for something; `false` when nothing will follow.
async fn advance(store: &Store, task_id: &TaskId, shared: &Shared, tails: &Tails) -> Result<bool> {
    let after = shared.lock().last();
    let Some(page) = read_page(store, task_id, after, PAGE).await? else { return Ok(false) };
    let more = page.entries.len() == PAGE;
    let skipped = page.entries.is_empty() && page.first > after + 1;
    if skipped {
        // Trimmed beyond what is known here: who needs it gets the news from the store.
        shared.lock().skip_to(page.first - 1);
        return Ok(true);
    }
    let grown = !page.entries.is_empty();
    let (newest, ends) = {
        let mut ring = shared.lock();
        let bound = tails.bound();
        let mut ends = false;
        for entry in page.entries {
            let event = Event::new(entry);
            ends = event.is_end();
            ring.push(Arc::new(event), bound);
        }
        ends |= !grown && ring.newest().is_some_and(|event| event.is_end());
        (ring.last(), ends)
    };
    if grown {
        shared.wake();
    }
    if more {
        return Ok(true);
    }
    if page.ended && newest >= page.last {
        let ending = if ends { Ending::Written } else { ending(store, task_id, newest).await? };
        let mut ring = shared.lock();
        match ending {
            Ending::Made(end) => ring.push(Arc::new(end), RING_BYTES_MAX),
            Ending::Written => {}
            Ending::None => return Ok(true),
        }
        ring.end();
        drop(ring);
        shared.wake();
        return Ok(false);
    }
    let look = if ends { LOOK_AFTER_END } else { LOOK };
    let watch = Watch::Log { task_id: task_id.clone(), after: newest };
    if !store.backend.wait(&watch, look).await? {
        shared.lock().shrink(tails.bound());
    }
    Ok(true)
}

impl Default for Patience {
    fn default() -> Self {
        Self(AWAY_PAUSE_MIN)
    }
}

impl Patience {
    pub(super) async fn pause(&mut self) {
        // Those who were cut off together do not come back together.
        tokio::time::sleep(self.0.mul_f64(0.5 + fastrand::f64())).await;
        self.0 = (self.0 * 2).min(AWAY_PAUSE_MAX);
    }
}
