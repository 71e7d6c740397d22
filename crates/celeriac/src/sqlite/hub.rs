//! Those who wait, and how they learn.
//!
//! Commits of this process say what they changed, and wake exactly who waits for it. Of commits of other processes only
//! the fact is known: then one thread looks for all who wait, in batches on one connection, at most once a millisecond.
//! The same thread does the first look of each newcomer, after it is entered: what was committed before is seen by the
//! look, what is committed after wakes the entry, so that nothing falls between.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::fault::Fault;
use super::step::Events;
use super::{logs, results};
use crate::backend::Watch;
use crate::id::TaskId;

/// Rings that follow each other faster are answered together.
const REST: Duration = Duration::from_millis(1);

/// So many looks share a read transaction; no longer, as an open one keeps the write-ahead log from starting over.
const LOOKS_MAX: usize = 500;

/// The waiting room of one open store.
pub(super) struct Hub {
    ready: watch::Sender<u64>,
    revoked: watch::Sender<u64>,
    room: Mutex<Room>,
    work: Condvar,
}

#[derive(Default)]
struct Room {
    entries: HashMap<u64, Entry>,
    by_task: HashMap<TaskId, Vec<u64>>,
    feed: Vec<u64>,
    last: u64,
    newcomers: Vec<u64>,
    foreign: bool,
    closed: bool,
}

struct Entry {
    watch: Watch,
    /// Told once the first look is done and has found nothing.
    looked: Option<oneshot::Sender<Result<(), Fault>>>,
    there: Option<oneshot::Sender<()>>,
}

/// A place in the waiting room, given up when dropped.
pub(super) struct Ticket {
    hub: Arc<Hub>,
    number: u64,
    /// The first look: `Ok` when it is done.
    pub(super) looked: oneshot::Receiver<Result<(), Fault>>,
    /// What was waited for is there.
    pub(super) there: oneshot::Receiver<()>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.hub.lock().leave(self.number);
    }
}

