//! Following logs: on memory and on a file that another application writes, through outages, trimming and second lives.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac::backend::{Backend, FeedRecord, LogPage, LogRecord, ReadyChord, Record, Recorded, Watch};
use celeriac::broker::{Reserve, Routed};
use celeriac::clock::SystemClock;
use celeriac::event::{Event, Follow};
use celeriac::id::{GroupId, QueueName, WorkerName};
use celeriac::memory::MemoryStore;
use celeriac::protocol::{RawMessage, ResultMeta};
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::{self, Store, Then, Transaction};
use celeriac::testing::{FaultPlan, Faulty};
use celeriac::{Celeriac, Error, Json, State, TaskId, Timestamp};
use tokio::sync::Notify;

use crate::support::PATIENCE;

async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call).await.expect("nothing woke this call")
}

async fn app_of(store: Store) -> Celeriac {
    Celeriac::builder().store(store).connect().await.unwrap()
}

fn memory() -> Store {
    Store::of(MemoryStore::new(SystemClock::shared()))
}

async fn introduce(app: &Celeriac, id: &TaskId) {
    let results = vec![ResultMeta::new(id, State::Started, Json::null())];
    app.store().backend.record(vec![Record { results, ..Record::default() }]).await.unwrap();
}

fn line(id: &TaskId, event: &str, data: &str) -> LogRecord {
    LogRecord { task_id: id.clone(), event: event.into(), data: Json::string(data) }
}

async fn append(app: &Celeriac, log: Vec<LogRecord>) {
    app.store().backend.record(vec![Record { log, ..Record::default() }]).await.unwrap();
}

/// Ends a task as workers do, or with `said` false as a program does that writes no logs.
async fn end(app: &Celeriac, id: &TaskId, said: bool) {
    let results = vec![ResultMeta::new(id, State::Success, Json::string("value"))];
    let log = if said { vec![line(id, "end", "said")] } else { Vec::new() };
    app.store().backend.record(vec![Record { results, log, ..Record::default() }]).await.unwrap();
}

/// Everything until the end, whose positions must follow each other.
async fn rest(follow: &mut Follow) -> Vec<Arc<Event>> {
    let mut all: Vec<Arc<Event>> = Vec::new();
    let mut position = follow.position();
    while let Some(batch) = soon(follow.next()).await.unwrap() {
        assert!(!batch.is_empty());
        for event in &batch {
            position += 1;
            assert_eq!(event.position(), position, "a gap or a repeat");
        }
        assert_eq!(follow.position(), position);
        all.extend(batch);
    }
    assert!(follow.is_over());
    all
}

