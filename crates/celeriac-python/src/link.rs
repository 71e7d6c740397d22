//! The conversation with one child that runs many tasks at once.
//!
//! ```text
//!  TASK, CANCEL, ANSWER ─► child ─┬─ RECORD, STEP … ─► the call's queue ─► its run, in its order
//!                                 └─ END ─────────────────────────────► its run, after those
//! ```
//!
//! A task in here cannot be killed by itself. One that goes on when its run is over is *left*: nothing that it says is heard
//! any more, and it is stopped in the child as well as that can be done. A child in which one goes on all the same is given
//! up: it is given no more tasks and ends with the last of the others. When nothing moves in it any more it is killed, and the
//! others are handed back.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use celeriac::task::CancelReason;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::child::Child;
use crate::frame::{self, Frame};
use crate::pool::STOP_PATIENCE;
use crate::report;

/// Frames that may wait to be sent to the child.
const BOUND: usize = 1_024;
/// Reports of a call that may wait for its run: more than the child sends of one before it has heard of the first
/// (`_WINDOW_FRAMES` in `python/celeriac/_worker/writer.py`).
const REPORTS_MAX: usize = 256;
/// A child that is given up is asked whether it still hears, and may take so many times the grace of a run to answer, and no
/// less than this.
const ANSWER_GRACES: u32 = 3;
const ANSWER_PATIENCE_LEAST: Duration = Duration::from_secs(2);

/// The way to a child.
pub(crate) struct Link {
    pub(crate) pid: u32,
    sender: mpsc::Sender<Vec<u8>>,
    calls: Mutex<Calls>,
    /// Counts calls that were left.
    lefts: watch::Sender<u64>,
    /// No more tasks go there.
    pub(crate) given_up: CancellationToken,
}

#[derive(Debug, Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, Waiting>,
    /// Those that the child has not been told of yet.
    left: Vec<u32>,
    /// How long they may go on.
    grace: Duration,
}

/// A call that the child has.
#[derive(Debug)]
enum Waiting {
    /// Somebody waits for its end.
    For {
        answer: oneshot::Sender<Answer>,
        reports: mpsc::Sender<Frame>,
        /// Given back with the end, or when it is left.
        _seat: OwnedSemaphorePermit,
    },
    /// Nobody does, and at this time it must be over.
    Left(Instant),
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Its end.
    End(Bytes),
    /// The child is gone.
    Lost(String),
    /// The child was killed for another's sake.
    HandedBack(String),
}

/// A call that the child is to have.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) number: u32,
    pub(crate) answer: oneshot::Receiver<Answer>,
    pub(crate) reports: Queue,
}

/// The reports of a call, in their order.
#[derive(Debug)]
pub(crate) struct Queue {
    receiver: mpsc::Receiver<Frame>,
    /// Looked at, and not wanted then.
    first: Option<Frame>,
}

impl Queue {
    /// The next; `None` when there will be none. Dropping the wait loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.receiver.recv().await,
        }
    }
}

