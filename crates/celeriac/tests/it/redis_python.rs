//! Python's producers and workers on the same queues: what they write is read, and what they restore is known again.

use std::time::Duration;

use celeriac::backend::{Backend, Record};
use celeriac::broker::{Broker, Reserve, Revocation, Revoke, Routed};
use celeriac::catalog::{Catalog, TaskQuery};
use celeriac::clock::Clock;
use celeriac::id::{QueueName, WorkerName};
use celeriac::protocol::{Json, Message, RawMessage, ResultMeta};
use celeriac::state::Phase;
use celeriac::store::{Then, Transact, Transaction};
use celeriac::testing::ManualClock;
use celeriac::{State, TaskId};

use crate::redis::{
    LEASE, envelope, finish, finished, ids, message, open, phase, request, reserve, tag_of, until,
};
use crate::redis_server::RedisServer;
use crate::support::PATIENCE;

/// What a Python producer pushes wakes who waits, and is reserved, known and settled as ours is, whatever its delivery tag.
#[tokio::test]
async fn python_messages_are_like_ours() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for (id, tag) in [("a", "x".to_owned()), ("b", tag_of("b"))] {
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.reserve(&request(PATIENCE)).await }
        });
        assert_eq!(server.number(&["LPUSH", "q", &envelope(id, &tag)]), 1);
        let deliveries = waiting.await.unwrap().unwrap();
        assert_eq!(ids(&deliveries), [id]);
        let sent = RawMessage::from_envelope(envelope(id, &tag).as_bytes()).unwrap();
        assert_eq!((&deliveries[0].message, deliveries[0].deliveries), (&sent, 1));
        let place = store.locate(&[TaskId::from(id)]).await.unwrap().remove(0).unwrap();
        assert_eq!((place.phase, &*place.task, place.queue.as_str()), (Phase::Reserved, "t", "q"));
        finish(&store, &deliveries[0]).await;
        let key = format!("celery-task-meta-{id}");
        let meta = server.command(&["GET", &key]);
        let told = format!(r#""task_id": "{id}""#);
        assert!(meta.contains(r#"{"status": "SUCCESS", "result": null"#) && meta.contains(&told), "{meta}");
        assert!(server.number(&["TTL", &key]) > 86_000);
        assert_eq!(server.number(&["EXISTS", "unacked", "unacked_index", "celeriac:leases", "q"]), 0);
    }
}

/// Who waits is woken by each push, and not by the slow look that is the net beneath: so many of those would take too long.
#[tokio::test]
async fn each_push_wakes() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let watched = || {
        let stats = server.command(&["INFO", "stats"]);
        let keys = stats.lines().find_map(|line| line.strip_prefix("tracking_total_keys:"));
        keys.and_then(|keys| keys.parse::<u32>().ok()).unwrap()
    };
    let pushes = async {
        for n in 0..20 {
            // Each time another queue, so that one can see the server being asked to watch it.
            let queue = format!("q{n}");
            let before = watched();
            let waiting = tokio::spawn({
                let store = store.clone();
                let request = Reserve { queues: vec![QueueName::from(queue.as_str())], ..request(PATIENCE) };
                async move { store.reserve(&request).await }
            });
            until(|| watched() >= before + 5).await;
            server.number(&["LPUSH", &queue, &envelope(&n.to_string(), &format!("tag-{n}"))]);
            assert_eq!(ids(&waiting.await.unwrap().unwrap()), [n.to_string()]);
        }
    };
    tokio::time::timeout(PATIENCE, pushes).await.expect("pushes wake");
}

/// Lists at Celery's priority steps are read, each message with its own priority.
#[tokio::test]
async fn python_priorities_are_kept() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for (list, priority) in [("q\u{6}\u{16}9", 9), ("q\u{6}\u{16}3", 4), ("q", 0), ("q\u{6}\u{16}6", 6)] {
        let element = envelope(&format!("p{priority}"), &format!("tag-{priority}"));
        let element = element.replace(r#""priority": 0"#, &format!(r#""priority": {priority}"#));
        server.number(&["LPUSH", list, &element]);
    }
    let deliveries = reserve(&store).await;
    assert_eq!(ids(&deliveries), ["p0", "p4", "p6", "p9"]);
    assert_eq!(deliveries.iter().map(|delivery| delivery.priority).collect::<Vec<_>>(), [0, 4, 6, 9]);
}

