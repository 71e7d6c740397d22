//! The pools `threads` and `asyncio`: one child that runs many tasks at once.
//!
//! ```text
//!  seats ─► TASK, CANCEL ─► child ─► END, CONCLUDED ─► whoever waits for that call
//! ```
//!
//! A task cannot be killed by itself. Told to stop, or over its hard limit, it is settled as stopped all the same; what it
//! comes to is thrown away, and its seat stays taken until it does.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use celeriac::Json;
use celeriac::task::{
    CancelReason, Concluded, Context, Executor, ForeignCall, ForeignTask, Ran, Seat, Verdict,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::child::{self, Child};
use crate::frame::{self, Frame};
use crate::manifest::Manifest;
use crate::pool::{BIRTH_PAUSE, BIRTH_PAUSE_LONGEST, STOP_PATIENCE};
use crate::report;
use crate::zygote::{ChildOptions, Zygote};

/// Frames that may wait to be sent to the child.
const BOUND: usize = 1_024;

/// One child with many seats.
pub struct Crowd {
    inner: Arc<Inner>,
}

struct Inner {
    zygote: Arc<Zygote>,
    kind: &'static str,
    tasks: BTreeMap<Arc<str>, Arc<ForeignTask>>,
    state: Mutex<State>,
    seats: Arc<Semaphore>,
    /// The way to the child that is there.
    child: watch::Sender<Option<Link>>,
    options: ChildOptions,
    closing: CancellationToken,
    closed: CancellationToken,
}

/// The way to a child.
#[derive(Debug, Clone)]
struct Link {
    pid: u32,
    sender: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    size: usize,
    owed: usize,
    last: u32,
    waiting: HashMap<u32, Waiting>,
}

/// A call that the child has.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<Bytes, String>>,
    /// Given back when the child is done with it, whoever still waits for that.
    _seat: OwnedSemaphorePermit,
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("kind", &self.inner.kind).finish_non_exhaustive()
    }
}

impl Crowd {
    /// Has the child forked; `kind` is `threads` or `asyncio`.
    #[must_use]
    pub fn start(
        zygote: Arc<Zygote>,
        manifest: &Manifest,
        kind: &'static str,
        size: usize,
        leaves_results: bool,
    ) -> Arc<Self> {
        let inner = Arc::new(Inner {
            zygote,
            kind,
            tasks: manifest.foreign_tasks(),
            state: Mutex::new(State { size, ..State::default() }),
            seats: Arc::new(Semaphore::new(size)),
            child: watch::Sender::new(None),
            options: ChildOptions { leaves_results, pool: kind },
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        Handle::current().spawn(Arc::clone(&inner).keep());
        Arc::new(Self { inner })
    }

    /// Tells the child to go, which does nothing any more, and lets go of the zygote.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.closed.cancelled().await;
        self.inner.zygote.close().await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one child there.
    async fn keep(self: Arc<Self>) {
        let mut pause = BIRTH_PAUSE;
        loop {
            let coming = async {
                let (number, channel, fate) =
                    self.zygote.fork(&self.options).await.map_err(|error| error.to_string())?;
                Child::ready(number, channel, fate).await
            };
            let found = tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                () = self.zygote.gone() => break,
                found = coming => found,
            };
            match found {
                Ok(child) => {
                    pause = BIRTH_PAUSE;
                    self.serve(child).await;
                }
                Err(why) => {
                    tracing::error!(%why, "a Python process did not come up, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.closing.cancelled() => break,
                    }
                    pause = (pause * 2).min(BIRTH_PAUSE_LONGEST);
                }
            }
            if self.closing.is_cancelled() {
                break;
            }
        }
        self.closed.cancel();
    }

    /// Carries frames to and from a child until it is gone or told to go.
    async fn serve(&self, mut child: Child) {
        let (sender, mut frames) = mpsc::channel::<Vec<u8>>(BOUND);
        self.child.send_replace(Some(Link { pid: child.pid, sender }));
        let why = loop {
            // Neither half is left half-way by the other: both are safe to drop between frames.
            let found = tokio::select! {
                biased;
                found = child.receive() => found,
                Some(bytes) = frames.recv() => {
                    if child.send(&bytes).await.is_err() {
                        break child.lost().await;
                    }
                    continue;
                }
                () = self.closing.cancelled() => {
                    self.child.send_replace(None);
                    child.stop(STOP_PATIENCE).await;
                    return;
                }
            };
            match found {
                Ok(Some(Frame { kind: frame::END | frame::CONCLUDED, call, payload })) => {
                    if let Some(waiting) = self.lock().waiting.remove(&call) {
                        // Nobody waits for one that was stopped.
                        let _ = waiting.answer.send(Ok(payload));
                    }
                }
                Ok(Some(found)) => tracing::debug!(kind = found.kind, "a Python process says something else"),
                Ok(None) | Err(_) => break child.lost().await,
            }
        };
        tracing::error!(pid = child.pid, %why, "the Python process is gone, with all that it ran");
        self.child.send_replace(None);
        child.kill();
        for (call, waiting) in self.lock().waiting.drain() {
            let _ = waiting.answer.send(Err(format!("Worker exited prematurely: {why} Job: {call}.")));
        }
    }

    fn size(&self, size: usize) {
        let mut state = self.lock();
        let size = size.max(1);
        if size > state.size {
            let more = size - state.size;
            let kept = more.min(state.owed);
            state.owed -= kept;
            self.seats.add_permits(more - kept);
        } else {
            let less = state.size - size;
            state.owed += less - self.seats.forget_permits(less);
        }
        state.size = size;
    }
}

#[async_trait]
impl Executor for Crowd {
    fn names(&self) -> Vec<Arc<str>> {
        self.inner.tasks.keys().cloned().collect()
    }

