//! The pool: children, each running one task at a time, lent to the worker as seats.
//!
//! ```text
//!  zygote ─fork─► birth ─ready─► idle ◄──────────────┐
//!                   ▲              │ seat()          │ given back
//!                   │              ▼                 │
//!                   └── lost ◄── seat: run, conclude ┴─► retired: told to go
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use celeriac::Json;
use celeriac::task::{Concluded, Context, Executor, ForeignCall, ForeignTask, Ran, Seat, Verdict};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{Aside, Child};
use crate::manifest::Manifest;
use crate::memory;
use crate::zygote::{ChildOptions, Zygote};

/// A child that could not be had is asked for again after this, and then after twice as long, up to the longest.
pub(crate) const BIRTH_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const BIRTH_PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How long a child that does nothing may take to go.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// A child that had nothing to do for so long may go, where the pool scales by itself: Celery's `AUTOSCALE_KEEPALIVE`.
const SCALE_KEEPALIVE: Duration = Duration::from_secs(30);

/// How a pool is to be.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// How many children; with `autoscale` at the start.
    pub size: usize,
    /// Let their number follow what there is to do, between the first and the second.
    pub autoscale: Option<(usize, usize)>,
    /// A child that has run so many tasks is replaced.
    pub max_tasks_per_child: Option<u32>,
    /// A child that has more memory after a task is replaced, in KiB.
    pub max_memory_per_child: Option<u64>,
    /// A child that has more memory in the midst of a task is killed, and the task lost with it, in KiB.
    pub memory_limit_per_child: Option<u64>,
    /// Children leave results to the worker, which stores each together with the acknowledgement: only where the
    /// application's result backend is the worker's store.
    pub leaves_results: bool,
    /// A child that is not ready after this is killed, and asked for again.
    pub birth_patience: Duration,
}

/// The children.
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    zygote: Arc<Zygote>,
    options: PoolOptions,
    tasks: BTreeMap<Arc<str>, Arc<ForeignTask>>,
    stores: bool,
    state: Mutex<State>,
    /// As many permits as there are idle children.
    idle: Semaphore,
    closing: CancellationToken,
    births: TaskTracker,
    /// Where children are looked after: not on the runtime of whoever calls, which may be one of remote control.
    runtime: Handle,
}

#[derive(Debug, Default)]
struct State {
    wanted: usize,
    /// Between how many it may go by itself.
    scale: Option<(usize, usize)>,
    /// Those who have a child lent, or wait for one.
    needed: usize,
    /// The fewest that were idle since somebody last looked.
    spare: usize,
    /// Those that are there or coming.
    alive: usize,
    idle: Vec<Child>,
    /// Process ids by number, of those that are there.
    pids: BTreeMap<u32, u32>,
    counts: Counts,
}

