//! What is usual has scripts of its own in Redis: where it stands among what is not, both fare as they do alone.

use std::time::Duration;

use celeriac::backend::{Backend, LogRecord, Record};
use celeriac::broker::{Broker, Delivery, Reserve, Revocation, Revoke, Routed};
use celeriac::clock::Clock;
use celeriac::id::{QueueName, WorkerName};
use celeriac::protocol::{Json, ResultMeta};
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::store::{Outcome, Then, Transact, Transaction};
use celeriac::testing::ManualClock;
use celeriac::{State, TaskId};

use crate::proxy::Proxy;
use crate::redis::{LEASE, envelope, finished, ids, message, open, request, reserve, tag_of, until};
use crate::redis_server::RedisServer;
use crate::support::PATIENCE;

const HELD: [&str; 4] = ["unacked", "unacked_index", "celeriac:leases", "celeriac:marks"];

/// How often the server was asked for a command, within scripts or without.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// How often a script ran.
fn runs(server: &RedisServer) -> u64 {
    calls(server, "evalsha")
}

/// One script for each step: nothing falls back on the rules without need.
#[tokio::test]
async fn what_is_usual_takes_three_scripts() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    // So that the server knows them, and a queue is declared.
    for id in ["first", "a"] {
        let before = runs(&server);
        store.publish(vec![message(id)]).await.unwrap();
        let deliveries = reserve(&store).await;
        let outcomes = store.commit(vec![finished(&deliveries[0])]).await.unwrap();
        assert_eq!(outcomes, [Outcome::Committed { ready: vec![], duplicates: vec![] }]);
        assert!(id == "first" || runs(&server) - before == 3, "{} scripts", runs(&server) - before);
    }
}

/// Where nothing is usual, as on lists with priorities, it is not asked each time whether it is.
#[tokio::test]
async fn what_is_not_usual_is_seldom_asked_for_twice() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let messages = (0..18).map(|n| Routed { priority: 3, ..message(&format!("{n}")) }).collect();
    store.publish(messages).await.unwrap();
    let mut before = 0;
    for n in 0..18 {
        let one = Reserve { limit: 1, ..request(Duration::ZERO) };
        assert_eq!(ids(&store.reserve(&one).await.unwrap()), [format!("{n}")]);
        if n == 0 {
            // From here on the server knows the scripts.
            before = runs(&server);
        }
    }
    // The seventeenth asked again.
    assert_eq!(runs(&server) - before, 17 + 1);
}

/// A task that says that it is begun takes one more, and is restored as one that was when its worker is lost.
#[tokio::test]
async fn what_is_begun_takes_four_scripts() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    for id in ["first", "a"] {
        let before = runs(&server);
        store.publish(vec![message(id)]).await.unwrap();
        let deliveries = reserve(&store).await;
        assert!(store.begin(&[deliveries[0].tag.clone()]).await.unwrap().is_empty());
        assert!(store.commit(vec![finished(&deliveries[0])]).await.unwrap()[0].is_committed());
        assert!(id == "first" || runs(&server) - before == 4, "{} scripts", runs(&server) - before);
        assert_eq!(server.number(&["HEXISTS", &format!("celeriac:t:{id}"), "g"]), 0);
    }
    assert_eq!(server.number(&[&["EXISTS"], &HELD[..]].concat()), 0);

    store.publish(vec![message("lost")]).await.unwrap();
    let lost = reserve(&store).await.remove(0);
    let begin = Transaction::fenced(lost.tag.clone(), Then::Begin);
    // Twice in one batch.
    let outcomes = store.commit(vec![begin.clone(), begin.clone()]).await.unwrap();
    assert!(outcomes.iter().all(Outcome::is_committed), "{outcomes:?}");
    clock.advance(LEASE * 2);
    assert_eq!(store.restore().await.unwrap(), 1);
    let again = reserve(&store).await.remove(0);
    assert_eq!((again.begun, again.deliveries), (true, 2));
    assert_eq!(store.begin(std::slice::from_ref(&lost.tag)).await.unwrap(), [lost.tag]);
    assert!(store.commit(vec![begin, finished(&again)]).await.unwrap()[1].is_committed());
    assert_eq!(server.number(&[&["EXISTS"], &HELD[..]].concat()), 0);
}

