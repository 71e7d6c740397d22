//! A batch in Redis: one record for all that wait, and nothing lost or doubled for want of the others.

use std::time::Duration;

use bytes::Bytes;
use celeriac::backend::Backend;
use celeriac::broker::{Broker, Reserve, Routed};
use celeriac::calls::Call;
use celeriac::clock::Clock;
use celeriac::protocol::{Json, JsonMap};
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::state::Phase;
use celeriac::store::{Error, Outcome, Transact};
use celeriac::testing::ManualClock;
use celeriac::testing::conformance::batch_of;
use celeriac::{AsyncResult, CallOptions, Celeriac, Signature, TaskId, signature};

use crate::redis::{finished, ids, message, open, phase, request, reserve, until};
use crate::redis_server::RedisServer;
use crate::support::PATIENCE;

fn names(batch: &[Routed]) -> Vec<String> {
    batch.iter().map(|routed| routed.task_id.to_string()).collect()
}

/// How many keys there are of a pattern.
fn count(server: &RedisServer, pattern: &str) -> usize {
    let keys = server.command(&["KEYS", pattern]);
    keys.lines().next().and_then(|line| line.strip_prefix('*')?.parse().ok()).unwrap()
}

/// There is a record for each that was taken, one for the rest, and none at the end.
#[tokio::test]
async fn those_that_wait_have_one_record() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    store.publish(vec![message("so that the queue is declared")]).await.unwrap();
    let first = reserve(&store).await;
    store.commit(first.iter().map(finished).collect()).await.unwrap();
    clock.advance(Duration::from_secs(1));
    while store.sweep(clock.now(), 100).await.unwrap() > 0 {}
    let base = server.number(&["DBSIZE"]);

    let batch = batch_of(300, "t", "q");
    store.publish(batch.clone()).await.unwrap();
    let keys = || ["celeriac:b:*", "celeriac:r:*", "celeriac:t:*"].map(|pattern| count(&server, pattern));
    assert_eq!(keys(), [1, 0, 0]);
    assert_eq!(server.number(&["XLEN", "celeriac:tasks"]), 1);
    let mut some = reserve(&store).await;
    assert_eq!(keys(), [1, 1, some.len()]);
    let mut done = 0;
    while done < batch.len() {
        let deliveries = std::mem::replace(&mut some, reserve(&store).await);
        assert_eq!(ids(&deliveries), names(&batch)[done..done + deliveries.len()]);
        done += deliveries.len();
        let outcomes = store.commit(deliveries.iter().map(finished).collect()).await.unwrap();
        assert!(outcomes.iter().all(Outcome::is_committed), "{outcomes:?}");
    }
    clock.advance(Duration::from_secs(1));
    while store.sweep(clock.now(), 70).await.unwrap() > 0 {}
    assert_eq!(keys(), [0, 0, 0]);
    assert_eq!(server.number(&["XLEN", "celeriac:tasks"]), 0);
    assert_eq!(server.number(&["DBSIZE"]), base);
}

/// What cannot be pushed is not accepted either.
#[tokio::test]
async fn what_cannot_be_pushed_is_refused() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    server.command(&["SET", "q", "no list"]);
    let batch = batch_of(20, "t", "q");
    store.publish(batch.clone()).await.unwrap_err();
    assert_eq!(count(&server, "celeriac:b:*"), 0);
    assert_eq!(phase(&store, batch[0].task_id.as_str()).await, None);
    server.command(&["DEL", "q"]);
    assert!(store.publish(batch.clone()).await.unwrap().is_empty());
    assert_eq!(ids(&reserve(&store).await), names(&batch));
}

/// More than a server takes in one piece is refused before any of it is sent.
#[tokio::test]
async fn what_is_too_large_in_sum_is_refused() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    // One body for all of them: 600 MiB only where they are sent.
    let body = Bytes::from(vec![b'x'; 2 << 20]);
    let apart = (0..300).map(|n| message(&format!("{n}"))).collect();
    for mut messages in [batch_of(300, "t", "q"), apart] {
        messages.iter_mut().for_each(|routed| routed.message.body = body.clone());
        let error = store.publish(messages.clone()).await.unwrap_err();
        let named =
            "the size of 300 messages sent in one step, which could be several, exceeds the bound of 512 MiB";
        assert_eq!(error.to_string(), named);
        assert!(!error.is_transient());
        assert_eq!(server.number(&["LLEN", "q"]), 0);
        messages.truncate(3);
        assert!(store.publish(messages).await.unwrap().is_empty());
        assert_eq!(server.command(&["DEL", "q"]), ":1\r\n");
    }
}