/// What has happened to children.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    started: u64,
    lost: u64,
    killed: u64,
    retired: u64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Pool {
    /// Has the children forked; they come while the caller goes on.
    #[must_use]
    pub fn start(zygote: Arc<Zygote>, manifest: &Manifest, options: PoolOptions) -> Arc<Self> {
        let inner = Arc::new(Inner {
            zygote,
            tasks: manifest.foreign_tasks(),
            stores: !manifest.results_are_ours(),
            state: Mutex::new(State { wanted: options.size, scale: options.autoscale, ..State::default() }),
            options,
            idle: Semaphore::new(0),
            closing: CancellationToken::new(),
            births: TaskTracker::new(),
            runtime: Handle::current(),
        });
        inner.fill();
        inner.spawn(Arc::clone(&inner).shrink());
        Arc::new(Self { inner })
    }

    /// Tells all children to go, which do nothing any more, and lets go of the zygote.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.closing.cancel();
        let idle = std::mem::take(&mut inner.lock().idle);
        for child in idle {
            inner.spawn(child.stop(STOP_PATIENCE));
        }
        inner.births.close();
        inner.births.wait().await;
        inner.zygote.close().await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.births.spawn_on(work, &self.runtime);
    }

    /// Has as many children come as are missing.
    fn fill(self: &Arc<Self>) {
        let mut state = self.lock();
        while state.alive < state.wanted && !self.closing.is_cancelled() {
            state.alive += 1;
            self.spawn(Arc::clone(self).birth());
        }
    }

    /// As many as are needed, where there may be more. Who is idle at the moment says nothing: two may be after it.
    fn stretch(self: &Arc<Self>) {
        let mut state = self.lock();
        if let Some((_, most)) = state.scale
            && state.wanted < state.needed.min(most)
        {
            state.wanted = state.needed.min(most);
            drop(state);
            self.fill();
        }
    }

    /// Lets those go, from time to time, that have had nothing to do since the last time.
    async fn shrink(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SCALE_KEEPALIVE) => {}
                () = self.closing.cancelled() => return,
            }
            let size = {
                let mut state = self.lock();
                let spare = std::mem::replace(&mut state.spare, usize::MAX).min(state.idle.len());
                state.spare = state.idle.len();
                let Some((least, _)) = state.scale else { continue };
                if spare == 0 || state.wanted <= least {
                    continue;
                }
                state.wanted.saturating_sub(spare).max(least)
            };
            tracing::debug!(size, "the pool shrinks by itself");
            self.resize(size);
        }
    }

    fn resize(self: &Arc<Self>, size: usize) {
        let spare = {
            let mut state = self.lock();
            state.wanted = size;
            let mut spare = Vec::new();
            while state.alive > state.wanted
                && let Ok(permit) = self.idle.try_acquire()
            {
                permit.forget();
                let Some(child) = state.idle.pop() else { break };
                state.alive -= 1;
                state.pids.remove(&child.number);
                state.counts.retired += 1;
                spare.push(child);
            }
            spare
        };
        for child in spare {
            self.spawn(child.stop(STOP_PATIENCE));
        }
        self.fill();
    }

    async fn birth(self: Arc<Self>) {
        let prefork = ChildOptions { leaves_results: self.options.leaves_results, pool: "prefork" };
        let mut pause = BIRTH_PAUSE;
        loop {
            let coming = crate::child::born(&self.zygote, &prefork, self.options.birth_patience);
            let found = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = self.zygote.gone() => return,
                found = coming => found,
            };
            match found {
                Ok(child) => {
                    tracing::debug!(pid = child.pid, "a Python process is ready");
                    let mut state = self.lock();
                    state.counts.started += 1;
                    state.pids.insert(child.number, child.pid);
                    drop(state);
                    self.give_back(child);
                    return;
                }
                Err(why) => {
                    tracing::error!(%why, "a Python process did not come up, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.closing.cancelled() => return,
                    }
                    pause = (pause * 2).min(BIRTH_PAUSE_LONGEST);
                }
            }
        }
    }

    /// Takes back a child that does nothing.
    fn give_back(self: &Arc<Self>, child: Child) {
        let mut state = self.lock();
        if child.is_over() {
            drop(state);
            return self.lose(&child);
        }
        if child.replaced || self.closing.is_cancelled() || state.alive > state.wanted {
            if !child.replaced {
                state.alive -= 1;
            }
            state.pids.remove(&child.number);
            state.counts.retired += 1;
            drop(state);
            // Neither has its end to be waited for.
            self.spawn(child.stop(STOP_PATIENCE));
            return;
        }
        state.idle.push(child);
        self.idle.add_permits(1);
    }

    /// A child is gone.
    fn lose(self: &Arc<Self>, child: &Child) {
        let mut state = self.lock();
        if !child.replaced {
            state.alive -= 1;
        }
        state.pids.remove(&child.number);
        state.counts.lost += 1;
        drop(state);
        child.kill();
        self.fill();
    }

    /// Lets another child come to take the place of one that is to go after its next task.
    fn replace(self: &Arc<Self>, child: &mut Child) {
        if !child.replaced {
            child.replaced = true;
            self.lock().alive -= 1;
            self.fill();
        }
    }

    fn aside(self: &Arc<Self>, said: Aside) {
        match said {
            Aside::Modules(modules) => {
                let inner = Arc::clone(self);
                self.spawn(async move { inner.zygote.import(&modules).await });
            }
            // What stores an end that it did not see has nothing going on.
            Aside::Spent => {}
        }
    }
}

#[async_trait]
impl Executor for Pool {
    fn names(&self) -> Vec<Arc<str>> {
        self.inner.tasks.keys().cloned().collect()
    }

    fn task(&self, name: &str) -> Option<Arc<ForeignTask>> {
        self.inner.tasks.get(name).cloned()
    }