/// One that is revoked once it is begun is known to be, and what stops it goes with it, however it ends.
#[tokio::test]
async fn what_is_revoked_when_it_is_begun() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let bury = Then::Bury { reason: "it is poison".to_owned() };
    let requeue = Then::Requeue { due: None, counted: true };
    for (id, then) in [("ends", None), ("is buried", Some(bury)), ("goes back", Some(requeue))] {
        store.publish(vec![message(id)]).await.unwrap();
        let held = reserve(&store).await.remove(0);
        let begin = Transaction::fenced(held.tag.clone(), Then::Begin);
        assert!(store.commit(vec![begin]).await.unwrap()[0].is_committed());
        let revoke = Revoke {
            ids: vec![held.task_id.clone()],
            worker: WorkerName::from("w@host/1"),
            lease: LEASE,
            terminate: true,
            signal: None,
        };
        assert!(matches!(store.revoke(&revoke).await.unwrap()[0], Revocation::Held { .. }));
        assert_eq!(server.number(&["HLEN", "celeriac:interrupts"]), 1);
        let end = then.map_or_else(|| finished(&held), |then| Transaction::fenced(held.tag.clone(), then));
        assert!(store.commit(vec![end]).await.unwrap()[0].is_committed());
        assert_eq!(server.number(&[&["EXISTS", "celeriac:interrupts"], &HELD[..]].concat()), 0, "{id}");
    }
}

/// Messages are reserved in their order, those that the short script knows and those that it leaves alone.
#[tokio::test]
async fn the_order_stays() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let mut expected = Vec::new();
    for n in 0..40 {
        let id = format!("{n}");
        match n % 8 {
            // Tagged, which is told in its record.
            3 => {
                let tags = vec!["x".into()];
                store.publish(vec![Routed { tags, ..message(&id) }]).await.unwrap();
            }
            // Another's delivery tag.
            5 => drop(server.command(&["LPUSH", "q", &envelope(&id, "no uuid")])),
            6 => drop(server.command(&["LPUSH", "q", &envelope(&id, &tag_of(&id))])),
            // No envelope at all: a dead letter.
            7 => {
                server.command(&["LPUSH", "q", "no envelope"]);
                continue;
            }
            _ => drop(store.publish(vec![message(&id)]).await.unwrap()),
        }
        expected.push(id);
    }
    let mut found = Vec::new();
    loop {
        let deliveries = store.reserve(&Reserve { limit: 7, ..request(Duration::ZERO) }).await.unwrap();
        // What is no task is buried on the way.
        if deliveries.is_empty() && server.number(&["LLEN", "q"]) == 0 {
            break;
        }
        let outcomes = store.commit(deliveries.iter().map(finished).collect()).await.unwrap();
        assert!(outcomes.iter().all(Outcome::is_committed), "{outcomes:?}");
        found.extend(ids(&deliveries).into_iter().map(str::to_owned));
    }
    assert_eq!(found, expected);
    assert_eq!(server.number(&["ZCARD", "celeriac:dead"]), 5);
    assert_eq!(server.number(&[&["EXISTS"], &HELD[..]].concat()), 0);
}

/// Of several queues each has its share, and a paused one none.
#[tokio::test]
async fn queues_share() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let queues = ["q", "other", "paused"].map(QueueName::from);
    for (at, queue) in queues.iter().enumerate() {
        for n in 0..6 {
            let routed = Routed { queue: queue.clone(), ..message(&format!("{at}-{n}")) };
            store.publish(vec![routed]).await.unwrap();
        }
    }
    store.pause(&queues[2], true).await.unwrap();
    let wanted = Reserve { queues: queues.to_vec(), limit: 8, ..request(Duration::ZERO) };
    // What was written for another queue is not as usual there.
    let mut found = Vec::new();
    for _ in 0..4 {
        found.extend(store.reserve(&wanted).await.unwrap());
    }
    let of = |queue: usize| found.iter().filter(|delivery| delivery.queue == queues[queue]).count();
    assert_eq!([of(0), of(1), of(2)], [6, 6, 0]);
    assert!(found[..8].iter().filter(|delivery| delivery.queue == queues[0]).count() >= 4);
}

/// What is known is told from what is not, also within one call.
#[tokio::test]
async fn nothing_is_published_twice() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let publish = async |ids: &[&str]| {
        let messages = ids.iter().map(|id| Routed { unique: true, ..message(id) }).collect();
        let refused = store.publish(messages).await.unwrap();
        refused.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(publish(&["a", "b"]).await, Vec::<String>::new());
    assert_eq!(publish(&["c", "b"]).await, ["b"]);
    assert_eq!(publish(&["d", "d"]).await, ["d"]);
    // Only a result is known of it.
    let meta = ResultMeta::new(TaskId::from("e"), State::Success, Json::null());
    store.record(vec![Record { results: vec![meta], ..Record::default() }]).await.unwrap();
    assert_eq!(publish(&["f", "e"]).await, ["e"]);
    assert_eq!(ids(&reserve(&store).await), ["a", "b", "c", "d", "f"]);
}