/// Follows that begin at any position and any time, are slow or given up, of logs that grow by any amounts.
async fn follow_at_random(reading: Celeriac, writing: Celeriac) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..6 {
        let id = TaskId::from(format!("task-{round}"));
        introduce(&writing, &id).await;
        let records = random.u64(1..1_500);
        let mut follows = tokio::task::JoinSet::new();
        let mut written = 0;
        while written < records {
            for _ in 0..random.usize(0..4) {
                let after = if random.bool() { Some(random.u64(0..=written)) } else { None };
                let (reading, id, mut random) = (reading.clone(), id.clone(), random.fork());
                follows.spawn(async move {
                    let mut follow = soon(reading.follow(&id, after)).await.unwrap();
                    let mut position = after.unwrap_or(0);
                    assert_eq!(follow.position(), position);
                    loop {
                        for _ in 0..random.u32(0..50) {
                            tokio::task::yield_now().await;
                        }
                        // A call given up half-way loses nothing.
                        if random.u8(0..4) == 0 {
                            tokio::select! {
                                biased;
                                () = tokio::task::yield_now() => continue,
                                batch = follow.next() => {
                                    let Some(batch) = batch.unwrap() else { return position };
                                    position += batch.len() as u64;
                                    assert_eq!(batch[batch.len() - 1].position(), position);
                                }
                            }
                        }
                        let Some(batch) = soon(follow.next()).await.unwrap() else { return position };
                        for event in batch {
                            position += 1;
                            assert_eq!(event.position(), position, "a gap or a repeat");
                            assert_eq!(event.entry().data, Json::string(&position.to_string()));
                        }
                    }
                });
            }
            let some = random.u64(1..40).min(records - written);
            let lines = (written + 1..=written + some).map(|n| line(&id, "token", &n.to_string()));
            append(&writing, lines.collect()).await;
            written += some;
        }
        let last = (records + 1).to_string();
        let results = vec![ResultMeta::new(&id, State::Success, Json::null())];
        let log = vec![line(&id, "end", &last)];
        writing.store().backend.record(vec![Record { results, log, ..Record::default() }]).await.unwrap();
        while let Some(position) = soon(follows.join_next()).await {
            assert_eq!(position.unwrap(), records + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_memory_is_followed_without_gap_or_repeat() {
    let app = app_of(memory()).await;
    follow_at_random(app.clone(), app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_another_process_writes_is_followed_without_gap_or_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/celeriac.db", folder.path().display());
    let (reading, writing) = (Celeriac::connect(&url).await.unwrap(), Celeriac::connect(&url).await.unwrap());
    follow_at_random(reading, writing).await;
}

/// A hundred who follow one task read it once between them, and the last who leaves ends the reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_follow_a_task_share_one_tail() {
    const FOLLOWERS: usize = 100;
    const RECORDS: usize = 300;
    let plan = FaultPlan::none();
    let app = app_of(Faulty::new(memory(), &plan)).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "0")]).await;
    let mut follows = Vec::new();
    for _ in 0..FOLLOWERS {
        let mut follow = app.follow(&id, None).await.unwrap();
        assert_eq!(soon(follow.next()).await.unwrap().unwrap().len(), 1);
        follows.push(follow);
    }
    for n in 0..RECORDS {
        append(&app, vec![line(&id, "token", &n.to_string())]).await;
        let mut seen: Vec<Arc<Event>> = Vec::new();
        for follow in &mut follows {
            while follow.position() < n as u64 + 2 {
                seen.extend(soon(follow.next()).await.unwrap().unwrap().pop());
            }
        }
        assert_eq!(seen.len(), FOLLOWERS);
        assert!(seen.iter().all(|event| Arc::ptr_eq(event, &seen[0])), "they share the record itself");
    }
    let reads = plan.calls_of("log");
    assert!(reads <= 3 * RECORDS as u64 + 10, "{reads} reads");

    follows.truncate(1);
    append(&app, vec![line(&id, "token", "more")]).await;
    soon(follows[0].next()).await.unwrap().unwrap();
    drop(follows);
    // The loop is told to stop, and gets the time for it.
    let mut calls = 0;
    soon(async {
        while calls != plan.calls() {
            calls = plan.calls();
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    append(&app, vec![line(&id, "token", "to nobody")]).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(plan.calls(), calls + 1, "nobody follows, and nobody reads");
}

/// Whoever takes nothing for long gets all of it later, and what it did not take is not kept for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slow_are_exact_and_cost_nothing() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    let mut slow = app.follow(&id, Some(0)).await.unwrap();
    let mut quick = app.follow(&id, Some(0)).await.unwrap();
    let mut kept = Vec::new();
    let piece = "x".repeat(10_000);
    for n in 0..500 {
        append(&app, vec![line(&id, "token", &format!("{n} {piece}"))]).await;
        for event in soon(quick.next()).await.unwrap().unwrap() {
            kept.push(Arc::downgrade(&event));
        }
    }
    let kept = kept.iter().filter(|event| event.strong_count() > 0).count();
    assert!(kept < 120, "{kept} records of 20 kB are kept of five hundred");
    end(&app, &id, true).await;
    let all = rest(&mut slow).await;
    assert_eq!(all.len(), 501);
    for (n, event) in all[..500].iter().enumerate() {
        assert!(event.entry().data.as_string().unwrap().starts_with(&format!("{n} ")));
    }
}

/// The result of a task may be larger than all that is kept of a log: those who wait for it share it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_end_is_shared() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "1")]).await;
    let mut follows = Vec::new();
    for _ in 0..10 {
        let mut follow = app.follow(&id, None).await.unwrap();
        soon(follow.next()).await.unwrap().unwrap();
        follows.push(follow);
    }
    let results = vec![ResultMeta::new(&id, State::Success, Json::null())];
    let log = vec![line(&id, "end", &"x".repeat(4 << 20))];
    app.store().backend.record(vec![Record { results, log, ..Record::default() }]).await.unwrap();
    let mut ends = Vec::new();
    for follow in &mut follows {
        ends.extend(rest(follow).await);
    }
    assert_eq!(ends.len(), 10);
    assert!(ends.iter().all(|end| Arc::ptr_eq(end, &ends[0])), "each has a copy of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { log_bound: 10, ..SqliteOptions::default() };
    let store = SqliteStore::open(folder.path().join("celeriac.db"), options, SystemClock::shared()).unwrap();
    let store = Store::of(store);
    let app = app_of(store.clone()).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "1")]).await;
    let mut overtaken = app.follow(&id, Some(0)).await.unwrap();
    soon(overtaken.next()).await.unwrap().unwrap();
    for n in 2..=30 {
        append(&app, vec![line(&id, "token", &n.to_string())]).await;
    }
    // Of another application, since what is followed already is still known in this one.
    let app = app_of(store).await;
    let first = |error: Error| match error {
        Error::Trimmed { first, .. } => first,
        other => panic!("{other}"),
    };
    assert_eq!(first(app.follow(&id, Some(0)).await.unwrap_err()), 21);
    assert_eq!(first(app.log(&id, Some(19), 5).await.unwrap_err()), 21);
    assert_eq!(app.log(&id, Some(20), 5).await.unwrap().entries.len(), 5);
    assert_eq!(app.log(&id, None, 5).await.unwrap().entries[0].position, 21);
    let mut kept = app.follow(&id, None).await.unwrap();
    assert_eq!(kept.position(), 20);
    end(&app, &id, true).await;
    assert_eq!(rest(&mut kept).await.len(), 11);
    // The ring may still have had what the store has not; then the follow has seen it all.
    let outcome = soon(async {
        loop {
            match overtaken.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return overtaken.position(),
                Err(error) => return first(error),
            }
        }
    });
    let outcome = outcome.await;
    assert!(matches!(outcome, 22 | 31), "{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unknown_and_the_forgotten_are_said() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    assert!(matches!(app.follow(&id, None).await, Err(Error::UnknownTask(_))));
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "1")]).await;
    end(&app, &id, true).await;
    let mut follow = app.follow(&id, Some(0)).await.unwrap();
    // What it has read it gives; then the log ends for it, forgotten or not.
    app.store().backend.forget(std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(rest(&mut follow).await.len(), 2);
    assert!(matches!(app.follow(&id, Some(2)).await, Err(Error::UnknownTask(_))));
}

