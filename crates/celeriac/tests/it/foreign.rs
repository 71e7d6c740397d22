//! Tasks of another runtime, whose seats fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use celeriac::protocol::{Json, JsonMap};
use celeriac::task::{
    Concluded, Context, Executor, ForeignCall, ForeignTask, Ran, Seat, TaskOptions, Verdict,
};
use celeriac::{CallOptions, Celeriac, State};
use tokio::sync::Notify;

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