impl report::Source for Queue {
    fn received(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<Frame> {
        let next = self.first.take().or_else(|| self.receiver.try_recv().ok())?;
        if wanted(next.kind) {
            return Some(next);
        }
        self.first = Some(next);
        None
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Link {
    /// The way to a child, and what is to be carried along it.
    pub(crate) fn new(pid: u32) -> (Arc<Self>, mpsc::Receiver<Vec<u8>>) {
        let (sender, frames) = mpsc::channel(BOUND);
        let link = Self {
            pid,
            sender,
            calls: Mutex::default(),
            lefts: watch::Sender::new(0),
            given_up: CancellationToken::new(),
        };
        (Arc::new(link), frames)
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        // Nothing that holds this lock can panic half-way through a change.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a call; `None` when the child takes none any more.
    pub(crate) async fn ask(
        &self,
        kind: u8,
        seat: OwnedSemaphorePermit,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Asked> {
        let (answer, answered) = oneshot::channel();
        let (reports, receiver) = mpsc::channel(REPORTS_MAX);
        let number = {
            let mut calls = self.lock();
            // Under the lock, under which a child that is given up is looked through for what still runs there.
            if self.given_up.is_cancelled() {
                return None;
            }
            calls.last = calls.last.wrapping_add(1);
            let number = calls.last;
            calls.waiting.insert(number, Waiting::For { answer, reports, _seat: seat });
            number
        };
        let mut out = Vec::new();
        frame::write(&mut out, kind, number, payload);
        if self.sender.send(out).await.is_err() {
            // Gone in this moment: it has not seen the call.
            self.lock().waiting.remove(&number);
            return None;
        }
        Some(Asked { number, answer: answered, reports: Queue { receiver, first: None } })
    }

    /// Sends what is said of a call. One whose child is gone is told so where it waits.
    pub(crate) async fn send(&self, frames: Vec<u8>) {
        let _ = self.sender.send(frames).await;
    }

    /// Nobody waits for the end of a call any more; it may go on for so long.
    pub(crate) fn leave(&self, number: u32, grace: Duration) {
        let mut calls = self.lock();
        if let Some(waiting) = calls.waiting.get_mut(&number) {
            *waiting = Waiting::Left(Instant::now() + grace);
            calls.grace = grace;
            calls.left.push(number);
            drop(calls);
            self.lefts.send_modify(|count| *count += 1);
        }
    }

    /// How many are left, and when the first of them must be over.
    fn left(&self) -> (usize, Option<Instant>) {
        let calls = self.lock();
        let left = calls.waiting.values().filter_map(|waiting| match waiting {
            Waiting::Left(until) => Some(*until),
            Waiting::For { .. } => None,
        });
        left.fold((0, None), |(count, first), until| {
            (count + 1, Some(first.map_or(until, |first: Instant| first.min(until))))
        })
    }

    /// How long the child may take to answer.
    fn patience(&self) -> Duration {
        (self.lock().grace * ANSWER_GRACES).max(ANSWER_PATIENCE_LEAST)
    }

    /// Whether somebody waits for what runs there.
    fn is_wanted(&self) -> bool {
        self.lock().waiting.values().any(|waiting| matches!(waiting, Waiting::For { .. }))
    }

    /// Ends all calls.
    fn end(&self, answer: impl Fn(u32) -> Answer) {
        for (number, waiting) in self.lock().waiting.drain() {
            if let Waiting::For { answer: waits, .. } = waiting {
                let _ = waits.send(answer(number));
            }
        }
    }
}

/// The conversation.
pub(crate) struct Conversation {
    link: Arc<Link>,
    child: Child,
    frames: mpsc::Receiver<Vec<u8>>,
    /// When it was last known to hear, once it is given up.
    heard: Instant,
    /// It was asked whether it does.
    asked: bool,
}

/// How it ended.
enum Over {
    /// The child was told to go, or is no longer needed.
    Gone,
    /// It is lost.
    Lost(String),
    /// Nothing moves in it.
    Stuck,
}

impl Conversation {
    pub(crate) fn new(link: Arc<Link>, child: Child, frames: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { link, child, frames, heard: Instant::now(), asked: false }
    }

    /// Carries frames to and from the child until it is gone or told to go. `size` is how many tasks it may have.
    pub(crate) async fn run(mut self, size: impl Fn() -> usize, closing: CancellationToken) {
        let over = self.carry(size, &closing).await;
        let pid = self.child.pid;
        self.link.given_up.cancel();
        match over {
            Over::Gone => {
                // Nobody is left to be told.
                self.link.end(|_| Answer::Lost("Worker exited prematurely.".to_owned()));
                if closing.is_cancelled() {
                    self.child.stop(STOP_PATIENCE).await;
                    return;
                }
                tracing::info!(pid, "a Python process that was given up has ended");
            }
            Over::Lost(why) => {
                tracing::error!(pid, %why, "the Python process is gone, with all that it ran");
                let text = |call| format!("Worker exited prematurely: {why} Job: {call}.");
                self.link.end(|call| Answer::Lost(text(call)));
            }
            Over::Stuck => {
                tracing::error!(
                    pid,
                    "a task that was stopped keeps all others in its Python process from going on; the process is \
                     killed, and what is acknowledged late is handed back"
                );
                let text = |call| format!("Worker exited prematurely: a stopped task held up job {call}.");
                self.link.end(|call| Answer::HandedBack(text(call)));
            }
        }
        self.child.kill();
    }

    async fn carry(&mut self, size: impl Fn() -> usize, closing: &CancellationToken) -> Over {
        let mut lefts = self.link.lefts.subscribe();
        loop {
            let due = self.due(size());
            // Neither half is left half-way by the other: both are safe to drop between frames.
            tokio::select! {
                found = self.child.receive() => match found {
                    Ok(Some(found)) => {
                        if let Some(over) = self.hear(found) {
                            return over;
                        }
                    }
                    Ok(None) | Err(_) => return Over::Lost(self.child.lost().await),
                },
                Some(bytes) = self.frames.recv() => {
                    if let Some(over) = self.send(&bytes).await {
                        return over;
                    }
                }
                Ok(()) = lefts.changed() => {
                    let left = std::mem::take(&mut self.link.lock().left);
                    for number in left {
                        if let Some(over) = self.send(&report::cancel(number, CancelReason::TimeLimit)).await {
                            return over;
                        }
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(over) = self.judge().await {
                        return over;
                    }
                }
                () = closing.cancelled() => return Over::Gone,
            }
            if self.link.given_up.is_cancelled() && !self.link.is_wanted() {
                return Over::Gone;
            }
        }
    }

    /// When the child is to be judged next, if something in it goes on that should not.
    fn due(&self, size: usize) -> Option<Instant> {
        if self.link.given_up.is_cancelled() {
            return Some(self.heard + self.link.patience());
        }
        match self.link.left() {
            (count, Some(_)) if count >= size => Some(Instant::now()),
            (_, first) => first,
        }
    }

    /// Gives the child up, asks whether it still hears, or finds that it does not.
    async fn judge(&mut self) -> Option<Over> {
        if !self.link.given_up.is_cancelled() {
            tracing::warn!(
                pid = self.child.pid,
                "a stopped task goes on; its Python process is given no more tasks, and ends with the others that it runs"
            );
            let calls = self.link.lock();
            self.link.given_up.cancel();
            drop(calls);
        } else if self.asked {
            return Some(Over::Stuck);
        }
        self.heard = Instant::now();
        self.asked = true;
        let mut bytes = Vec::new();
        frame::write(&mut bytes, frame::PING, 0, |_| {});
        self.send(&bytes).await
    }

    /// Sends what it will hear, unless it has not for too long and is to be judged.
    async fn send(&mut self, bytes: &[u8]) -> Option<Over> {
        let mut lefts = self.link.lefts.subscribe();
        let link = Arc::clone(&self.link);
        let began = Instant::now();
        let deaf = async {
            loop {
                let Some(first) = link.left().1 else {
                    let _ = lefts.changed().await;
                    continue;
                };
                let until = first.max(began) + link.patience();
                if until <= Instant::now() {
                    return;
                }
                sleep_until(until).await;
            }
        };
        let sent = tokio::select! {
            biased;
            sent = self.child.send(bytes) => sent,
            () = deaf => return Some(Over::Stuck),
        };
        match sent {
            Ok(()) => None,
            Err(_) => Some(Over::Lost(self.child.lost().await)),
        }
    }

    fn hear(&mut self, found: Frame) -> Option<Over> {
        match found.kind {
            frame::END | frame::CONCLUDED => {
                let waiting = self.link.lock().waiting.remove(&found.call);
                if let Some(Waiting::For { answer, .. }) = waiting {
                    let _ = answer.send(Answer::End(found.payload));
                }
            }
            frame::PONG => {
                self.heard = Instant::now();
                self.asked = false;
            }
            kind if report::is_report(kind) => {
                let calls = self.link.lock();
                if let Some(Waiting::For { reports, .. }) = calls.waiting.get(&found.call)
                    && let Err(mpsc::error::TrySendError::Full(_)) = reports.try_send(found)
                {
                    return Some(Over::Lost("it reports more than it may.".to_owned()));
                }
            }
            kind => tracing::debug!(kind, "a Python process says something else"),
        }
        None
    }
}