/// However many are sent at once; beyond a bound by the rules, which look at the record of each.
#[tokio::test]
async fn many_are_published_at_once() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for (round, count) in [10_000, 10_001].into_iter().enumerate() {
        let messages = (0..count).map(|n| message(&format!("{round}-{n}"))).collect();
        let before = calls(&server, "hgetall");
        assert_eq!(store.publish(messages).await.unwrap(), Vec::<TaskId>::new());
        assert_eq!(calls(&server, "hgetall") - before, if count > 10_000 { count } else { 0 });
        assert_eq!(server.number(&["LLEN", "q"]).cast_unsigned(), count);
        let first = reserve(&store).await;
        assert_eq!(first[0].task_id.as_str(), format!("{round}-0"));
        assert_eq!(store.purge(&QueueName::from("q")).await.unwrap().len(), count as usize - first.len());
    }
}

/// Who found nothing the last time sees what is there by the look that begins his watch, though he has no time to wait:
/// what waits, and what has come due.
#[tokio::test]
async fn the_look_that_begins_the_watch_tells() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let hardly = request(Duration::from_nanos(1));
    let due = clock.now() + Duration::from_secs(60);
    store.publish(vec![Routed { due: Some(due), ..message("later") }]).await.unwrap();
    assert!(store.reserve(&hardly).await.unwrap().is_empty());
    store.publish(vec![message("now")]).await.unwrap();
    assert_eq!(ids(&store.reserve(&hardly).await.unwrap()), ["now"]);
    assert!(store.reserve(&hardly).await.unwrap().is_empty(), "it is not due");
    clock.advance(Duration::from_secs(60));
    assert_eq!(ids(&store.reserve(&hardly).await.unwrap()), ["later"]);
}

/// Who no longer waits takes nothing: his wait goes on nowhere.
#[tokio::test]
async fn who_is_gone_takes_nothing() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    assert!(reserve(&store).await.is_empty());
    for n in 0..20 {
        let looks = calls(&server, "zrange");
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.reserve(&request(PATIENCE)).await }
        });
        until(|| calls(&server, "zrange") > looks).await;
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        let id = format!("{n}");
        store.publish(vec![message(&id)]).await.unwrap();
        assert_eq!(ids(&reserve(&store).await), [id.as_str()]);
        assert!(reserve(&store).await.is_empty());
    }
}

/// What is reserved in two parts has two ends of its leases: should the answer to the second be lost, it is handed back by
/// that, and the first, which runs, is not.
#[tokio::test]
async fn the_parts_of_a_reservation_are_told_apart() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a"), Routed { tags: vec!["x".into()], ..message("b") }]).await.unwrap();
    let deliveries = reserve(&store).await;
    assert_eq!(ids(&deliveries), ["a", "b"]);
    let ends =
        deliveries.iter().map(|held| server.command(&["ZSCORE", "celeriac:leases", held.tag.as_str()]));
    let ends: Vec<String> = ends.collect();
    assert_ne!(ends[0], ends[1]);
}

/// So are two reservations at once, be it in the same microsecond.
#[tokio::test]
async fn reservations_at_once_are_told_apart() {
    let server = RedisServer::start().await;
    let proxy = Proxy::to(server.address()).await;
    let clock = ManualClock::new();
    let store = RedisStore::connect(&proxy.url(), RedisOptions::default(), clock.shared()).await.unwrap();
    // From here on the queue is declared: nothing comes before the reservations.
    assert!(reserve(&store).await.is_empty());
    store.publish(vec![message("a"), message("b")]).await.unwrap();
    let one = Reserve { limit: 1, ..request(Duration::ZERO) };
    // No answer comes before both are under way: without that the first may be over before the second begins.
    proxy.close();
    let (first, second, ()) =
        tokio::join!(biased; store.reserve(&one), store.reserve(&one), async { proxy.open() });
    let (first, second) = (first.unwrap(), second.unwrap());
    let end = |held: &Delivery| server.command(&["ZSCORE", "celeriac:leases", held.tag.as_str()]);
    let ends = [end(&first[0]), end(&second[0])];
    assert_ne!(ends[0], ends[1]);
    // None is under way any more: it has the end that it was to have, as one of the two had.
    store.publish(vec![message("c")]).await.unwrap();
    assert!(ends.contains(&end(&reserve(&store).await[0])), "{ends:?}");
}

