//! Those who wait, and how they learn.
//!
//! Commits of this process say what they changed, and wake exactly who waits for it. Of commits of other processes only
//! the fact is known: then one thread looks, in batches on one connection, at most once a millisecond. For those who wait
//! for logs it reads what the feed has had since it last looked, so that the price is that of what happened and not of
//! who waits; only where few wait and much has happened does it look for each of them, as it does for the others, since
//! results and the feed's end are not told by the feed.
//!
//! The same thread does the first look of each newcomer, after it is entered: what was committed before is seen by the
//! look, what is committed after wakes the entry, so that nothing falls between. Numbers of the feed grow in the order of
//! commits, and the counter that gives them out is read before anything else: what is committed after that has a higher
//! number, and is read the next time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::control::News;
use super::fault::Fault;
use super::step::Events;
use super::{control, logs, results};
use crate::backend::Watch;
use crate::id::TaskId;

/// Rings that follow each other faster are answered together.
const REST: Duration = Duration::from_millis(1);

/// So many looks share a read transaction; no longer, as an open one keeps the write-ahead log from starting over.
const LOOKS_MAX: usize = 500;

/// So many records of the feed are read in one statement.
const FEED_PAGE: usize = 500;

/// Reading a record of the feed costs about this part of a look at one log.
const RECORDS_PER_LOOK: u64 = 4;

/// The waiting room of one open store.
pub(super) struct Hub {
    ready: watch::Sender<u64>,
    revoked: watch::Sender<u64>,
    commands: watch::Sender<u64>,
    replies: watch::Sender<u64>,
    room: Mutex<Room>,
    work: Condvar,
}

#[derive(Default)]
struct Room {
    entries: HashMap<u64, Entry>,
    by_task: HashMap<TaskId, Vec<u64>>,
    /// Those who wait for results, and those who wait for the feed; the others wait for logs.
    results: HashSet<u64>,
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
            commands: watch::Sender::new(0),
            replies: watch::Sender::new(0),
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

    /// Changes whenever a command may have come.
    pub(super) fn commands(&self) -> watch::Receiver<u64> {
        self.commands.subscribe()
    }

    /// Changes whenever a command may have been answered.
    pub(super) fn replies(&self) -> watch::Receiver<u64> {
        self.replies.subscribe()
    }