/// Does what kombu's `_do_restore_message` does with one tag.
fn restore_as_python(server: &RedisServer, delivery_tag: &str, element: &str) {
    assert_eq!(server.number(&["ZREM", "unacked_index", delivery_tag]), 1);
    assert_eq!(server.number(&["HDEL", "unacked", delivery_tag]), 1);
    server.number(&["RPUSH", "q", element]);
}

fn redelivered(id: &str, delivery_tag: &str) -> String {
    envelope(id, delivery_tag)
        .replace(r#""stamps": {}}"#, r#""stamps": {}, "redelivered": true}"#)
        .replace(r#""routing_key": "q"}"#, r#""routing_key": "q", "redelivered": true}"#)
}

/// Whatever we hold lies where Python's workers look for it, in their form.
#[tokio::test]
async fn what_is_held_can_be_restored_by_python() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    let element = server.command(&["LINDEX", "q", "0"]);
    let element = element.split("\r\n").nth(1).unwrap().to_owned();
    let held = reserve(&store).await;
    let entry = server.command(&["HGET", "unacked", &tag_of("a")]);
    assert_eq!(entry.split("\r\n").nth(1).unwrap(), format!(r#"[{element}, "", "q"]"#));
    let score = || -> f64 {
        let score = server.command(&["ZSCORE", "unacked_index", &tag_of("a")]);
        score.split("\r\n").nth(1).unwrap().parse().unwrap()
    };
    // The next whole second.
    let seconds = |clock: &ManualClock| clock.now().as_second() as f64 + 1.0;
    assert_eq!(score(), seconds(&clock));
    clock.advance(Duration::from_secs(7));
    assert!(store.extend(&[held[0].tag.clone()], LEASE).await.unwrap().is_empty());
    assert_eq!(score(), seconds(&clock), "who holds it lives, in Celery's terms too");

    // Every process of ours is gone, and a Python worker is the first to notice.
    clock.advance(LEASE * 2);
    restore_as_python(&server, &tag_of("a"), &redelivered("a", &tag_of("a")));
    let again = reserve(&store).await;
    assert_eq!((ids(&again), again[0].deliveries), (vec!["a"], 2));
    assert_ne!(again[0].tag, held[0].tag);
    assert!(
        !store.commit(vec![finished(&held[0])]).await.unwrap()[0].is_committed(),
        "the zombie cannot finish"
    );
    finish(&store, &again[0]).await;
    assert_eq!(store.restore().await.unwrap(), 0);
    assert_eq!(server.number(&["EXISTS", "unacked", "unacked_index", "celeriac:leases", "q"]), 0);
}

/// A restorer of Python's with less patience than a lease does not make a running task run twice.
#[tokio::test]
async fn what_runs_is_not_run_twice() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a"), message("b")]).await.unwrap();
    let held = reserve(&store).await;
    for id in ["a", "b"] {
        let tag = tag_of(id);
        restore_as_python(&server, &tag, &redelivered(id, &tag));
    }
    // Finished before anybody meets the copy, and met while it runs.
    finish(&store, &held[0]).await;
    assert!(reserve(&store).await.is_empty(), "neither is to be run");
    assert_eq!(server.number(&["HLEN", "unacked"]), 1, "the one that runs is protected again");
    finish(&store, &held[1]).await;
    assert!(reserve(&store).await.is_empty());
    assert_eq!(server.number(&["EXISTS", "unacked", "unacked_index", "celeriac:leases", "q"]), 0);
}

/// A message of an id that is held, as of a Python task that sends its own retry, waits until that is settled.
#[tokio::test]
async fn a_second_message_of_an_id_waits() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    let first = reserve(&store).await.remove(0);
    for tag in ["retry-1", "retry-2"] {
        server.number(&["LPUSH", "q", &envelope("a", tag)]);
        assert!(reserve(&store).await.is_empty(), "{tag}");
    }
    // A hand-back and a loss are no end.
    store.requeue(&[first.tag], None, false).await.unwrap();
    let first = reserve(&store).await;
    assert_eq!(ids(&first), ["a"]);
    clock.advance(LEASE * 2);
    assert_eq!(store.restore().await.unwrap(), 1);
    let mut held = reserve(&store).await;
    assert_eq!(ids(&held), ["a"]);
    for next in ["retry-1", "retry-2"] {
        assert!(reserve(&store).await.is_empty());
        assert!(store.ack(&[held[0].tag.clone()]).await.unwrap().is_empty());
        assert!(server.command(&["LINDEX", "q", "0"]).contains(next));
        held = reserve(&store).await;
        assert_eq!((ids(&held), held[0].deliveries), (vec!["a"], 1));
    }
    assert!(store.ack(&[held[0].tag.clone()]).await.unwrap().is_empty());
    assert!(reserve(&store).await.is_empty());
    assert_eq!(server.number(&["EXISTS", "celeriac:n:a", "celeriac:marks"]), 0);
}

/// A task that a Python worker took and finished is done with, for publishing, revoking and sweeping.
#[tokio::test]
async fn what_python_finished_is_finished() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    store.publish(vec![message("a"), message("b"), message("c")]).await.unwrap();
    // `a` and `b` are run by Python, `b` without a result; `c` still waits.
    server.command(&["RPOP", "q"]);
    server.command(&["RPOP", "q"]);
    let meta = r#"{"status": "SUCCESS", "result": 5, "traceback": null, "children": [], "date_done": "2026-01-01T00:00:00+00:00", "task_id": "a"}"#;
    server.command(&["SET", "celery-task-meta-a", meta]);
    let request = Revoke {
        ids: vec![TaskId::from("a"), TaskId::from("b")],
        terminate: false,
        signal: None,
        worker: WorkerName::from("client"),
        lease: LEASE,
    };
    let found = store.revoke(&request).await.unwrap();
    assert!(matches!(found[..], [Revocation::Finished, Revocation::Elsewhere { worker: None }]), "{found:?}");
    assert!(store.publish(vec![message("a")]).await.unwrap().is_empty(), "it is sent again");
    assert_eq!(ids(&reserve(&store).await), ["c", "a"]);
    assert_eq!(store.fetch(&[TaskId::from("a")]).await.unwrap(), [None]);
    store.sweep(clock.now(), 100).await.unwrap();
    assert_eq!(phase(&store, "b").await, Some(Phase::Settled), "its line has come past it");
    clock.advance(LEASE);
    assert_eq!(store.sweep(clock.now(), 100).await.unwrap(), 1);
    assert_eq!(phase(&store, "b").await, None);
}

