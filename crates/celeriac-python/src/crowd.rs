//! The pools `threads` and `asyncio`: one child that runs many tasks at once.
//!
//! ```text
//!  fork ─► the child that is there ─given up─► ends with the last of its tasks
//!    ▲               │
//!    └── gone, or given up: another comes
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use celeriac::Json;
use celeriac::task::{Concluded, Context, Executor, ForeignCall, ForeignTask, Ran, Seat, Verdict};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{self, Child};
use crate::frame;
use crate::link::{Answer, Asked, Conversation, Link};
use crate::manifest::Manifest;
use crate::pool::{BIRTH_PAUSE, BIRTH_PAUSE_LONGEST, PoolOptions};
use crate::report::{self, Reports};
use crate::zygote::{ChildOptions, Zygote};

/// One child with many seats, and those that are on their way out.
pub struct Crowd {
    inner: Arc<Inner>,
}

struct Inner {
    zygote: Arc<Zygote>,
    kind: &'static str,
    tasks: BTreeMap<Arc<str>, Arc<ForeignTask>>,
    stores: bool,
    state: Mutex<State>,
    seats: Arc<Semaphore>,
    /// The way to the child that is there.
    child: watch::Sender<Option<Arc<Link>>>,
    options: ChildOptions,
    birth_patience: Duration,
    closing: CancellationToken,
    /// What looks after children.
    keepers: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    size: usize,
    /// Seats to be taken away when they are given back.
    owed: usize,
    /// Process ids of all children.
    pids: Vec<u32>,
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("kind", &self.inner.kind).finish_non_exhaustive()
    }
}

impl Crowd {
    /// Has the child forked; `kind` is `threads` or `asyncio`. Of the options it has its size, and what one child is to be.
    #[must_use]
    pub fn start(
        zygote: Arc<Zygote>,
        manifest: &Manifest,
        kind: &'static str,
        options: &PoolOptions,
    ) -> Arc<Self> {
        let PoolOptions { size, leaves_results, birth_patience, .. } = *options;
        let inner = Arc::new(Inner {
            zygote,
            kind,
            tasks: manifest.foreign_tasks(),
            stores: !manifest.results_are_ours(),
            state: Mutex::new(State { size, ..State::default() }),
            seats: Arc::new(Semaphore::new(size)),
            child: watch::Sender::new(None),
            options: ChildOptions { leaves_results, pool: kind },
            birth_patience,
            closing: CancellationToken::new(),
            keepers: TaskTracker::new(),
        });
        inner.keepers.spawn_on(Arc::clone(&inner).keep(), &Handle::current());
        Arc::new(Self { inner })
    }

    /// Tells the child to go, which does nothing any more, and lets go of the zygote.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.keepers.close();
        self.inner.keepers.wait().await;
        self.inner.zygote.close().await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one child there that takes tasks.
    async fn keep(self: Arc<Self>) {
        let mut pause = BIRTH_PAUSE;
        while !self.closing.is_cancelled() {
            let coming = child::born(&self.zygote, &self.options, self.birth_patience);
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
        }
    }

    /// Lends seats in a child until it takes no more tasks.
    async fn serve(self: &Arc<Self>, child: Child) {
        let (link, frames) = Link::new(child.pid);
        let conversation = Conversation::new(Arc::clone(&link), child, frames);
        self.lock().pids.push(link.pid);
        self.child.send_replace(Some(Arc::clone(&link)));
        let inner = Arc::clone(self);
        let pid = link.pid;
        self.keepers.spawn(async move {
            conversation.run(|| inner.lock().size, inner.closing.clone()).await;
            inner.lock().pids.retain(|known| *known != pid);
        });
        link.given_up.cancelled().await;
        self.child.send_replace(None);
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
        Some(Box::new(Place { link, seat }))
    }

    fn stores(&self) -> bool {
        self.inner.stores
    }

    fn resize(&self, size: usize) {
        self.inner.size(size);
    }

    fn figures(&self) -> Vec<(&'static str, Json)> {
        let json = |value: serde_json::Value| Json::from_value(&value).unwrap_or_default();
        let pids = self.inner.lock().pids.clone();
        vec![
            ("implementation", json(format!("celeriac-python:{}", self.inner.kind).into())),
            ("processes", json(pids.into())),
            ("zygote", json(self.inner.zygote.pid().into())),
        ]
    }
}

/// A seat in the child.
struct Place {
    link: Arc<Link>,
    seat: OwnedSemaphorePermit,
}

/// Leaves a call that has not ended, when dropped.
struct Leave {
    link: Arc<Link>,
    call: u32,
    grace: Duration,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.link.leave(self.call, self.grace);
    }
}

#[async_trait]
impl Seat for Place {
    fn pid(&self) -> u32 {
        self.link.pid
    }

    async fn run(self: Box<Self>, call: ForeignCall, cx: Context) -> Ran {
        let Self { link, seat } = *self;
        let Some(asked) = link.ask(frame::TASK, seat, |out| child::write_task(out, &call)).await else {
            return Ran::NotBegun;
        };
        let Asked { number, mut answer, reports: mut queue } = asked;
        let grace = cx.app().config().worker_revoke_grace;
        let _leave = Leave { link: Arc::clone(&link), call: number, grace };
        let mut reports = Reports::new(&cx, number);
        let (mut asked, mut told) = (false, false);
        loop {
            tokio::select! {
                biased;
                answer = reports.done(), if reports.is_busy() => {
                    if let Some(answer) = answer {
                        link.send(answer).await;
                    }
                }
                Some(found) = queue.next(), if !reports.is_busy() => {
                    reports.hear(&found, &mut queue);
                }
                // After all that it has reported.
                answer = &mut answer, if !reports.is_busy() => return match answer {
                    Ok(Answer::End(payload)) => child::end(payload).unwrap_or_else(|why| Ran::Lost { why }),
                    Ok(Answer::Lost(why)) => Ran::Lost { why },
                    Ok(Answer::HandedBack(why)) => Ran::HandedBack { why },
                    Err(_) => Ran::Lost { why: "Worker exited prematurely.".to_owned() },
                },
                cancelled = cx.cancelled(), if !asked => {
                    asked = true;
                    link.send(report::cancel(number, cancelled.0)).await;
                }
                reason = cx.stopped(), if !told => {
                    told = true;
                    link.send(report::cancel(number, reason)).await;
                }
            }
        }
    }

    async fn conclude(self: Box<Self>, call: ForeignCall, verdict: Verdict) -> Result<Concluded, String> {
        let Self { link, seat } = *self;
        let gone = || "the Python process is gone".to_owned();
        let verdict = child::verdict(&verdict)?;
        let asked =
            link.ask(frame::CONCLUDE, seat, |out| child::write_conclusion(out, &verdict, &call)).await;
        match asked.ok_or_else(gone)?.answer.await {
            Ok(Answer::End(payload)) => child::concluded(&payload),
            Ok(Answer::Lost(why) | Answer::HandedBack(why)) => Err(why),
            Err(_) => Err(gone()),
        }
    }
}