/// A result that begins with something else than its state is waited for as well.
#[tokio::test]
async fn a_result_in_another_order_is_one() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let id = TaskId::from("a");
    let waits = store.await_result(&id, PATIENCE * 10);
    let meta = r#"{"task_id": "a", "result": {"status": "PENDING"}, "status": "SUCCESS", "traceback": null, "children": []}"#;
    server.command(&["SET", "celery-task-meta-a", meta]);
    let found = tokio::time::timeout(PATIENCE, waits).await.expect("it is there").unwrap();
    assert_eq!(found.map(|meta| meta.state), Some(State::Success));
}

/// Ends that need the rules stand among those that do not, and each comes to what it would alone.
#[tokio::test]
async fn ends_of_all_kinds_in_one_batch() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let all: Vec<String> = (0..60).map(|n| format!("{n}")).collect();
    store.publish(all.iter().map(|id| message(id)).collect()).await.unwrap();
    let deliveries = reserve(&store).await;
    assert_eq!(ids(&deliveries), all);
    let state = |at: usize, state: State| {
        let meta = ResultMeta::new(deliveries[at].task_id.clone(), state, Json::null());
        Record { results: vec![meta], ..Record::default() }
    };
    let progress = |at: usize| {
        let task_id = deliveries[at].task_id.clone();
        let log = vec![LogRecord { task_id, event: "progress".into(), data: Json::parse("{}").unwrap() }];
        Record { log, ..Record::default() }
    };
    // A state of its own, a result of somebody else's, a log that is more than its end, a lease that is lost, a revocation.
    store
        .record(vec![state(1, State::from("HALFWAY")), state(2, State::Failure), progress(3)])
        .await
        .unwrap();
    server.command(&["ZREM", "celeriac:leases", deliveries[4].tag.as_str()]);
    let revoke = Revoke {
        ids: vec![deliveries[5].task_id.clone()],
        worker: WorkerName::from("w@host/1"),
        lease: LEASE,
        terminate: false,
        signal: None,
    };
    assert!(matches!(store.revoke(&revoke).await.unwrap()[0], Revocation::Held { .. }));
    // Restored by a Python worker meanwhile.
    let restored = envelope("6", &tag_of("6"));
    server.command(&["HDEL", "unacked", &tag_of("6")]);
    server.command(&["ZREM", "unacked_index", &tag_of("6")]);
    server.command(&["RPUSH", "q", &restored]);
    // One that fails stands in the midst of them, and one that is named twice.
    let mut transactions: Vec<Transaction> = deliveries.iter().map(finished).collect();
    transactions[30].record.results[0].state = State::Failure;
    transactions.push(finished(&deliveries[0]));
    let outcomes = store.commit(transactions).await.unwrap();
    for (at, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.is_committed(), at != 4 && at != 60, "{at}: {outcome:?}");
    }
    let task_ids: Vec<TaskId> = deliveries.iter().map(|delivery| delivery.task_id.clone()).collect();
    for (at, meta) in store.fetch(&task_ids).await.unwrap().into_iter().enumerate() {
        let expected = match at {
            2 | 30 => Some(State::Failure),
            4 => None,
            _ => Some(State::Success),
        };
        assert_eq!(meta.map(|meta| meta.state), expected, "{at}");
    }
    let log = store.log(&task_ids[3], 0, 10).await.unwrap().unwrap();
    let events: Vec<&str> = log.entries.iter().map(|entry| &*entry.event).collect();
    assert_eq!(events, ["progress", "end"]);
    // The copy is known for what it is.
    assert!(reserve(&store).await.is_empty());
    server.command(&["HDEL", "unacked", &tag_of("4")]);
    server.command(&["ZREM", "unacked_index", &tag_of("4")]);
    assert_eq!(server.number(&[&["EXISTS", "q"], &HELD[..]].concat()), 0);
}

/// An acknowledgement of one that may not be anybody's.
#[tokio::test]
async fn a_tag_of_nobody_is_lost() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    let mut delivery = reserve(&store).await.remove(0);
    for tag in ["", "no tag", "1.1:36:x", "1.1:1:xa"] {
        delivery.tag = tag.into();
        let mut transaction = finished(&delivery);
        transaction.fence.as_mut().unwrap().then = Then::Ack;
        assert_eq!(store.commit(vec![transaction]).await.unwrap(), [Outcome::Lost], "{tag}");
    }
}
