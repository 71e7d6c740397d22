//! Every key in Redis is one of those that `redis/keys.rs` lists, and is bounded as it says there.

use std::collections::BTreeSet;
use std::time::Duration;

use celeriac::backend::{Backend, LogRecord, NewChord, Record, StepRecord};
use celeriac::broker::{Broker, Reserve, Revoke, Routed};
use celeriac::clock::{Clock, after};
use celeriac::control::{Command, Control, Reply, WorkerCard};
use celeriac::id::{GroupId, QueueName, WorkerName};
use celeriac::protocol::{Json, ResultMeta};
use celeriac::store::{Then, Transact, Transaction};
use celeriac::testing::conformance::batch_of;
use celeriac::worker::Report;
use celeriac::{State, TaskId};

use crate::redis::{LEASE, envelope, finish, message, open, request, reserve};
use crate::redis_chords::part;
use crate::redis_server::RedisServer;

const TABLE: &str = include_str!("../../src/redis/keys.rs");

/// A row of the table.
struct Row {
    pattern: &'static str,
    kind: &'static str,
    has_ttl: bool,
}

impl Row {
    /// The rows, but for those of a queue's lists, whose names are anybody's.
    fn all() -> Vec<Self> {
        let lines = TABLE.lines().filter_map(|line| line.strip_prefix("//! | `"));
        let row = |line: &'static str| {
            let columns: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
            let [pattern, kind, _, bound] = columns[..] else { panic!("four columns: {line}") };
            Row { pattern: pattern.trim_end_matches('`'), kind, has_ttl: bound.starts_with("TTL") }
        };
        lines.filter(|line| !line.starts_with("<q>`")).map(row).collect()
    }

    fn is_for(&self, key: &str) -> bool {
        let Some((start, rest)) = self.pattern.split_once('<') else { return key == self.pattern };
        let (name, end) = rest.split_once('>').expect("a name ends");
        let Some(middle) = key.strip_prefix(start).and_then(|key| key.strip_suffix(end)) else {
            return false;
        };
        // Ids have no dot here, so that a group is not taken for its chord.
        if name == "q" { middle == "q" } else { !middle.is_empty() && !middle.contains('.') }
    }
}