/// One that is too large by itself is named, whatever goes with it.
#[tokio::test]
async fn what_is_too_large_alone_is_named() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let mut messages = vec![message("small"), message("large")];
    messages[1].message.body = Bytes::from(vec![0; 513 << 20]);
    for messages in [messages.clone(), messages.split_off(1)] {
        let error = store.publish(messages).await.unwrap_err();
        assert_eq!(error.to_string(), "the message of task large exceeds the bound of 256 MiB");
    }
    assert_eq!(server.number(&["EXISTS", "q"]), 0);
}

/// A transaction that comes late, after the same messages were sent again, is undone.
#[tokio::test]
async fn a_batch_that_comes_late_is_taken_off_again() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("first")]).await.unwrap();
    let batch = batch_of(20, "t", "q");
    let again: Vec<Routed> = batch.iter().map(|routed| Routed { unique: true, ..routed.clone() }).collect();
    // What both attempts send is the same, so that it does not matter which of them comes late.
    let (one, other) = tokio::join!(store.publish(batch.clone()), store.publish(again));
    let refused = [one.unwrap(), other.unwrap()].concat();
    assert_eq!(refused.iter().map(TaskId::to_string).collect::<Vec<_>>(), names(&batch));
    let expected = [vec!["first".to_owned()], names(&batch)].concat();
    assert_eq!(server.number(&["LLEN", "q"]), expected.len() as i64);
    assert_eq!(ids(&reserve(&store).await), expected);
}

/// Where a list has priorities between Celery's steps, each goes to its place.
#[tokio::test]
async fn a_batch_goes_behind_what_is_more_urgent() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![Routed { priority: 1, ..message("one") }]).await.unwrap();
    let batch = batch_of(20, "t", "q");
    store.publish(batch.clone()).await.unwrap();
    assert_eq!(count(&server, "celeriac:b:*"), 0, "each has a record of its own");
    let expected = [names(&batch), vec!["one".to_owned()]].concat();
    assert_eq!(ids(&reserve(&store).await), expected);
}

/// A server need not know the script.
#[tokio::test]
async fn a_batch_needs_no_script_that_is_known() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for _ in 0..3 {
        server.command(&["SCRIPT", "FLUSH"]);
        let batch = batch_of(20, "t", "q");
        store.publish(batch.clone()).await.unwrap();
        assert_eq!(ids(&reserve(&store).await), names(&batch));
    }
}

/// Who waits is woken.
#[tokio::test]
async fn a_batch_wakes() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    assert!(reserve(&store).await.is_empty());
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.reserve(&Reserve { limit: 5, ..request(PATIENCE) }).await }
    });
    until(|| server.command(&["CLIENT", "LIST"]).matches("name=").count() >= 3).await;
    let batch = batch_of(20, "t", "q");
    store.publish(batch.clone()).await.unwrap();
    assert_eq!(ids(&waiting.await.unwrap().unwrap()), names(&batch)[..5]);
}

/// What a worker of Python's took is known to be gone, and is swept as the rest.
#[tokio::test]
async fn what_python_took_of_a_batch_is_swept() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let batch = batch_of(20, "t", "q");
    store.publish(batch.clone()).await.unwrap();
    // As its transport does, and with a result for the first.
    server.command(&["RPOP", "q", "3"]);
    let meta = format!("celery-task-meta-{}", batch[0].task_id);
    server.command(&["SET", &meta, r#"{"status": "SUCCESS", "result": 1}"#]);
    let first = batch[0].task_id.as_str();
    assert_eq!(phase(&store, first).await, Some(Phase::Queued));
    clock.advance(Duration::from_secs(1));
    // Once to see that they are gone, and once to forget them.
    store.sweep(clock.now(), 100).await.unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(store.sweep(clock.now(), 100).await.unwrap(), 3);
    assert_eq!(phase(&store, first).await, None);
    assert_eq!(server.number(&["EXISTS", &meta]), 0);
    assert_eq!(ids(&reserve(&store).await), names(&batch)[3..]);
}

/// However large: past the bound of a batch by the rules.
#[tokio::test]
async fn a_batch_is_as_large_as_its_ids_are_long() {
    let server = RedisServer::start().await;
    // By the rules so many are seconds of work for the server, and more on a machine that has other things to do.
    let options = RedisOptions { response_timeout: PATIENCE, patience: PATIENCE, ..RedisOptions::default() };
    let store = RedisStore::connect(&server.url(), options, ManualClock::new().shared()).await.unwrap();
    for (size, batches) in [(65_536, 1), (65_537, 1)] {
        store.publish(batch_of(size, "t", "q")).await.unwrap();
        assert_eq!(server.number(&["LLEN", "q"]), size as i64);
        assert_eq!(count(&server, "celeriac:b:*"), batches);
        server.command(&["DEL", "q"]);
    }
}

/// A sweep that looks at so many goes on where it was, be it in the midst of a batch.
#[tokio::test]
async fn a_sweep_gets_past_a_batch_that_waits() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    store.publish(batch_of(5_000, "t", "later")).await.unwrap();
    store.publish(vec![message("behind it")]).await.unwrap();
    let behind = reserve(&store).await;
    store.commit(behind.iter().map(finished).collect()).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let mut sweeps = 0;
    while store.sweep(clock.now(), 100).await.unwrap() == 0 {
        sweeps += 1;
        assert!(sweeps < 20, "it never gets there");
    }
    assert_eq!(phase(&store, "behind it").await, None);
}