/// A task whose end left no record ends its log all the same, also while it is followed.
#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_wrote_is_made() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "1")]).await;
    let mut before = app.follow(&id, None).await.unwrap();
    assert_eq!(before.next().await.unwrap().unwrap().len(), 1);
    end(&app, &id, false).await;
    let ending = rest(&mut before).await;
    let end = r#"{"state": "SUCCESS", "result": "value"}"#;
    assert_eq!((ending.len(), ending[0].position(), ending[0].entry().data.as_str()), (1, 2, end));

    let mut after = app.follow(&id, Some(0)).await.unwrap();
    let all = rest(&mut after).await;
    assert_eq!((all.len(), all[1].entry().data.as_str()), (2, end));
    let mut at_last = app.follow(&id, Some(1)).await.unwrap();
    assert!(!at_last.is_over());
    assert_eq!(rest(&mut at_last).await.len(), 1);
    assert!(app.follow(&id, Some(2)).await.unwrap().is_over(), "it was given the end");
}

/// The message of a task.
fn message(id: &TaskId) -> Routed {
    Routed {
        task_id: id.clone(),
        task: "t".into(),
        queue: QueueName::from("q"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: RawMessage { head: "{}".into(), body: bytes::Bytes::from_static(b"[[],{},{}]") },
    }
}

/// Each life of a task that is sent again is a stream of its own in one log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_sent_again_has_another_stream() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    let run = async |text: &str| {
        let store = app.store();
        store.broker.publish(vec![message(&id)]).await.unwrap();
        append(&app, vec![line(&id, "token", text)]).await;
        let request = Reserve {
            worker: WorkerName::from("w"),
            queues: vec![QueueName::from("q")],
            limit: 1,
            lease: Duration::from_secs(20),
            wait: PATIENCE,
            stop: tokio_util::sync::CancellationToken::new(),
        };
        let tag = store.broker.reserve(&request).await.unwrap().remove(0).tag;
        let mut settle = Transaction::fenced(tag, Then::Ack);
        settle.record.results.push(ResultMeta::new(&id, State::Success, Json::null()));
        settle.record.log.push(line(&id, "end", text));
        settle
    };
    let first = run("one").await;
    let mut live = app.follow(&id, Some(0)).await.unwrap();
    app.store().transact.commit(vec![first]).await.unwrap();
    assert_eq!(rest(&mut live).await.len(), 2);
    let mut from_end = app.follow(&id, Some(2)).await.unwrap();
    assert!(from_end.is_over());
    assert!(from_end.next().await.unwrap().is_none());

    let second = run("two").await;
    assert!(from_end.next().await.unwrap().is_none(), "what is over stays over");
    let mut from_start = app.follow(&id, None).await.unwrap();
    let mut from_end = app.follow(&id, Some(2)).await.unwrap();
    assert!(!from_end.is_over());
    app.store().transact.commit(vec![second]).await.unwrap();
    let texts = |events: Vec<Arc<Event>>| -> Vec<String> {
        let text =
            |event: &Arc<Event>| format!("{} {}", event.position(), event.entry().data.as_string().unwrap());
        events.iter().map(text).collect()
    };
    assert_eq!(texts(rest(&mut from_start).await), ["1 one", "2 one"], "up to the end of the first life");
    assert_eq!(texts(rest(&mut from_end).await), ["3 two", "4 two"]);
    assert!(app.follow(&id, Some(4)).await.unwrap().is_over());
}