    async fn seat(&self) -> Option<Box<dyn Seat>> {
        let need = Need::new(&self.inner);
        loop {
            self.inner.stretch();
            tokio::select! {
                biased;
                () = self.inner.zygote.gone() => return None,
                // It is never closed.
                permit = self.inner.idle.acquire() => permit.ok()?.forget(),
            }
            let child = {
                let mut state = self.inner.lock();
                let child = state.idle.pop();
                state.spare = state.spare.min(state.idle.len());
                child
            };
            let Some(child) = child else { continue };
            if child.is_over() {
                tracing::warn!(pid = child.pid, "a Python process that did nothing is gone");
                self.inner.lose(&child);
                continue;
            }
            let inner = Arc::clone(&self.inner);
            return Some(Box::new(Chair { inner, child: Some(child), busy: false, _need: need }));
        }
    }

    fn stores(&self) -> bool {
        self.inner.stores
    }

    fn resize(&self, size: usize) {
        let size = {
            let mut state = self.inner.lock();
            match &mut state.scale {
                // What remote control adds or takes is the room that there is to go in.
                Some((least, most)) => {
                    *most = size.max(1);
                    *least = (*least).min(*most);
                    state.wanted.min(size)
                }
                None => size,
            }
        };
        self.inner.resize(size);
    }

    fn autoscale(&self, least: usize, most: usize) -> bool {
        let size = {
            let mut state = self.inner.lock();
            let Some(scale) = &mut state.scale else { return false };
            *scale = (least, most);
            state.wanted.clamp(least, most)
        };
        self.inner.resize(size);
        true
    }

    fn figures(&self) -> Vec<(&'static str, Json)> {
        let state = self.inner.lock();
        let json = |value: serde_json::Value| Json::from_value(&value).unwrap_or_default();
        let pids: Vec<u32> = state.pids.values().copied().collect();
        let per_child = self.inner.options.max_tasks_per_child;
        let Counts { started, lost, killed, retired } = state.counts;
        vec![
            ("implementation", json("celeriac-python:prefork".into())),
            ("processes", json(pids.into())),
            ("max-tasks-per-child", json(per_child.map_or_else(|| "N/A".into(), Into::into))),
            ("zygote", json(self.inner.zygote.pid().into())),
            (
                "children",
                json(
                    serde_json::json!({ "started": started, "lost": lost, "killed": killed, "retired": retired }),
                ),
            ),
        ]
    }
}

/// That somebody has a child lent, or waits for one.
struct Need(Arc<Inner>);

impl Need {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.lock().needed += 1;
        Self(Arc::clone(inner))
    }
}

impl Drop for Need {
    fn drop(&mut self) {
        self.0.lock().needed -= 1;
    }
}

/// A child that is lent to the worker. Dropped in the midst of a task, the child is killed.
struct Chair {
    inner: Arc<Inner>,
    child: Option<Child>,
    busy: bool,
    _need: Need,
}

impl Chair {
    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("taken only when the chair is dropped")
    }
}

#[async_trait]
impl Seat for Chair {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid)
    }

    async fn run(mut self: Box<Self>, call: ForeignCall, cx: Context) -> Ran {
        let inner = Arc::clone(&self.inner);
        self.busy = true;
        let child = self.child();
        // Its successor is warm by the time that it goes.
        if inner.options.max_tasks_per_child.is_some_and(|most| child.done + 1 >= most) {
            inner.replace(child);
        }
        let most = inner.options.memory_limit_per_child;
        let mut spent = false;
        let aside = |said| match said {
            Aside::Spent => spent = true,
            said => inner.aside(said),
        };
        let ran = child.run(&call, &cx, most, aside).await;
        self.busy = matches!(ran, Ran::Lost { .. } | Ran::NotBegun);
        if spent && !self.busy {
            inner.replace(self.child());
        }
        if let Some(most) = inner.options.max_memory_per_child
            && !self.busy
        {
            let child = self.child();
            if let Some(found) = memory::resident_kib(child.pid).filter(|found| *found > most) {
                tracing::info!(
                    pid = child.pid,
                    kib = found,
                    most,
                    "a Python process has grown too large, replaced"
                );
                inner.replace(child);
            }
        }
        ran
    }

    async fn conclude(mut self: Box<Self>, call: ForeignCall, verdict: Verdict) -> Result<Concluded, String> {
        let inner = Arc::clone(&self.inner);
        self.busy = true;
        let concluded = self.child().conclude(&call, &verdict, |said| inner.aside(said)).await;
        self.busy = self.child().is_over();
        concluded
    }
}

impl Drop for Chair {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        if self.busy {
            if !child.is_over() {
                self.inner.lock().counts.killed += 1;
            }
            self.inner.lose(&child);
        } else {
            self.inner.give_back(child);
        }
    }
}
