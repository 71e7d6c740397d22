//! A store that fails on purpose.
//!
//! The case that matters most is the lost reply: the write happened, and who asked for it does not know. A test runs
//! its scenario once for each call there is, until one run passes untouched:
//!
//! ```
//! # use celeriac::testing::{Fault, Faulty, FaultPlan};
//! # use celeriac::{clock::SystemClock, memory::MemoryStore, store::Store};
//! # async fn scenario(_store: &Store) {}
//! # async fn sweep() {
//! for nth in 1.. {
//!     let plan = FaultPlan::nth(nth, Fault::ReplyLost);
//!     let store = Faulty::new(Store::of(MemoryStore::new(SystemClock::shared())), &plan);
//!     scenario(&store).await;
//!     if plan.hits() == 0 {
//!         break;
//!     }
//! }
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, FeedRecord, LogPage, ReadyChord, Record, Recorded, Watch};
use crate::broker::{
    Broker, DeadLetter, Delivery, Interrupt, Place, QueueStatus, Reserve, Revocation, Revoke, Routed,
};
use crate::catalog::{Catalog, TaskPage, TaskQuery, TaskRecord};
use crate::clock::Timestamp;
use crate::control::{Announce, Command, Control, Reply, WorkerCard};
use crate::id::{DeliveryTag, GroupId, QueueName, TaskId, WorkerName};
use crate::protocol::{Json, ResultMeta};
use crate::store::{Error, Outcome, Result, Store, Transact, Transaction};

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing happened.
    Before,
    /// It happens, and then fails all the same.
    ReplyLost,
    /// It succeeds after other tasks had a chance to run, this many times.
    Late {
        /// How often it yields before the call.
        yields: u32,
    },
    /// It happens, and succeeds once other tasks had a chance to run, this many times.
    ReplyLate {
        /// How often it yields after the call.
        yields: u32,
    },
}

/// Which calls fail, and a record of those made; shared by all parts of a store and by the test. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    rule: Option<Rule>,
    outage: bool,
    calls: u64,
    by_method: BTreeMap<&'static str, u64>,
    hits: u64,
    last_hit: Option<&'static str>,
}

#[derive(Debug)]
struct Rule {
    method: Option<&'static str>,
    nth: u64,
    fault: Fault,
}

impl FaultPlan {
    /// No faults: calls are only counted.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The call numbered `nth`, counted from 1 over all methods of all three traits.
    #[must_use]
    pub fn nth(nth: u64, fault: Fault) -> Self {
        Self::of(Rule { method: None, nth, fault })
    }

    /// The call numbered `nth`, counted from 1, of one method: `"commit"`, `"reserve"`, …
    #[must_use]
    pub fn nth_of(method: &'static str, nth: u64, fault: Fault) -> Self {
        Self::of(Rule { method: Some(method), nth, fault })
    }

    fn of(rule: Rule) -> Self {
        let plan = Self::default();
        plan.state().rule = Some(rule);
        plan
    }

    /// Begins or ends an outage: while it lasts, every call fails before it happens.
    pub fn set_outage(&self, outage: bool) {
        self.state().outage = outage;
    }

    /// How many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// How many calls of one method were made.
    #[must_use]
    pub fn calls_of(&self, method: &str) -> u64 {
        self.state().by_method.get(method).copied().unwrap_or(0)
    }

    /// How many calls went wrong.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    /// The method that went wrong last.
    #[must_use]
    pub fn last_hit(&self) -> Option<&'static str> {
        self.state().last_hit
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and says what goes wrong with it.
    fn strike(&self, method: &'static str) -> Option<Fault> {
        let mut state = self.state();
        state.calls += 1;
        let of_method = state.by_method.entry(method).or_default();
        *of_method += 1;
        let of_method = *of_method;
        let by_rule = state.rule.as_ref().and_then(|rule| {
            let number = match rule.method {
                None => state.calls,
                Some(name) if name == method => of_method,
                Some(_) => return None,
            };
            (number == rule.nth).then_some(rule.fault)
        });
        let fault = if state.outage { Some(Fault::Before) } else { by_rule };
        if fault.is_some() {
            state.hits += 1;
            state.last_hit = Some(method);
        }
        fault
    }

