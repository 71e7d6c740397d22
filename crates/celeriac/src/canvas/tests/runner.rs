//! A worker of a few lines over the store in memory, which does everything in an order chosen by chance.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Given, Planner, Router, after_failure, after_success, fire, plan};
use super::build::{Ids, now, planner};
use super::model::{End, Seen, returns};
use crate::broker::{Delivery, Reserve};
use crate::clock::{Clock, Timestamp};
use crate::id::{GroupId, QueueName, TaskId, WorkerName};
use crate::memory::MemoryStore;
use crate::protocol::{Exception, Json, Message, ResultMeta, Signature};
use crate::state::State;
use crate::store::{Outcome, Store, Then, Transaction};

/// More than any canvas of the tests takes.
const STEPS_MAX: usize = 100_000;

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        now()
    }
}

/// Runs a canvas to its end and says what was to be seen, and how many chords there were.
pub(super) async fn run(signature: &Signature, random: fastrand::Rng) -> (Seen, usize) {
    let store = Store::of(MemoryStore::new(Arc::new(Stopped)));
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let mut runner = Runner {
        store,
        cx: planner(&router, &fresh),
        random,
        held: Vec::new(),
        ready: Vec::new(),
        opened: Vec::new(),
        fired: 0,
        seen: Seen::default(),
    };
    runner.all(signature).await;
    (runner.seen, runner.fired)
}

struct Runner<'a> {
    store: Store,
    cx: Planner<'a>,
    random: fastrand::Rng,
    /// Reserved and not begun.
    held: Vec<Delivery>,
    /// Chords told to be ready.
    ready: Vec<GroupId>,
    opened: Vec<GroupId>,
    fired: usize,
    seen: Seen,
}

impl Runner<'_> {
    async fn all(&mut self, signature: &Signature) {
        let plan = plan(signature, Given::default(), &self.cx).unwrap();
        let mut transaction = Transaction::publish(plan.publish);
        transaction.record.chords = plan.chords;
        self.commit(transaction).await;
        for _ in 0..STEPS_MAX {
            let idle = self.reserve().await;
            match (self.held.len(), self.ready.len()) {
                (0, 0) if idle => return self.check_nothing_is_left().await,
                (0, 0) => {}
                (0, _) => self.fire().await,
                (_, 0) => self.execute().await,
                _ if self.random.bool() => self.fire().await,
                _ => self.execute().await,
            }
        }
        panic!("it does not end");
    }

    /// Takes a few messages; says whether there were none.
    async fn reserve(&mut self) -> bool {
        let request = Reserve {
            worker: WorkerName::from("w"),
            queues: vec![QueueName::from("celery")],
            limit: self.random.usize(1..5),
            lease: Duration::from_secs(60),
            wait: Duration::ZERO,
            stop: tokio_util::sync::CancellationToken::new(),
        };
        let deliveries = self.store.broker.reserve(&request).await.unwrap();
        let none = deliveries.is_empty();
        self.held.extend(deliveries);
        none
    }

    async fn execute(&mut self) {
        let delivery = self.held.swap_remove(self.random.usize(0..self.held.len()));
        let message = Message::decode(&delivery.message).unwrap();
        let result = self.call(&message);
        let mut transaction = Transaction::fenced(delivery.tag, Then::Ack);
        let (state, value, follow) = match result {
            Ok(value) => {
                let follow = after_success(&message, &value, &self.cx).unwrap();
                (State::Success, value, follow)
            }
            Err(exception) => {
                let follow = after_failure(&message, &exception, None, &self.cx);
                assert!(follow.problems.is_empty(), "{:?}", follow.problems);
                (State::Failure, exception.encode(), follow)
            }
        };
        let mut meta = ResultMeta::new(message.headers.id.as_str(), state, value);
        meta.children = Some(follow.children.clone());
        transaction.record.results.push(meta);
        follow.merge_into(&mut transaction);
        self.commit(transaction).await;
    }

    /// What the tasks of the tests do.
    fn call(&mut self, message: &Message) -> Result<Json, Exception> {
        let (name, body) = (&message.headers.task, &message.body);
        let fails = |name: &str| {
            if name.starts_with("fail.") { Err(Exception::builtin("ValueError", name)) } else { Ok(()) }
        };
        if name == "celery.map" || name == "celery.starmap" {
            let inner = Signature::decode(&body.kwargs.get("task").unwrap().clone()).unwrap().task;
            let items = body.kwargs.get("it").unwrap().array_items().unwrap();
            self.seen.calls.push(format!("{inner}*{}", Json::array(&items)));
            fails(&inner)?;
            let values: Vec<Json> = items
                .iter()
                .map(|item| {
                    let args = if name == "celery.map" { Json::array([item]) } else { item.clone() };
                    Json::parse(&returns(&inner, args.as_str()).to_string()).unwrap()
                })
                .collect();
            return Ok(Json::array(&values));
        }
        // Texts are ids, of which the model knows nothing.
        let shown: Vec<String> = body
            .args
            .iter()
            .map(|arg| if arg.as_string().is_some() { "?".to_owned() } else { arg.to_string() })
            .collect();
        let args = format!("[{}]", shown.join(", "));
        self.seen.calls.push(format!("{name}{args}"));
        fails(name)?;
        Ok(Json::parse(&returns(name, &args).to_string()).unwrap())
    }

    async fn fire(&mut self) {
        let group_id = self.ready.swap_remove(self.random.usize(0..self.ready.len()));
        let chord = self.store.backend.chord(&group_id).await.unwrap().expect("it was said to be ready");
        let transaction = fire(&chord, &self.cx).unwrap();
        // Another worker may have seen the same; only one of them fires it.
        let again = transaction.clone();
        self.commit(transaction).await;
        let outcomes = self.store.transact.commit(vec![again]).await.unwrap();
        assert_eq!(outcomes, [Outcome::NotReady]);
        self.fired += 1;
    }

    async fn commit(&mut self, transaction: Transaction) {
        self.opened.extend(transaction.record.chords.iter().map(|chord| chord.group_id.clone()));
        match self.store.transact.commit(vec![transaction]).await.unwrap().remove(0) {
            Outcome::Committed { ready, duplicates } => {
                assert!(duplicates.is_empty(), "sent twice: {duplicates:?}");
                self.ready.extend(ready);
            }
            other => panic!("{other:?}"),
        }
    }

    async fn check_nothing_is_left(&mut self) {
        for queue in self.store.broker.queues().await.unwrap() {
            assert_eq!((queue.ready, queue.delayed, queue.reserved), (0, 0, 0), "{queue:?}");
        }
        assert_eq!(self.fired, self.opened.len(), "each chord that was opened fires: {:?}", self.opened);
        self.seen.calls.sort();
        // Every task that has a label, whether it ran or not.
        let ids: Vec<TaskId> = (0..2_000).map(|label| TaskId::from(format!("k{label}"))).collect();
        for meta in self.store.backend.fetch(&ids).await.unwrap().into_iter().flatten() {
            let end = match meta.state {
                State::Success => End::Success(meta.result.to_string()),
                _ => End::Failure,
            };
            self.seen.ends.insert(meta.task_id.to_string(), end);
        }
    }
}
