//! Following the log of a task: first what is there, then what comes, without a gap or a repeat.
//!
//! A [`Follow`] is a position in a log and little else. All who follow one task through one application share one loop
//! that reads its new records (`tail`), and one short memory of them (`ring`); who is too slow for that reads from the
//! store again, so that nobody has a buffer of their own and a slow watcher costs no memory. What has come in the
//! meantime is handed over as one batch.
//!
//! **The end.** A task's life ends with a record `end`, and with it ends every follow that delivers it. A task that is
//! sent again after its end goes on in the same log: who follows from that end on, or from anywhere after it, sees the
//! next life; who follows from before it first gets to that end, and asks again from there. A log whose task has ended
//! without such a record (it came from a program that writes none) gets one made of the stored result, at the position
//! after the last.
//!
//! **While the store is away** a follow that has begun waits for it to come back.

mod ring;
mod tail;

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::app::Celeriac;
use crate::backend::{LogEntry, LogPage};
use crate::canvas::end_record;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::TaskId;
use crate::protocol::{Json, ResultMeta};
use crate::state::{Phase, State};
use crate::store::{self, Store};
use ring::Taken;
use tail::{Patience, Tail};

pub(crate) use tail::Tails;

/// The name of the record that ends a task's life.
pub const END: &str = "end";

/// Records read from the store at once, at most; a follower reads fewer where they are large.
const PAGE: usize = 128;

/// What a watcher is handed at once, in bytes: it may take its time to pass it on. The rest comes when its turn has come.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// One record of a log, shared by all who follow it.
#[derive(Debug)]
pub struct Event {
    entry: LogEntry,
    form: OnceLock<Bytes>,
}

impl Event {
    fn new(entry: LogEntry) -> Self {
        Self { entry, form: OnceLock::new() }
    }

    /// The record.
    #[must_use]
    pub fn entry(&self) -> &LogEntry {
        &self.entry
    }

    /// Its position in the log, from 1.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.entry.position
    }

    /// Whether it ends the life of its task, and with it the follow that delivers it.
    #[must_use]
    pub fn is_end(&self) -> bool {
        &*self.entry.event == END
    }

    /// The record in the form in which it is sent on, made by `encode` for the first who asks and kept for the others.
    /// All who share a log must mean the same form.
    pub fn form(&self, encode: impl FnOnce(&LogEntry) -> Bytes) -> &Bytes {
        self.form.get_or_init(|| encode(&self.entry))
    }

    /// What it occupies, about, with its form.
    fn bytes(&self) -> usize {
        size_of::<Self>() + 64 + 2 * (self.entry.data.as_str().len() + self.entry.event.len())
    }
}

/// Follows the log of one task; see [`Celeriac::follow`].
pub struct Follow {
    app: Celeriac,
    task_id: TaskId,
    tail: Option<(Arc<Tail>, watch::Receiver<()>)>,
    /// The position of the last record handed over.
    position: u64,
    /// How many records are read next.
    page: usize,
    ready: Vec<Arc<Event>>,
    over: bool,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("task_id", &self.task_id)
            .field("position", &self.position)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Celeriac {
    /// Follows the log of a task from the record after position `after` on; `None` begins with the first that is kept.
    /// Must be called within a Tokio runtime, which then carries the loop that all followers of the task share.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::Trimmed`] when the record after `after` is no longer kept, or when the store
    /// cannot be read.
    pub async fn follow(&self, task_id: &TaskId, after: Option<u64>) -> Result<Follow> {
        let position = after.unwrap_or(0);
        let mut follow = Follow {
            app: self.clone(),
            task_id: task_id.clone(),
            tail: None,
            position,
            page: PAGE,
            ready: Vec::new(),
            over: false,
        };
        if follow.find() {
            return Ok(follow);
        }
        let tails = self.tails().clone();
        let _room = tails.catching_up().acquire().await;
        // Whoever had the room before may have opened the tail meanwhile.
        if follow.find() {
            return Ok(follow);
        }
        let page = read_page(self.store(), task_id, position, PAGE).await?;
        let page = page.ok_or_else(|| Error::UnknownTask(task_id.clone()))?;
        if after.is_none() {
            follow.position = page.entries.first().map_or(page.first, |entry| entry.position) - 1;
        }
        follow.absorb(page).await?;
        Ok(follow)
    }
}

impl Celeriac {
    /// One page of the log of a task: at most `limit` records from the one after position `after` on; `None` begins with
    /// the first that is kept.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::Trimmed`] when the record after `after` is no longer kept, or when the store
    /// cannot be read.
    pub async fn log(&self, task_id: &TaskId, after: Option<u64>, limit: usize) -> Result<LogPage> {
        let page = read_page(self.store(), task_id, after.unwrap_or(0), limit).await?;
        let page = page.ok_or_else(|| Error::UnknownTask(task_id.clone()))?;
        if let Some(after) = after {
            check_trimmed(task_id, after, &page)?;
        }
        Ok(page)
    }
}

impl Follow {
    /// The task.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        &self.task_id
    }