/// What a client sends at once goes as a batch: signatures, and calls by name.
#[tokio::test]
async fn clients_send_batches() {
    let server = RedisServer::start().await;
    let app = Celeriac::connect(&server.url()).await.unwrap();
    let signatures: Vec<Signature> = (0..20).map(|_| signature("t", vec![])).collect();
    let results = app.publish_batch(&signatures).await.unwrap();
    assert_eq!(count(&server, "celeriac:b:*"), 1);
    let call = |n: usize| Call {
        task: "t".to_owned(),
        args: vec![Json::from_value(&n).unwrap()],
        kwargs: JsonMap::new(),
        options: CallOptions::default(),
    };
    let sent = app.send_calls((0..20).map(call).collect()).await.unwrap();
    assert_eq!((count(&server, "celeriac:b:*"), count(&server, "celeriac:t:*")), (2, 0));
    assert!(sent.iter().all(|sent| !sent.duplicate));
    // Some with ids of their own, as a key makes: they are told from the others.
    let keyed = |n: usize| {
        let idempotency_key = n.is_multiple_of(2).then(|| format!("{}", n / 4));
        Call { options: CallOptions { idempotency_key, ..CallOptions::default() }, ..call(n) }
    };
    let mixed = app.send_calls((0..40).map(keyed).collect()).await.unwrap();
    assert_eq!(mixed.iter().filter(|sent| sent.duplicate).count(), 10);
    let mut ids: Vec<TaskId> = results.iter().map(AsyncResult::id).collect();
    ids.extend(sent.into_iter().chain(mixed).map(|sent| sent.task_id));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20 + 20 + 30);
    assert_eq!(server.number(&["LLEN", "celery"]), 70);
}

/// A server that is full says so, and keeps nothing of a batch.
#[tokio::test]
async fn a_batch_for_which_there_is_no_room() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let batch = batch_of(20, "t", "q");
    store.publish(vec![message("first")]).await.unwrap();
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = store.publish(batch.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(server.number(&["LLEN", "q"]), 1);
    assert!(store.publish(batch).await.unwrap().is_empty());
    assert_eq!(server.number(&["LLEN", "q"]), 21);
}

/// A server that cannot take it for a while, as one that has just become a replica: it is sent again until it can, as one
/// message is.
#[tokio::test]
async fn a_batch_waits_for_a_server_that_cannot_take_it() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("first")]).await.unwrap();
    let refused = |name: &str| {
        let errors = server.command(&["INFO", "errorstats"]);
        errors.lines().any(|line| line.starts_with(&format!("errorstat_{name}:")))
    };
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let sent = tokio::spawn({
        let store = store.clone();
        async move { store.publish(batch_of(20, "t", "q")).await }
    });
    until(|| refused("READONLY")).await;
    server.command(&["REPLICAOF", "NO", "ONE"]);
    assert!(sent.await.unwrap().unwrap().is_empty());
    assert_eq!(server.number(&["LLEN", "q"]), 21);
}

/// What somebody has deleted of it leaves no place in the order.
#[tokio::test]
async fn a_batch_without_a_record_is_swept() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let batch = batch_of(20, "t", "q");
    store.publish(batch.clone()).await.unwrap();
    let record = format!("celeriac:b:{}", &batch[0].task_id.as_str()[..32]);
    assert_eq!(server.number(&["DEL", &record]), 1);
    assert_eq!(phase(&store, batch[0].task_id.as_str()).await, None);
    store.sweep(clock.now(), 100).await.unwrap();
    assert_eq!(server.number(&["XLEN", "celeriac:tasks"]), 0);
    // Its messages are run as anybody's are of which nothing is known.
    assert_eq!(ids(&reserve(&store).await), names(&batch));
}