/// Looks at every key, and notes which rows it has seen.
fn check(server: &RedisServer, rows: &[Row], seen: &mut BTreeSet<&'static str>) {
    let keys = server.command(&["KEYS", "*"]);
    let keys = keys.split("\r\n").skip(1).filter(|line| !line.starts_with('$') && !line.is_empty());
    for key in keys.filter(|key| *key != "q" && !key.starts_with("q\u{6}\u{16}")) {
        let row = rows.iter().find(|row| row.is_for(key));
        let row = row.unwrap_or_else(|| panic!("{key} is not in the table of redis/keys.rs"));
        let kind = server.command(&["TYPE", key]);
        assert_eq!(kind.trim_start_matches('+').trim_end(), row.kind, "{key}");
        if row.has_ttl {
            assert!(
                server.number(&["PTTL", key]) >= 0,
                "{key} has no TTL, as the table says of {}",
                row.pattern
            );
        }
        seen.insert(row.pattern);
    }
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

#[tokio::test]
async fn every_key_is_in_the_table_and_bounded() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let (rows, mut seen) = (Row::all(), BTreeSet::new());

    // A batch of which one runs.
    store.publish(batch_of(20, "t", "q")).await.unwrap();
    let one = store.reserve(&Reserve { limit: 1, ..request(Duration::ZERO) }).await.unwrap().remove(0);
    check(&server, &rows, &mut seen);
    finish(&store, &one).await;
    store.purge(&QueueName::from("q")).await.unwrap();

    // Tasks that wait, for a worker and for their time, and what is told of them.
    let later = Some(clock.now() + Duration::from_secs(3_600));
    let all = ["ends", "stays", "retried", "comes twice", "dies", "given back"];
    let mut messages: Vec<Routed> = all.into_iter().map(message).collect();
    messages.push(Routed { priority: 4, ..message("uneven") });
    messages.push(Routed { due: later, ..message("later") });
    // So that what is sent for later waits here and not with Python.
    assert!(reserve(&store).await.is_empty());
    store.publish(messages).await.unwrap();
    let opened = |id: &str, size| NewChord { group_id: GroupId::from(id), size, body: json("{}") };
    store
        .record(vec![Record { chords: vec![opened("g", 2), opened("open", 2)], ..part("ends", 0) }])
        .await
        .unwrap();
    store.save_group(&GroupId::from("saved"), &json("[]")).await.unwrap();
    store.pause(&QueueName::from("q"), true).await.unwrap();
    check(&server, &rows, &mut seen);
    store.pause(&QueueName::from("q"), false).await.unwrap();

    // Tasks that run.
    for delivery in reserve(&store).await {
        let id = delivery.task_id.clone();
        let log = vec![LogRecord { task_id: id.clone(), event: "progress".into(), data: json("{}") }];
        let steps = vec![StepRecord { task_id: id.clone(), name: "read".into(), value: json("1") }];
        let results = vec![ResultMeta::new(id.clone(), State::Started, Json::null())];
        let record = Record { log, steps, results, ..Record::default() };
        let kept = Transaction { record, ..Transaction::fenced(delivery.tag.clone(), Then::Keep) };
        assert!(store.commit(vec![kept]).await.unwrap()[0].is_committed());
        match id.as_str() {
            "given back" => assert!(store.requeue(&[delivery.tag], None, true).await.unwrap().is_empty()),
            // By a client of Python's, which does not look.
            "comes twice" => _ = server.number(&["LPUSH", "q", &envelope("comes twice", "another")]),
            "dies" => assert!(store.bury(&delivery.tag, "poison").await.unwrap()),
            "ends" => finish(&store, &delivery).await,
            _ => {}
        }
    }
    reserve(&store).await;
    let ids = vec![TaskId::from("stays")];
    let worker = WorkerName::from("client");
    store.revoke(&Revoke { ids, terminate: true, signal: None, worker, lease: LEASE }).await.unwrap();
    store.record(vec![part("b", 1)]).await.unwrap();
    check(&server, &rows, &mut seen);
    let fire = Record { fire: Some(GroupId::from("g")), ..Record::default() };
    store.record(vec![fire]).await.unwrap();
    store.sweep(clock.now(), 2).await.unwrap();

    // Workers, and what is said to them.
    let card = WorkerCard {
        worker: WorkerName::from("w@host/1"),
        node: "w@host".into(),
        hostname: "host".into(),
        pid: 1,
        version: "celeriac 0".into(),
        queues: Vec::new(),
        tasks: Vec::new(),
        concurrency: 1,
        running: 0,
        started: clock.now(),
        beat: clock.now(),
        expires: after(clock.now(), LEASE),
        stopping: false,
        totals: Report::default(),
    };
    store.beat(&card).await.unwrap();
    let command = Command {
        ticket: "ticket".into(),
        method: "ping".into(),
        arguments: json("{}"),
        destination: None,
        expires: after(clock.now(), LEASE),
    };
    store.send(&command).await.unwrap();
    let reply = Reply { worker: card.worker.clone(), content: json("1") };
    store.reply("ticket", &reply).await.unwrap();
    store.note_revoked(&[TaskId::from("unheard of")]).await.unwrap();
    // A tool of Python's asks, and its queue for answers is bound.
    store.commands_end().await.unwrap();
    let member = "mine\u{6}\u{16}\u{6}\u{16}mine.reply.celery.pidbox";
    server.number(&["SADD", "_kombu.binding.reply.celery.pidbox", member]);
    let asked = r#"{"body": "eyJtZXRob2QiOiAicGluZyIsICJhcmd1bWVudHMiOiB7fSwgImRlc3RpbmF0aW9uIjogbnVsbCwgInBhdHRlcm4iOiBudWxsLCAibWF0Y2hlciI6IG51bGwsICJ0aWNrZXQiOiAiYXNrZWQiLCAicmVwbHlfdG8iOiB7ImV4Y2hhbmdlIjogInJlcGx5LmNlbGVyeS5waWRib3giLCAicm91dGluZ19rZXkiOiAibWluZSJ9fQ==", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"clock": 1, "expires": 0}, "properties": {"delivery_mode": 2, "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}, "priority": 0, "body_encoding": "base64", "delivery_tag": "of-python"}}"#;
    server.number(&["PUBLISH", "/0.celery.pidbox", asked]);
    let heard = store.commands(&card.worker, 1, crate::support::PATIENCE).await.unwrap();
    assert_eq!(heard.len(), 1, "{heard:?}");
    store.reply("asked", &reply).await.unwrap();
    check(&server, &rows, &mut seen);

    let unseen: Vec<&str> =
        rows.iter().map(|row| row.pattern).filter(|pattern| !seen.contains(pattern)).collect();
    let expected = ["celery-taskset-meta-<gid>.t", "celeriac:rights"];
    assert_eq!(unseen, expected, "all but what only Python writes, and what no script leaves");
}