    /// The position of the last record handed over.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether it is known that nothing follows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over && self.ready.is_empty()
    }

    /// Waits for the next records and returns all that are there, within bounds; `None` after the end. Nothing is lost
    /// when the call is dropped before it returns.
    ///
    /// # Errors
    /// [`Error::Trimmed`] when the log was trimmed past this follower, [`Error::UnknownTask`] when the task was
    /// forgotten, or when the store fails for good. A store that is away is waited for.
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<Event>>>> {
        loop {
            if !self.ready.is_empty() {
                let batch = std::mem::take(&mut self.ready);
                return Ok(Some(self.hand_over(batch)));
            }
            if self.over {
                return Ok(None);
            }
            let Some((tail, moved)) = &mut self.tail else {
                Box::pin(self.catch_up()).await?;
                continue;
            };
            moved.borrow_and_update();
            match tail.take(self.position) {
                Taken::Batch(batch) => return Ok(Some(self.hand_over(batch))),
                Taken::Behind => {
                    // In a box of its own: a follower is small while it waits, which it does nearly always.
                    Box::pin(self.catch_up()).await?;
                    if self.ready.is_empty()
                        && !self.over
                        && let Some((tail, _)) = self.tail.take()
                    {
                        // The tail knows of records that the store has not: the task was forgotten and sent again.
                        tail.abandon();
                    }
                }
                Taken::Ended => self.over = true,
                Taken::Abandoned => self.tail = None,
                Taken::Nothing => {
                    if moved.changed().await.is_err() {
                        self.tail = None;
                    }
                }
            }
        }
    }

    fn hand_over(&mut self, batch: Vec<Arc<Event>>) -> Vec<Arc<Event>> {
        if let Some(last) = batch.last() {
            self.position = last.position();
            self.over |= last.is_end();
        }
        if self.over {
            self.tail = None;
        }
        batch
    }

    /// Joins a tail that has all this follower still needs, if there is one.
    fn find(&mut self) -> bool {
        let found = self.app.tails().find(&self.task_id, self.position);
        self.tail = found.map(|tail| {
            let moved = tail.moved();
            (tail, moved)
        });
        self.tail.is_some()
    }

    /// Reads from the store what the ring does not have.
    async fn catch_up(&mut self) -> Result<()> {
        let tails = self.app.tails().clone();
        let mut patience = Patience::default();
        loop {
            let read = async {
                // The room is given back during a pause.
                let _room = tails.catching_up().acquire().await;
                let page = read_page(self.app.store(), &self.task_id, self.position, self.page).await?;
                self.absorb(page.ok_or_else(|| Error::UnknownTask(self.task_id.clone()))?).await
            };
            match read.await {
                Err(Error::Store(error)) if error.is_transient() => {
                    tracing::debug!(%error, task_id = %self.task_id, "a log cannot be read, trying again");
                    patience.pause().await;
                }
                other => return other,
            }
        }
    }

    /// Takes what was read after the present position.
    async fn absorb(&mut self, page: LogPage) -> Result<()> {
        check_trimmed(&self.task_id, self.position, &page)?;
        let ended =
            page.ended && page.entries.last().map_or(self.position, |last| last.position) >= page.last;
        if page.entries.is_empty() && ended {
            if self.position != page.last {
                self.over = true;
                return Ok(());
            }
            match ending(self.app.store(), &self.task_id, page.last).await? {
                Ending::Made(end) => self.ready.push(Arc::new(end)),
                Ending::Written => self.over = true,
                // It is read again.
                Ending::None => {}
            }
            return Ok(());
        }
        let whole = page.entries.last().is_none_or(|last| last.position >= page.last);
        let mut events: Vec<Arc<Event>> =
            page.entries.into_iter().map(|entry| Arc::new(Event::new(entry))).collect();
        if !page.ended && self.tail.is_none() {
            // A log longer than a page is not sent through the ring from its start.
            let (start, seed) = match &events[..] {
                [] => (self.position.min(page.last), &[][..]),
                all if whole => (self.position, all),
                _ => (page.last, &[][..]),
            };
            let tail = self.app.tails().join(self.app.store(), &self.task_id, start, seed);
            let moved = tail.moved();
            self.tail = Some((tail, moved));
        }
        // What does not fit is read again, so more is not read than is likely to.
        let (read, fits) = (events.len(), portion(events.iter()));
        if fits < read {
            self.page = 2 * fits;
        } else if read == self.page {
            self.page = (2 * self.page).min(PAGE);
        }
        events.truncate(fits);
        self.ready = events;
        Ok(())
    }
}