/// A store that counts the records which are read from it, and lets something happen before a result is.
struct Counting {
    inner: Arc<dyn Backend>,
    read: Arc<AtomicUsize>,
    before_fetch: Mutex<Option<Happening>>,
}

type Happening = Pin<Box<dyn Future<Output = ()> + Send>>;

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").finish_non_exhaustive()
    }
}

macro_rules! passed_on {
    ($(fn $method:ident($($arg:ident: $of:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Backend for Counting {
            async fn log(&self, id: &TaskId, after: u64, limit: usize) -> store::Result<Option<LogPage>> {
                let page = self.inner.log(id, after, limit).await?;
                self.read.fetch_add(page.as_ref().map_or(0, |page| page.entries.len()), Ordering::Relaxed);
                Ok(page)
            }

            async fn fetch(&self, ids: &[TaskId]) -> store::Result<Vec<Option<ResultMeta>>> {
                let happening = self.before_fetch.lock().unwrap().take();
                if let Some(happening) = happening {
                    happening.await;
                }
                self.inner.fetch(ids).await
            }

            $(
                async fn $method(&self, $($arg: $of),*) -> store::Result<$answer> {
                    self.inner.$method($($arg),*).await
                }
            )*
        }
    };
}

passed_on! {
    fn record(records: Vec<Record>) -> Vec<Recorded>;
    fn wait(watch: &Watch, wait: Duration) -> bool;
    fn forget(ids: &[TaskId]) -> ();
    fn sweep(done_before: Timestamp, limit: usize) -> u64;
    fn feed(after: u64, limit: usize) -> Vec<FeedRecord>;
    fn feed_end() -> u64;
    fn step(task_id: &TaskId, name: &str) -> Option<Json>;
    fn chord(group_id: &GroupId) -> Option<ReadyChord>;
    fn ready_chords(limit: usize) -> Vec<GroupId>;
    fn save_group(group_id: &GroupId, tuple: &Json) -> ();
    fn group(group_id: &GroupId) -> Option<Json>;
    fn delete_group(group_id: &GroupId) -> ();
}

/// Whoever begins at the start of a long log reads it about once, however large its records are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_are_not_read_again_and_again() {
    const RECORDS: usize = 400;
    let (store, read) = (memory(), Arc::new(AtomicUsize::new(0)));
    let before_fetch = Mutex::default();
    let counting = Counting { inner: store.backend.clone(), read: read.clone(), before_fetch };
    let app = app_of(Store { backend: Arc::new(counting), ..store }).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    // Large ones, small ones, and large ones again.
    for records in [100, RECORDS - 200, 100] {
        let data = if records == 100 { "x".repeat(100_000) } else { "x".to_owned() };
        append(&app, (0..records).map(|_| line(&id, "token", &data)).collect()).await;
    }
    end(&app, &id, true).await;
    assert_eq!(rest(&mut app.follow(&id, None).await.unwrap()).await.len(), RECORDS + 1);
    let read = read.load(Ordering::Relaxed);
    assert!(read < 4 * RECORDS, "{read} records were read to hand over {RECORDS}");
}

/// No end is made for a task that is sent again between two looks at it.
#[tokio::test(start_paused = true)]
async fn a_task_sent_again_just_now_has_not_ended() {
    for live in [false, true] {
        let store = memory();
        let id = TaskId::from("a");
        let told = Arc::new(Notify::new());
        let sent_again = {
            let (broker, id, told) = (store.broker.clone(), id.clone(), told.clone());
            async move {
                broker.publish(vec![message(&id)]).await.unwrap();
                told.notify_one();
            }
        };
        let before_fetch = Mutex::new(Some(Box::pin(sent_again) as Happening));
        let counting = Counting { inner: store.backend.clone(), read: Arc::default(), before_fetch };
        let app = app_of(Store { backend: Arc::new(counting), ..store }).await;
        introduce(&app, &id).await;
        append(&app, vec![line(&id, "token", "1")]).await;
        let mut follow = None;
        if live {
            follow = Some(app.follow(&id, Some(1)).await.unwrap());
        }
        end(&app, &id, false).await;
        let mut follow = match follow {
            Some(follow) => follow,
            None => app.follow(&id, Some(1)).await.unwrap(),
        };
        assert!(!follow.is_over());
        // Who follows already looks now and then at a log that does not grow.
        let records = async {
            told.notified().await;
            append(&app, vec![line(&id, "token", "2")]).await;
            end(&app, &id, true).await;
        };
        let (records, ()) = tokio::join!(rest(&mut follow), soon(records));
        let texts: Vec<_> = records.iter().map(|event| event.entry().data.as_string().unwrap()).collect();
        assert_eq!(texts, ["2", "said"], "live: {live}");
    }
}

/// An outage of the store is waited for by those who follow, near the end of the log or far from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_waited_for() {
    let (store, plan) = (memory(), FaultPlan::none());
    let writing = app_of(store.clone()).await;
    let app = app_of(Faulty::new(store, &plan)).await;
    let id = TaskId::from("a");
    introduce(&writing, &id).await;
    append(&writing, (1..=1_000).map(|n| line(&id, "token", &n.to_string())).collect()).await;
    let mut near = app.follow(&id, Some(1_000)).await.unwrap();
    let mut far = app.follow(&id, Some(0)).await.unwrap();
    plan.set_outage(true);
    let refused = app.follow(&TaskId::from("b"), None).await.unwrap_err();
    assert!(
        matches!(refused, Error::Store(error) if error.is_transient()),
        "the beginning is not waited for"
    );
    append(&writing, vec![line(&id, "token", "1001")]).await;
    let heal = async {
        let hits = plan.hits();
        while plan.hits() < hits + 4 {
            tokio::task::yield_now().await;
        }
        end(&writing, &id, true).await;
        plan.set_outage(false);
    };
    let (near, far, ()) = soon(async { tokio::join!(rest(&mut near), rest(&mut far), heal) }).await;
    assert_eq!((near.len(), far.len()), (2, 1_002));
}

/// A position that the log has not reached is waited for, and disturbs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_to_come_is_waited_for() {
    let app = app_of(memory()).await;
    let id = TaskId::from("a");
    introduce(&app, &id).await;
    append(&app, vec![line(&id, "token", "1")]).await;
    let mut ahead = app.follow(&id, Some(3)).await.unwrap();
    let mut behind = app.follow(&id, Some(0)).await.unwrap();
    assert_eq!(soon(behind.next()).await.unwrap().unwrap().len(), 1);
    append(&app, (2..=5).map(|n| line(&id, "token", &n.to_string())).collect()).await;
    end(&app, &id, true).await;
    assert_eq!(rest(&mut ahead).await.len(), 3);
    assert_eq!(rest(&mut behind).await.len(), 5);
}