/// A stored SUCCESS is not overwritten, by whoever it was stored.
#[tokio::test]
async fn a_success_of_pythons_stays() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    let held = reserve(&store).await.remove(0);
    let meta = r#"{"status": "SUCCESS", "result": 5, "traceback": null, "children": [], "date_done": null, "task_id": "a"}"#;
    server.command(&["SET", "celery-task-meta-a", meta]);
    let failed = ResultMeta::new("a", State::Failure, Json::null());
    let record = Record { results: vec![failed], ..Record::default() };
    let settle = Transaction { record, ..Transaction::fenced(held.tag, Then::Ack) };
    assert!(store.commit(vec![settle]).await.unwrap()[0].is_committed());
    let found = store.fetch(&[TaskId::from("a")]).await.unwrap().remove(0).unwrap();
    assert_eq!((found.state, found.result.as_str()), (State::Success, "5"));
}

/// What a Python producer sent and nobody has taken is revoked as ours is, be its queue unheard of.
#[tokio::test]
async fn what_python_sent_is_revoked() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    server.command(&["SADD", "_kombu.binding.q", "q\u{6}\u{16}\u{6}\u{16}q"]);
    server.number(&["LPUSH", "q", &envelope("a", "x")]);
    server.number(&[
        "LPUSH",
        "q\u{6}\u{16}6",
        &envelope("b", "y").replace(r#""priority": 0"#, r#""priority": 6"#),
    ]);
    let request = Revoke {
        ids: vec![TaskId::from("b"), TaskId::from("never"), TaskId::from("a")],
        terminate: false,
        signal: None,
        worker: WorkerName::from("client"),
        lease: LEASE,
    };
    let found = store.revoke(&request).await.unwrap();
    let [
        Revocation::Taken { phase: Phase::Queued, delivery: b },
        Revocation::Unknown,
        Revocation::Taken { phase: Phase::Queued, delivery: a },
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!((a.task_id.as_str(), b.task_id.as_str(), b.priority), ("a", "b", 6));
    assert_eq!(server.number(&["EXISTS", "q", "q\u{6}\u{16}6"]), 0);
    assert!(reserve(&store).await.is_empty());
}

/// Who asks for a task that Python sent is told of it, be it on a queue unheard of, in the hands of a Python worker or
/// done; who only asks where messages stand is not made to look for it.
#[tokio::test]
async fn what_python_sent_is_found() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    server.command(&["SADD", "_kombu.binding.other", "other\u{6}\u{16}\u{6}\u{16}other"]);
    let urgent = |id: &str| envelope(id, id).replace(r#""priority": 0"#, r#""priority": 6"#);
    let odd = envelope("o", "o").replace(r#""id": "o""#, r#""id": "\u00f6\"""#);
    server.number(&["LPUSH", "other", &envelope("a", "x"), &odd]);
    server.number(&["LPUSH", "other\u{6}\u{16}6", &urgent("b")]);
    server.number(&["HSET", "unacked", "y", &format!(r#"[{}, "", "other"]"#, envelope("c", "y"))]);
    let all = ["a", "b", "c", "ö\""].map(TaskId::from);
    assert!(store.locate(&all).await.unwrap().iter().all(Option::is_none));
    for (id, phase, priority) in [
        ("a", Phase::Queued, 0),
        ("b", Phase::Queued, 6),
        ("c", Phase::Reserved, 0),
        ("ö\"", Phase::Queued, 0),
    ] {
        let record =
            store.task(&TaskId::from(id)).await.unwrap().unwrap_or_else(|| panic!("{id} is not found"));
        let place = &record.listed.place;
        assert_eq!((place.phase, &*place.task, place.queue.as_str()), (phase, "t", "other"), "{id}");
        if phase == Phase::Queued {
            let message = Message::decode(&record.message.unwrap()).unwrap();
            assert_eq!(message.properties.priority, priority);
        }
    }
    assert!(store.locate(&all).await.unwrap().iter().all(Option::is_some), "what was found is known");
    let listed = store.tasks(&TaskQuery { limit: 10, ..TaskQuery::default() }).await.unwrap();
    assert_eq!(listed.tasks.len(), all.len());
    assert_eq!(store.task(&TaskId::from("never")).await.unwrap(), None);
    // What has been found runs as what was met in line.
    let request = Reserve { queues: vec![QueueName::from("other")], ..request(Duration::ZERO) };
    assert_eq!(ids(&store.reserve(&request).await.unwrap()), ["a", "ö\"", "b"]);
}

/// What was sought in vain is sought again before long.
#[tokio::test]
async fn what_comes_late_is_found() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("first")]).await.unwrap();
    let id = TaskId::from("late");
    assert_eq!(store.task(&id).await.unwrap(), None);
    server.number(&["LPUSH", "q", &envelope("late", "x")]);
    let found = async { while store.task(&id).await.unwrap().is_none() {} };
    tokio::time::timeout(PATIENCE, found).await.expect("found");
}

/// Where only Python's workers consume, a task with a countdown goes to them at once, and they wait; a worker of ours that
/// meets it lets it wait here.
#[tokio::test]
async fn python_waits_where_nobody_else_would() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let later = |id: &str| Routed { due: Some(clock.now() + Duration::from_secs(60)), ..message(id) };
    server.command(&["SADD", "_kombu.binding.celery.pidbox", "\u{6}\u{16}\u{6}\u{16}w@host.celery.pidbox"]);
    store.publish(vec![later("a")]).await.unwrap();
    assert_eq!((server.number(&["LLEN", "q"]), phase(&store, "a").await), (1, Some(Phase::Delayed)));
    assert!(reserve(&store).await.is_empty());
    assert_eq!((server.number(&["LLEN", "q"]), phase(&store, "a").await), (0, Some(Phase::Delayed)));
    store.publish(vec![later("b")]).await.unwrap();
    assert_eq!(server.number(&["LLEN", "q"]), 0, "a worker of ours has been seen");
    clock.advance(Duration::from_secs(61));
    // Whoever restores lets come due what nobody asked for.
    assert_eq!(store.restore().await.unwrap(), 0);
    assert_eq!(server.number(&["LLEN", "q"]), 2);
    assert_eq!(ids(&reserve(&store).await), ["a", "b"]);
}