    async fn call<T>(&self, method: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.strike(method) {
            None => call.await,
            Some(Fault::Before) => Err(Error::unavailable(method, Injected("before it happened"))),
            Some(Fault::ReplyLost) => {
                call.await?;
                Err(Error::unavailable(method, Injected("after it happened")))
            }
            Some(Fault::Late { yields }) => {
                let_others_run(yields).await;
                call.await
            }
            Some(Fault::ReplyLate { yields }) => {
                let answer = call.await;
                let_others_run(yields).await;
                answer
            }
        }
    }
}

async fn let_others_run(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

#[derive(Debug)]
struct Injected(&'static str);

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a fault injected {}", self.0)
    }
}

impl std::error::Error for Injected {}

/// Makes faulty stores.
#[derive(Debug)]
pub struct Faulty;

impl Faulty {
    /// `store`, whose calls go wrong as `plan` has it.
    #[expect(clippy::new_ret_no_self, reason = "a store of faulty parts is a store like any other")]
    #[must_use]
    pub fn new(store: Store, plan: &FaultPlan) -> Store {
        Store {
            broker: Arc::new(FaultyBroker { inner: store.broker, plan: plan.clone() }),
            backend: Arc::new(FaultyBackend { inner: store.backend, plan: plan.clone() }),
            transact: Arc::new(FaultyTransact { inner: store.transact, plan: plan.clone() }),
            catalog: Arc::new(FaultyCatalog { inner: store.catalog, plan: plan.clone() }),
            control: Arc::new(FaultyControl { inner: store.control, plan: plan.clone() }),
        }
    }
}

/// A broker whose calls go wrong as planned.
#[derive(Debug)]
pub struct FaultyBroker {
    inner: Arc<dyn Broker>,
    plan: FaultPlan,
}

/// A backend whose calls go wrong as planned.
#[derive(Debug)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    plan: FaultPlan,
}

/// An atomic step that goes wrong as planned.
#[derive(Debug)]
pub struct FaultyTransact {
    inner: Arc<dyn Transact>,
    plan: FaultPlan,
}

/// A catalog whose calls go wrong as planned.
#[derive(Debug)]
pub struct FaultyCatalog {
    inner: Arc<dyn Catalog>,
    plan: FaultPlan,
}

/// A control whose calls go wrong as planned.
#[derive(Debug)]
pub struct FaultyControl {
    inner: Arc<dyn Control>,
    plan: FaultPlan,
}

macro_rules! through_the_plan {
    ($trait:ident for $type:ident {
        $(fn $method:ident($($arg:ident: $of:ty),*) -> $answer:ty;)*
        $(plain $plain:item)?
    }) => {
        #[async_trait]
        impl $trait for $type {
            $($plain)?
            $(
                async fn $method(&self, $($arg: $of),*) -> Result<$answer> {
                    self.plan.call(stringify!($method), self.inner.$method($($arg),*)).await
                }
            )*
        }
    };
}

through_the_plan! {
    Broker for FaultyBroker {
        fn publish(messages: Vec<Routed>) -> Vec<TaskId>;
        fn reserve(request: &Reserve) -> Vec<Delivery>;
        fn extend(tags: &[DeliveryTag], lease: Duration) -> Vec<DeliveryTag>;
        fn ack(tags: &[DeliveryTag]) -> Vec<DeliveryTag>;
        fn requeue(tags: &[DeliveryTag], due: Option<Timestamp>, counted: bool) -> Vec<DeliveryTag>;
        fn bury(tag: &DeliveryTag, reason: &str) -> bool;
        fn begin(tags: &[DeliveryTag]) -> Vec<DeliveryTag>;
        fn restore() -> u64;
        fn revoke(request: &Revoke) -> Vec<Revocation>;
        fn interrupts(worker: &WorkerName, known: &[Interrupt], wait: Duration) -> Vec<Interrupt>;
        fn locate(ids: &[TaskId]) -> Vec<Option<Place>>;
        fn queues() -> Vec<QueueStatus>;
        fn pause(queue: &QueueName, paused: bool) -> ();
        fn purge(queue: &QueueName) -> Vec<TaskId>;
        fn dead(after: u64, limit: usize) -> Vec<DeadLetter>;
        fn revive(ids: &[TaskId]) -> Vec<TaskId>;
        fn drop_dead(ids: &[TaskId]) -> Vec<TaskId>;
    }
}