/// Whether a page read after `position` begins with the record after it.
fn check_trimmed(task_id: &TaskId, position: u64, page: &LogPage) -> Result<()> {
    // The two are read one after the other, and the log may have been trimmed in between.
    let first = page.entries.first().map_or(page.first, |entry| entry.position);
    if first > position + 1 {
        return Err(Error::Trimmed { task_id: task_id.clone(), first });
    }
    Ok(())
}

/// How many of `events` a watcher is handed at once: up to an end, and no more than it may hold, but for one that is
/// larger by itself.
fn portion<'a>(events: impl Iterator<Item = &'a Arc<Event>>) -> usize {
    let mut bytes = 0;
    let mut count = 0;
    for event in events {
        bytes += event.bytes();
        if count > 0 && bytes > HELD_BYTES_MAX {
            break;
        }
        count += 1;
        if event.is_end() {
            break;
        }
    }
    count
}

/// A piece of a log. A store whose halves are two learns of a task when it runs: until then its log is empty.
async fn read_page(
    store: &Store,
    task_id: &TaskId,
    after: u64,
    limit: usize,
) -> store::Result<Option<LogPage>> {
    if let Some(page) = store.backend.log(task_id, after, limit).await? {
        return Ok(Some(page));
    }
    let ended = match store.find(task_id).await? {
        Some(place) => place.phase == Phase::Settled,
        // Somebody else ran it, and only its result tells of it.
        None => {
            let meta = store.backend.fetch(std::slice::from_ref(task_id)).await?.pop().flatten();
            if !meta.is_some_and(|meta| meta.state.is_ready()) {
                return Ok(None);
            }
            true
        }
    };
    Ok(Some(LogPage { entries: Vec::new(), first: 1, last: 0, ended }))
}

/// How a log ends that was found to have ended.
enum Ending {
    /// By its last record.
    Written,
    /// Without saying so: by this record after its last.
    Made(Event),
    /// Not at all: the task has been sent again since.
    None,
}

/// The end of a log that was found to have ended at `last`.
async fn ending(store: &Store, task_id: &TaskId, last: u64) -> store::Result<Ending> {
    if let Some(before) = last.checked_sub(1)
        && let Some(page) = store.backend.log(task_id, before, 1).await?
        && page.entries.first().is_some_and(|entry| &*entry.event == END)
    {
        return Ok(Ending::Written);
    }
    let stored = store.backend.fetch(std::slice::from_ref(task_id)).await?.pop().flatten();
    let meta = match stored.filter(|meta| meta.state.is_ready()) {
        Some(meta) => meta,
        // What was found and what is stored are not of one moment.
        None if read_page(store, task_id, last, 1).await?.is_none_or(|page| !page.ended) => {
            return Ok(Ending::None);
        }
        // Settled without a result: whoever ran it was told to keep none.
        None => ResultMeta::new(task_id, State::from("IGNORED"), Json::null()),
    };
    let at = meta.date_done.unwrap_or(Timestamp::UNIX_EPOCH);
    let record = end_record(&meta);
    Ok(Ending::Made(Event::new(LogEntry { position: last + 1, event: record.event, data: record.data, at })))
}