    fn task(&self, name: &str) -> Option<Arc<ForeignTask>> {
        self.inner.tasks.get(name).cloned()
    }

    async fn seat(&self) -> Option<Box<dyn Seat>> {
        let inner = &self.inner;
        let seat = loop {
            let seat = tokio::select! {
                biased;
                () = inner.zygote.gone() => return None,
                seat = Arc::clone(&inner.seats).acquire_owned() => seat.ok()?,
            };
            let mut state = inner.lock();
            if state.owed == 0 {
                break seat;
            }
            state.owed -= 1;
            seat.forget();
        };
        let mut child = inner.child.subscribe();
        let link = tokio::select! {
            biased;
            () = inner.zygote.gone() => return None,
            link = child.wait_for(Option::is_some) => link.ok()?.clone()?,
        };
        Some(Box::new(Place { inner: Arc::clone(inner), link, seat: Some(seat) }))
    }

    fn resize(&self, size: usize) {
        self.inner.size(size);
    }

    fn figures(&self) -> Vec<(&'static str, Json)> {
        let json = |value: serde_json::Value| Json::from_value(&value).unwrap_or_default();
        let pids: Vec<u32> = self.inner.child.borrow().iter().map(|link| link.pid).collect();
        vec![
            ("implementation", json(format!("celeriac-python:{}", self.inner.kind).into())),
            ("processes", json(pids.into())),
            ("zygote", json(self.inner.zygote.pid().into())),
        ]
    }
}

/// A seat in the child.
struct Place {
    inner: Arc<Inner>,
    link: Link,
    seat: Option<OwnedSemaphorePermit>,
}

/// Tells the child that nobody waits any more, when dropped before the end.
struct Leave {
    inner: Arc<Inner>,
    link: Link,
    call: u32,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.inner.lock().waiting.contains_key(&self.call) {
            // One that cannot be told now is told by nobody; it ends by itself.
            let _ = self.link.sender.try_send(report::cancel(self.call, CancelReason::TimeLimit));
        }
    }
}

impl Place {
    /// Sends a call; its number, and its answer.
    async fn send(
        &mut self,
        kind: u8,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> (u32, oneshot::Receiver<Result<Bytes, String>>) {
        let (answer, answered) = oneshot::channel();
        let seat = self.seat.take().expect("a seat is for one call");
        let call = {
            let mut state = self.inner.lock();
            state.last = state.last.wrapping_add(1);
            let call = state.last;
            state.waiting.insert(call, Waiting { answer, _seat: seat });
            call
        };
        let mut out = Vec::new();
        frame::write(&mut out, kind, call, payload);
        if self.link.sender.send(out).await.is_err() {
            // The child has gone since the seat was taken.
            if let Some(waiting) = self.inner.lock().waiting.remove(&call) {
                let _ =
                    waiting.answer.send(Err("Worker exited prematurely: before the task began.".to_owned()));
            }
        }
        (call, answered)
    }
}

#[async_trait]
impl Seat for Place {
    fn pid(&self) -> u32 {
        self.link.pid
    }

    async fn run(mut self: Box<Self>, call: ForeignCall, cx: Context) -> Ran {
        let (number, mut answered) = self.send(frame::TASK, |out| child::write_task(out, &call)).await;
        let _leave = Leave { inner: Arc::clone(&self.inner), link: self.link.clone(), call: number };
        let (mut asked, mut told) = (false, false);
        loop {
            tokio::select! {
                biased;
                answer = &mut answered => return match answer {
                    Ok(Ok(payload)) => child::end(payload).unwrap_or_else(|why| Ran::Lost { why }),
                    Ok(Err(why)) => Ran::Lost { why },
                    Err(_) => Ran::Lost { why: "Worker exited prematurely.".to_owned() },
                },
                cancelled = cx.cancelled(), if !asked => {
                    asked = true;
                    if cancelled.0 == CancelReason::SoftTimeLimit {
                        let _ = self.link.sender.send(report::cancel(number, cancelled.0)).await;
                    }
                }
                reason = cx.stopped(), if !told => {
                    told = true;
                    if reason == CancelReason::Revoked {
                        let _ = self.link.sender.send(report::cancel(number, reason)).await;
                    }
                }
            }
        }
    }

    async fn conclude(mut self: Box<Self>, call: ForeignCall, verdict: Verdict) -> Result<Concluded, String> {
        let verdict = child::verdict(&verdict)?;
        let (_, answered) =
            self.send(frame::CONCLUDE, |out| child::write_conclusion(out, &verdict, &call)).await;
        match answered.await {
            Ok(answer) => child::concluded(&answer?),
            Err(_) => Err("the Python process is gone".to_owned()),
        }
    }
}