through_the_plan! {
    Backend for FaultyBackend {
        fn record(records: Vec<Record>) -> Vec<Recorded>;
        fn fetch(ids: &[TaskId]) -> Vec<Option<ResultMeta>>;
        fn wait(watch: &Watch, wait: Duration) -> bool;
        fn forget(ids: &[TaskId]) -> ();
        fn sweep(done_before: Timestamp, limit: usize) -> u64;
        fn log(task_id: &TaskId, after: u64, limit: usize) -> Option<LogPage>;
        fn feed(after: u64, limit: usize) -> Vec<FeedRecord>;
        fn feed_end() -> u64;
        fn step(task_id: &TaskId, name: &str) -> Option<Json>;
        fn chord(group_id: &GroupId) -> Option<ReadyChord>;
        fn ready_chords(limit: usize) -> Vec<GroupId>;
        fn save_group(group_id: &GroupId, tuple: &Json) -> ();
        fn group(group_id: &GroupId) -> Option<Json>;
        fn delete_group(group_id: &GroupId) -> ();
    }
}

through_the_plan! {
    Catalog for FaultyCatalog {
        fn tasks(query: &TaskQuery) -> TaskPage;
        fn task(task_id: &TaskId) -> Option<TaskRecord>;
        // It goes on over every failure.
        plain async fn observe(&self, stop: &CancellationToken) {
            self.inner.observe(stop).await;
        }
    }
}

through_the_plan! {
    Control for FaultyControl {
        fn beat(card: &WorkerCard) -> ();
        fn leave(worker: &WorkerName) -> ();
        fn workers() -> Vec<WorkerCard>;
        fn send(command: &Command) -> ();
        fn commands_end() -> u64;
        fn commands(worker: &WorkerName, after: u64, wait: Duration) -> Vec<(u64, Command)>;
        fn reply(ticket: &str, reply: &Reply) -> ();
        fn replies(ticket: &str, enough: usize, wait: Duration) -> Vec<Reply>;
        fn note_revoked(ids: &[TaskId]) -> ();
        fn noted_revoked() -> Vec<TaskId>;
        // What is announced is heard or not: nothing depends on it.
        plain fn announcer(&self) -> Option<&dyn Announce> {
            self.inner.announcer()
        }
    }
}

#[async_trait]
impl Transact for FaultyTransact {
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        self.plan.call("commit", self.inner.commit(transactions)).await
    }

    fn is_atomic(&self) -> bool {
        self.inner.is_atomic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::memory::MemoryStore;

    fn faulty(plan: &FaultPlan) -> Store {
        Faulty::new(Store::of(MemoryStore::new(SystemClock::shared())), plan)
    }

    async fn save(store: &Store) -> Result<()> {
        store.backend.save_group(&GroupId::from("g"), &Json::null()).await
    }

    #[tokio::test]
    async fn a_call_that_fails_before_did_nothing() {
        let plan = FaultPlan::nth(1, Fault::Before);
        let store = faulty(&plan);
        assert!(save(&store).await.unwrap_err().is_transient());
        assert_eq!(store.backend.group(&GroupId::from("g")).await.unwrap(), None);
        assert_eq!((plan.calls(), plan.hits(), plan.last_hit()), (2, 1, Some("save_group")));
    }

    #[tokio::test]
    async fn a_call_whose_reply_is_lost_happened() {
        let plan = FaultPlan::nth_of("save_group", 1, Fault::ReplyLost);
        let store = faulty(&plan);
        store.broker.restore().await.unwrap();
        assert!(save(&store).await.unwrap_err().is_transient());
        assert_eq!(store.backend.group(&GroupId::from("g")).await.unwrap(), Some(Json::null()));
        assert_eq!(plan.calls_of("restore"), 1);
    }

    #[tokio::test]
    async fn a_late_call_lets_others_go_first() {
        let plan = FaultPlan::nth(1, Fault::Late { yields: 3 });
        let store = faulty(&plan);
        let (saved, found) =
            tokio::join!(save(&store), async { store.backend.group(&GroupId::from("g")).await });
        saved.unwrap();
        assert_eq!(found.unwrap(), None);
    }

    #[tokio::test]
    async fn an_outage_ends_when_told() {
        let plan = FaultPlan::none();
        let store = faulty(&plan);
        plan.set_outage(true);
        assert!(save(&store).await.is_err());
        assert!(store.broker.restore().await.is_err());
        plan.set_outage(false);
        save(&store).await.unwrap();
    }
}
