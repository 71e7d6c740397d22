//! Tasks of another runtime, whose seats fail or do not come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use celeriac::protocol::{Json, JsonMap};
use celeriac::state::Phase;
use celeriac::task::{
    Concluded, Context, Executor, ForeignCall, ForeignTask, Ran, Seat, TaskOptions, Verdict,
};
use celeriac::{CallOptions, Celeriac, Config, State};
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::control::{phase, tell, until};
use crate::support::{PATIENCE, Running};

/// A runtime whose first process is gone before its task begins, and whose second does not come.
#[derive(Debug, Default)]
struct Failing {
    seats: AtomicUsize,
    waits_again: Notify,
}

#[derive(Debug)]
struct Gone;

#[async_trait]
impl Executor for Failing {
    fn names(&self) -> Vec<Arc<str>> {
        vec![Arc::from("elsewhere")]
    }

    fn task(&self, name: &str) -> Option<Arc<ForeignTask>> {
        (name == "elsewhere").then(|| Arc::new(ForeignTask::new(name, TaskOptions::default())))
    }

    async fn seat(&self) -> Option<Box<dyn Seat>> {
        if self.seats.fetch_add(1, Ordering::SeqCst) == 1 {
            self.waits_again.notify_one();
            std::future::pending::<()>().await;
        }
        Some(Box::new(Gone))
    }

    fn resize(&self, _size: usize) {}

    fn stores(&self) -> bool {
        false
    }

    fn figures(&self) -> Vec<(&'static str, Json)> {
        Vec::new()
    }
}

#[async_trait]
impl Seat for Gone {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    async fn run(self: Box<Self>, _call: ForeignCall, _cx: Context) -> Ran {
        Ran::NotBegun
    }

    async fn conclude(self: Box<Self>, _call: ForeignCall, _verdict: Verdict) -> Result<Concluded, String> {
        Ok(Concluded::Stored)
    }
}

/// A task that waits for a second process, its first one gone, is stopped like any other.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_seat_can_be_stopped() {
    let app = Celeriac::connect("memory://").await.unwrap();
    let executor = Arc::new(Failing::default());
    let worker = Running::start(app.worker().executor(executor.clone()));
    let sent = app.send_task("elsewhere", Vec::new(), JsonMap::new(), CallOptions::default()).await.unwrap();
    tokio::time::timeout(PATIENCE, executor.waits_again.notified()).await.expect("it asks for another seat");
    app.revoke(std::slice::from_ref(&sent.id()), true).await.unwrap();
    assert_eq!(sent.wait(PATIENCE).await.unwrap(), State::Revoked);
    worker.stop().await;
}

/// A runtime with one process, whatever the number of slots.
#[derive(Debug)]
struct Narrow {
    seats: Arc<Semaphore>,
    /// How often a seat was asked for.
    asked: watch::Sender<usize>,
}

#[derive(Debug)]
struct Only(#[expect(dead_code, reason = "held while the task runs")] OwnedSemaphorePermit);

#[async_trait]
impl Executor for Narrow {
    fn names(&self) -> Vec<Arc<str>> {
        vec![Arc::from("elsewhere")]
    }

    fn task(&self, name: &str) -> Option<Arc<ForeignTask>> {
        (name == "elsewhere").then(|| Arc::new(ForeignTask::new(name, TaskOptions::default())))
    }

    async fn seat(&self) -> Option<Box<dyn Seat>> {
        self.asked.send_modify(|asked| *asked += 1);
        Some(Box::new(Only(Arc::clone(&self.seats).acquire_owned().await.ok()?)))
    }

    fn resize(&self, _size: usize) {}

    fn stores(&self) -> bool {
        false
    }

    fn figures(&self) -> Vec<(&'static str, Json)> {
        Vec::new()
    }
}

#[async_trait]
impl Seat for Only {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    async fn run(self: Box<Self>, _call: ForeignCall, cx: Context) -> Ran {
        let reason = cx.stopped().await;
        Ran::Lost { why: format!("stopped: {reason:?}") }
    }

    async fn conclude(self: Box<Self>, _call: ForeignCall, _verdict: Verdict) -> Result<Concluded, String> {
        Ok(Concluded::Stored)
    }
}

/// A task that waits for its seat keeps it while it has a slot, and goes back once there are more tasks than slots: it may
/// have been taken when there were more, and nobody can tell how long those run that are in its way.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_without_a_slot_goes_back() {
    let app = Celeriac::connect("memory://").await.unwrap();
    let executor = Arc::new(Narrow { seats: Arc::new(Semaphore::new(1)), asked: watch::Sender::new(0) });
    let worker = Running::start(app.worker().concurrency(2).executor(executor.clone()));
    let send = || app.send_task("elsewhere", Vec::new(), JsonMap::new(), CallOptions::default());
    let sent = [send().await.unwrap().id(), send().await.unwrap().id()];
    let mut asked = executor.asked.subscribe();
    let both = asked.wait_for(|asked| *asked == 2);
    tokio::time::timeout(PATIENCE, both).await.expect("both ask for a seat").unwrap();
    // Longer than it would wait if it had none.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in &sent {
        assert_eq!(phase(&app, id).await, Phase::Reserved);
    }
    tell(&app, "pool_shrink", json!({ "n": 1 })).await;
    let queued = async || {
        let mut queued = 0;
        for id in &sent {
            queued += usize::from(phase(&app, id).await == Phase::Queued);
        }
        (queued == 1).then_some(())
    };
    until("a task that goes back", queued).await;
    app.revoke(&sent, true).await.unwrap();
    worker.stop().await;
}

/// Where no process can be had, a task goes back for others to run, and the worker takes none until there is a process.
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_seat_goes_back_and_no_other_is_taken() {
    let mut config = Config::default();
    config.worker_seat_timeout = Duration::from_millis(200);
    let app = Celeriac::builder().broker("memory://").config(config).connect().await.unwrap();
    let executor = Arc::new(Narrow { seats: Arc::new(Semaphore::new(0)), asked: watch::Sender::new(0) });
    let worker = Running::start(app.worker().concurrency(1).executor(executor.clone()));
    let send = || app.send_task("elsewhere", Vec::new(), JsonMap::new(), CallOptions::default());
    let first = send().await.unwrap().id();
    let asked = || *executor.asked.borrow();
    let back = async || (asked() == 1 && phase(&app, &first).await == Phase::Queued).then_some(());
    until("a task that goes back", back).await;
    let sent = [first, send().await.unwrap().id()];
    // Longer than it would take to take one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in &sent {
        assert_eq!(phase(&app, id).await, Phase::Queued);
    }
    assert_eq!(asked(), 1);
    executor.seats.add_permits(1);
    let runs = async || (phase(&app, &sent[0]).await == Phase::Reserved && asked() == 2).then_some(());
    until("the task to run here", runs).await;
    app.revoke(&sent, true).await.unwrap();
    worker.stop().await;
}