    /// Enters the waiting room.
    pub(super) fn enter(self: &Arc<Self>, watch: Watch) -> Ticket {
        let (looked, looked_at) = oneshot::channel();
        let (there, is_there) = oneshot::channel();
        let mut room = self.lock();
        room.last += 1;
        let number = room.last;
        match &watch {
            Watch::Result(id) => {
                room.results.insert(number);
                room.by_task.entry(id.clone()).or_default().push(number);
            }
            Watch::Log { task_id: id, .. } => room.by_task.entry(id.clone()).or_default().push(number),
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
        let Events { ready, revoked, commanded, replied, finished, logged, fed } = events;
        for (happened, bell) in [
            (ready, &self.ready),
            (revoked, &self.revoked),
            (commanded, &self.commands),
            (replied, &self.replies),
        ] {
            if happened {
                ring(bell);
            }
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
        let mut known = None;
        // The number of the feed up to which those who wait for logs have been told.
        let mut told = None;
        loop {
            let (newcomers, foreign) = {
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
                (newcomers, foreign)
            };
            if foreign {
                ring(&self.ready);
                ring(&self.revoked);
                self.look_for_control(connection, &mut known);
                self.look_at_feed(connection, &mut told);
            }
            self.look_for(connection, &newcomers);
            if foreign {
                std::thread::sleep(REST);
            }
        }
    }

    /// Wakes those who wait for commands or answers if there are new ones since `known`. One read here spares each of
    /// them a read of its own for every commit of another process, few of which have to do with them.
    fn look_for_control(&self, connection: &Connection, known: &mut Option<News>) {
        let news = control::news(connection).ok();
        // What cannot be read is left to those who wait, who report it.
        let changed = |number: fn(&News) -> i64| match (&news, &*known) {
            (Some(news), Some(known)) => number(news) != number(known),
            _ => true,
        };
        if changed(|news| news.command) {
            ring(&self.commands);
        }
        if changed(|news| news.reply) {
            ring(&self.replies);
        }
        *known = news;
    }

    /// After commits of other processes: tells those who wait for what they wrote.
    fn look_at_feed(&self, connection: &Connection, told: &mut Option<u64>) {
        let now = match logs::feed_given(connection) {
            Ok(now) => Some(now),
            Err(fault) => {
                tracing::debug!(?fault, "the feed cannot be read, looking for each who waits");
                None
            }
        };
        let (others, logs) = {
            let room = self.lock();
            let others: Vec<u64> = room.results.iter().chain(&room.feed).copied().collect();
            let logs = room.entries.len() - others.len();
            (others, logs as u64)
        };
        self.look_for(connection, &others);
        // Without a number to go by, the first time, all are looked for.
        let since = told.zip(now).map(|(told, now)| (told, now.saturating_sub(told)));
        let by_feed = since.filter(|(_, records)| records / RECORDS_PER_LOOK <= logs);
        let all_told = logs == 0
            || by_feed.is_some_and(|(told, _)| self.tell_from(connection, told))
            || self.look_for(connection, &self.waiting_for_logs());
        // What could not be looked at is looked at the next time.
        if all_told && now.is_some() {
            *told = now;
        }
    }

    fn waiting_for_logs(&self) -> Vec<u64> {
        let room = self.lock();
        let waits_for_log = |entry: &Entry| matches!(entry.watch, Watch::Log { .. });
        room.entries.iter().filter(|(_, entry)| waits_for_log(entry)).map(|(number, _)| *number).collect()
    }

    /// Tells those whose logs have grown since the number `after` of the feed; `false` when the feed cannot be read.
    fn tell_from(&self, connection: &Connection, mut after: u64) -> bool {
        loop {
            let page = match logs::grown(connection, after, FEED_PAGE) {
                Ok(page) => page,
                Err(fault) => {
                    tracing::debug!(?fault, "the feed cannot be read, looking for each who waits");
                    return false;
                }
            };
            let mut room = self.lock();
            for (number, id, position) in &page {
                room.wake(id, |watch| matches!(watch, Watch::Log { after, .. } if position > after));
                after = *number;
            }
            drop(room);
            if page.len() < FEED_PAGE {
                return true;
            }
        }
    }

    /// Looks for each of `numbers`; `false` when a look failed.
    fn look_for(&self, connection: &Connection, numbers: &[u64]) -> bool {
        let mut well = true;
        for numbers in numbers.chunks(LOOKS_MAX) {
            // Every chunk is looked at, whatever became of those before it.
            well &= self.look_for_some(connection, numbers);
        }
        well
    }

    fn look_for_some(&self, connection: &Connection, numbers: &[u64]) -> bool {
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
        let mut well = true;
        let mut room = self.lock();
        for (number, found) in found {
            match found {
                Ok(true) => room.wake_one(number, |_| true),
                Ok(false) => room.tell_looked(number, Ok(())),
                Err(fault) => {
                    well = false;
                    room.tell_looked(number, Err(fault));
                }
            }
        }
        well
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
        self.results.remove(&number);
    }
}

fn ring(bell: &watch::Sender<u64>) {
    bell.send_modify(|version| *version += 1);
}

fn is_there(connection: &Connection, watch: &Watch) -> Result<bool, Fault> {
    match watch {
        Watch::Result(id) => results::is_finished(connection, id),
        Watch::Log { task_id, after } => Ok(logs::last(connection, task_id)? > *after),
        Watch::Feed { after } => Ok(logs::feed_end(connection)? > *after),
    }
}