impl Hub {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            ready: watch::Sender::new(0),
            revoked: watch::Sender::new(0),
            room: Mutex::default(),
            work: Condvar::new(),
        })
    }

    /// Changes whenever a message may have come to wait.
    pub(super) fn ready(&self) -> watch::Receiver<u64> {
        self.ready.subscribe()
    }

    /// Changes whenever a held message may have been revoked.
    pub(super) fn revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Enters the waiting room.
    pub(super) fn enter(self: &Arc<Self>, watch: Watch) -> Ticket {
        let (looked, looked_at) = oneshot::channel();
        let (there, is_there) = oneshot::channel();
        let mut room = self.lock();
        room.last += 1;
        let number = room.last;
        match &watch {
            Watch::Result(id) | Watch::Log { task_id: id, .. } => {
                room.by_task.entry(id.clone()).or_default().push(number);
            }
            Watch::Feed { .. } => room.feed.push(number),
        }
        room.entries.insert(number, Entry { watch, looked: Some(looked), there: Some(there) });
        room.newcomers.push(number);
        drop(room);
        self.work.notify_one();
        Ticket { hub: self.clone(), number, looked: looked_at, there: is_there }
    }

    /// Tells what a commit of this process did.
    pub(super) fn tell(&self, events: Events) {
        let Events { ready, revoked, finished, logged, fed } = events;
        if ready {
            self.ready.send_modify(|version| *version += 1);
        }
        if revoked {
            self.revoked.send_modify(|version| *version += 1);
        }
        let mut room = self.lock();
        if room.entries.is_empty() {
            return;
        }
        for id in finished {
            room.wake(&id, |watch| matches!(watch, Watch::Result(_)));
        }
        for (id, position) in logged {
            room.wake(&id, |watch| matches!(watch, Watch::Log { after, .. } if position > *after));
        }
        if let Some(number) = fed {
            for entry in room.feed.clone() {
                room.wake_one(entry, |watch| matches!(watch, Watch::Feed { after } if number > *after));
            }
        }
    }

    /// Tells that another process has committed something.
    pub(super) fn tell_foreign(&self) {
        self.lock().foreign = true;
        self.work.notify_one();
    }

    /// Ends the looking thread.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    /// The looking thread: first looks of newcomers, and looks for all after commits of others.
    pub(super) fn look(&self, connection: &Connection) {
        loop {
            let (numbers, foreign) = {
                let mut room = self.lock();
                while !room.closed && !room.foreign && room.newcomers.is_empty() {
                    room = self.work.wait(room).unwrap_or_else(PoisonError::into_inner);
                }
                if room.closed {
                    // Those who still wait learn it by their dropped senders.
                    room.entries.clear();
                    return;
                }
                let foreign = std::mem::take(&mut room.foreign);
                let newcomers = std::mem::take(&mut room.newcomers);
                (if foreign { room.entries.keys().copied().collect() } else { newcomers }, foreign)
            };
            if foreign {
                self.ready.send_modify(|version| *version += 1);
                self.revoked.send_modify(|version| *version += 1);
            }
            for numbers in numbers.chunks(LOOKS_MAX) {
                self.look_for(connection, numbers);
            }
            if foreign {
                std::thread::sleep(REST);
            }
        }
    }

    fn look_for(&self, connection: &Connection, numbers: &[u64]) {
        let watches: Vec<(u64, Watch)> = {
            let room = self.lock();
            numbers
                .iter()
                .filter_map(|n| room.entries.get(n).map(|entry| (*n, entry.watch.clone())))
                .collect()
        };
        let began = connection.execute_batch("BEGIN").map_err(Fault::from);
        let found: Vec<(u64, Result<bool, Fault>)> = watches
            .into_iter()
            .map(|(number, watch)| (number, began.clone().and_then(|()| is_there(connection, &watch))))
            .collect();
        if began.is_ok()
            && let Err(error) = connection.execute_batch("COMMIT")
        {
            tracing::debug!(%error, "a read transaction did not end");
        }
        let mut room = self.lock();
        for (number, found) in found {
            match found {
                Ok(true) => room.wake_one(number, |_| true),
                Ok(false) => room.tell_looked(number, Ok(())),
                Err(fault) => room.tell_looked(number, Err(fault)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn wake(&mut self, id: &TaskId, wanted: impl Fn(&Watch) -> bool) {
        if let Some(numbers) = self.by_task.get(id) {
            for number in numbers.clone() {
                self.wake_one(number, &wanted);
            }
        }
    }

    fn wake_one(&mut self, number: u64, wanted: impl Fn(&Watch) -> bool) {
        if let Some(entry) = self.entries.get_mut(&number)
            && wanted(&entry.watch)
        {
            // A ticket may be gone by now; then nobody is to be told.
            if let Some(there) = entry.there.take() {
                let _ = there.send(());
            }
            self.tell_looked(number, Ok(()));
        }
    }

    fn tell_looked(&mut self, number: u64, looked: Result<(), Fault>) {
        if let Some(sender) = self.entries.get_mut(&number).and_then(|entry| entry.looked.take()) {
            let _ = sender.send(looked);
        }
    }

    fn leave(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        match entry.watch {
            Watch::Result(id) | Watch::Log { task_id: id, .. } => {
                if let Some(numbers) = self.by_task.get_mut(&id) {
                    numbers.retain(|other| *other != number);
                    if numbers.is_empty() {
                        self.by_task.remove(&id);
                    }
                }
            }
            Watch::Feed { .. } => self.feed.retain(|other| *other != number),
        }
    }
}

fn is_there(connection: &Connection, watch: &Watch) -> Result<bool, Fault> {
    match watch {
        Watch::Result(id) => results::is_finished(connection, id),
        Watch::Log { task_id, after } => Ok(logs::last(connection, task_id)? > *after),
        Watch::Feed { after } => Ok(logs::feed_end(connection)? > *after),
    }
}
