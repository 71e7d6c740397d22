//! What only Redis has: a server that forgets scripts, drops connections and starts again.

use std::sync::Arc;
use std::time::Duration;

use celeriac::backend::{Backend, LogRecord, NewChord, Record};
use celeriac::broker::{Broker, Delivery, Reserve, Revocation, Revoke, Routed};
use celeriac::clock::{Clock, SystemClock};
use celeriac::id::{GroupId, QueueName, WorkerName};
use celeriac::protocol::{Json, Message, RawMessage, ResultMeta};
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::state::Phase;
use celeriac::store::{Error, Then, Transact, Transaction};
use celeriac::testing::ManualClock;
use celeriac::{State, TaskId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;
use crate::redis_chords::part;
use crate::redis_server::RedisServer;
use crate::support::PATIENCE;

pub(crate) const LEASE: Duration = Duration::from_secs(20);

pub(crate) async fn open(server: &RedisServer) -> (Arc<RedisStore>, ManualClock) {
    let clock = ManualClock::new();
    let store = RedisStore::connect(&server.url(), RedisOptions::default(), clock.shared()).await.unwrap();
    (store, clock)
}

pub(crate) fn message(id: &str) -> Routed {
    Routed {
        task_id: TaskId::from(id),
        task: "t".into(),
        queue: QueueName::from("q"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: RawMessage::from_envelope(envelope(id, &tag_of(id)).as_bytes()).unwrap(),
    }
}

/// The delivery tag of a message: as Celery's are, for ids that are short.
pub(crate) fn tag_of(id: &str) -> String {
    format!("0e9d5a52-5a3c-4e7e-8c4a-{id:0>12}")
}

/// An element of a list as Celery writes it; see the captured messages.
pub(crate) fn envelope(id: &str, delivery_tag: &str) -> String {
    format!(
        r#"{{"body": "W1syLCAzXSwge30sIHt9XQ==", "content-encoding": "utf-8", "content-type": "application/json", "headers": {{"lang": "py", "task": "t", "id": "{id}", "shadow": null, "eta": null, "expires": null, "group": null, "group_index": null, "retries": 0, "timelimit": [null, null], "root_id": "{id}", "parent_id": null, "argsrepr": "(2, 3)", "kwargsrepr": "{{}}", "origin": "gen1@host", "ignore_result": false, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {{}}}}, "properties": {{"correlation_id": "{id}", "reply_to": "", "delivery_mode": 2, "delivery_info": {{"exchange": "", "routing_key": "q"}}, "priority": 0, "body_encoding": "base64", "delivery_tag": "{delivery_tag}"}}}}"#
    )
}

pub(crate) fn request(wait: Duration) -> Reserve {
    Reserve {
        worker: WorkerName::from("w@host/1"),
        queues: vec![QueueName::from("q")],
        limit: 100,
        lease: LEASE,
        wait,
        stop: CancellationToken::new(),
    }
}

pub(crate) async fn reserve(store: &RedisStore) -> Vec<Delivery> {
    store.reserve(&request(Duration::ZERO)).await.unwrap()
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.task_id.as_str()).collect()
}

pub(crate) async fn phase(store: &RedisStore, id: &str) -> Option<Phase> {
    let places = store.locate(&[TaskId::from(id)]).await.unwrap();
    places.into_iter().next().flatten().map(|place| place.phase)
}

pub(crate) fn finished(delivery: &Delivery) -> Transaction {
    let meta = ResultMeta::new(delivery.task_id.clone(), State::Success, Json::null());
    let data = Json::parse(r#"{"state": "SUCCESS", "result": null}"#).unwrap();
    let end = LogRecord { task_id: delivery.task_id.clone(), event: "end".into(), data };
    let record = Record { results: vec![meta], log: vec![end], ..Record::default() };
    Transaction { record, ..Transaction::fenced(delivery.tag.clone(), Then::Ack) }
}

pub(crate) async fn finish(store: &RedisStore, delivery: &Delivery) {
    let outcomes = store.commit(vec![finished(delivery)]).await.unwrap();
    assert!(outcomes[0].is_committed(), "{outcomes:?}");
}

/// A server that has forgotten its scripts is told them again, whoever comes first.
#[tokio::test]
async fn forgotten_scripts_are_told_again() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for round in 0..3 {
        let id = format!("task-{round}");
        store.publish(vec![message(&id)]).await.unwrap();
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK\r\n");
        let wanted = [TaskId::from(id.as_str())];
        let many = (0..8).map(|_| store.locate(&wanted));
        for places in futures_util::future::join_all(many).await {
            assert_eq!(places.unwrap().len(), 1);
        }
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK\r\n");
        let deliveries = reserve(&store).await;
        assert_eq!(ids(&deliveries), [id.as_str()]);
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]), "+OK\r\n");
        finish(&store, &deliveries[0]).await;
    }
}

/// Calls go on after their connection was cut, and who waits is woken over another one.
#[tokio::test]
async fn a_cut_connection_is_made_anew() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.reserve(&request(PATIENCE)).await }
    });
    for round in 0..5 {
        // Once it is seen to wait, and once it may be anywhere.
        if round == 0 {
            until(|| server.command(&["CLIENT", "LIST"]).matches("name=").count() >= 3).await;
        }
        server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert_eq!(store.locate(&[TaskId::from("a")]).await.unwrap(), [None], "a read is repeated");
    }
    // A write is not repeated by itself: it may have happened.
    let mut published = store.publish(vec![message("a")]).await;
    if published.is_err() {
        published = store.publish(vec![message("a")]).await;
    }
    published.unwrap();
    let deliveries = waiting.await.unwrap().unwrap();
    assert_eq!(ids(&deliveries), ["a"]);
    finish(&store, &deliveries[0]).await;
}

/// What a reservation took whose answer was lost is there again for who asked, at once and as if it had never been taken.
#[tokio::test]
async fn a_reservation_whose_answer_was_lost_costs_nothing() {
    let server = RedisServer::start().await;
    let proxy = Proxy::to(server.address()).await;
    let store = RedisStore::connect(&proxy.url(), RedisOptions::default(), ManualClock::new().shared())
        .await
        .unwrap();
    store.publish(vec![message("a"), message("b")]).await.unwrap();
    let other = Reserve { limit: 1, worker: WorkerName::from("other"), ..request(Duration::ZERO) };
    let others = store.reserve(&other).await.unwrap();
    assert_eq!(ids(&others), ["a"]);
    proxy.lose_answers();
    let reserving = tokio::spawn({
        let store = store.clone();
        async move { store.reserve(&request(Duration::ZERO)).await }
    });
    until(|| server.number(&["HLEN", "unacked"]) == 2).await;
    proxy.reset();
    let deliveries = reserving.await.unwrap().unwrap();
    assert_eq!((ids(&deliveries), deliveries[0].deliveries), (vec!["b"], 1));
    finish(&store, &deliveries[0]).await;
    finish(&store, &others[0]).await;
    assert_eq!(server.number(&["EXISTS", "unacked", "unacked_index", "celeriac:leases", "q"]), 0);
}

/// An answer that is long on its way is no sign that its connection is dead.
#[tokio::test]
async fn a_long_answer_is_waited_for() {
    const BYTES: usize = 4 * 1024 * 1024;
    let server = RedisServer::start().await;
    let proxy = Proxy::to(server.address()).await;
    let store = RedisStore::connect(&proxy.url(), RedisOptions::default(), ManualClock::new().shared())
        .await
        .unwrap();
    let ids = ["a", "b", "c"].map(TaskId::from);
    for id in &ids {
        let meta = ResultMeta::new(id.clone(), State::Success, Json::string(&"x".repeat(BYTES)));
        store.record(vec![Record { results: vec![meta], ..Record::default() }]).await.unwrap();
    }
    // Longer than an answer may take that nothing is heard of, and less than any.
    proxy.narrow(ids.len() * BYTES / 4);
    let found = store.fetch(&ids).await.unwrap();
    assert_eq!(found.iter().flatten().count(), ids.len());
}

/// Waits for what another client can see.
pub(crate) async fn until(happened: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "what is awaited did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A server that comes back has everything, and who waited meanwhile goes on by himself.
#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let mut server = RedisServer::start_durable().await;
    let (store, clock) = open(&server).await;
    store.publish(vec![message("held"), message("waits")]).await.unwrap();
    let held = store.reserve(&Reserve { limit: 1, ..request(Duration::ZERO) }).await.unwrap().remove(0);
    server.kill();
    let error = store.locate(&[TaskId::from("held")]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.restart().await;
    assert_eq!(phase(&store, "held").await, Some(Phase::Reserved));
    assert_eq!(ids(&reserve(&store).await), ["waits"]);
    finish(&store, &held).await;
    clock.advance(LEASE * 2);
    assert_eq!(store.restore().await.unwrap(), 1, "of what nobody finished");
    assert_eq!(ids(&reserve(&store).await), ["waits"]);
}

/// What kills or loops Python's workers is put aside or handed on, and hurts nobody: the next message runs.
#[tokio::test]
async fn malformed_elements_hurt_nobody() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let dead =
        ["not JSON", "[1, 2]", "{}", r#"{"headers": {}, "properties": 7}"#, "\"text\"", "{\"body\": \"", "7"];
    for element in dead {
        server.number(&["LPUSH", "q", element]);
    }
    // These have an id: a worker finds out what is wrong with them, and says so under it.
    let odd = [
        r#"{"headers": {"id": "no-task"}, "properties": {}, "body": "W10="}"#,
        r#"{"headers": {"id": "bad-base64", "task": "t"}, "properties": {"body_encoding": "base64"}, "body": "%%"}"#,
        r#"{"headers": null, "properties": {"correlation_id": "protocol-1", "priority": "x", "delivery_tag": 5}, "body": "e30="}"#,
        r#"{"headers": {"id": "nested", "task": "t", "stamps": {"id": "other"}}, "body": 7}"#,
    ];
    for element in odd {
        server.number(&["LPUSH", "q", element]);
    }
    server.number(&["LPUSH", "q", &envelope("good", "tag")]);
    let deliveries = reserve(&store).await;
    assert_eq!(ids(&deliveries), ["no-task", "bad-base64", "protocol-1", "nested", "good"]);
    assert!(Message::decode(&deliveries[1].message).is_err());
    for delivery in &deliveries[..4] {
        assert!(store.bury(&delivery.tag, "cannot be decoded").await.unwrap());
    }
    finish(&store, &deliveries[4]).await;
    let letters = store.dead(0, 100).await.unwrap();
    assert_eq!(letters.len(), dead.len() + odd.len());
    for (letter, element) in letters.iter().zip(dead) {
        let kept = [letter.message.head.as_bytes(), &letter.message.body].concat();
        assert!(kept == element.as_bytes() || element == "{}", "{letter:?} is {element}");
        assert!(letter.reason.contains("envelope"), "{}", letter.reason);
    }
    // Sent back, it is put aside again; dropped, it is gone.
    let first = [letters[0].task_id.clone()];
    assert_eq!(store.revive(&first).await.unwrap(), first);
    assert!(reserve(&store).await.is_empty());
    let all: Vec<TaskId> =
        store.dead(0, 100).await.unwrap().into_iter().map(|letter| letter.task_id).collect();
    assert_eq!(all.len(), dead.len() + odd.len());
    assert_eq!(store.drop_dead(&all).await.unwrap().len(), all.len());
    assert!(store.dead(0, 100).await.unwrap().is_empty());
}

/// Queues are bound as durable ones, so that Python's clients find them and its sweep lets them be.
#[tokio::test]
async fn queues_are_bound() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    for table in ["_kombu.binding.q", "_kombu.binding_permanent.q"] {
        assert_eq!(server.number(&["SISMEMBER", table, "q\u{6}\u{16}\u{6}\u{16}q"]), 1, "{table}");
    }
}

/// In a long line, ours and Python's mixed, each message is found and the others keep their order.
#[tokio::test]
async fn revoking_in_a_long_line_takes_one_out() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for batch in 0..6 {
        store.publish((0..100).map(|n| message(&format!("{batch}-{n}"))).collect()).await.unwrap();
        if batch == 3 {
            server.number(&["LPUSH", "q", &envelope("python", "x")]);
        }
    }
    let out = ["0-0", "1-57", "3-99", "4-0", "5-99"];
    let request = Revoke {
        ids: out.map(TaskId::from).to_vec(),
        terminate: false,
        signal: None,
        worker: WorkerName::from("client"),
        lease: LEASE,
    };
    for (id, found) in out.iter().zip(store.revoke(&request).await.unwrap()) {
        let Revocation::Taken { delivery, .. } = found else { panic!("{id}: {found:?}") };
        assert_eq!(delivery.task_id.as_str(), *id);
    }
    let mut left = Vec::new();
    loop {
        let deliveries = reserve(&store).await;
        if deliveries.is_empty() {
            break;
        }
        left.extend(deliveries.into_iter().map(|delivery| delivery.task_id.to_string()));
    }
    let sent = (0..6).flat_map(|batch| {
        let python = (batch == 3).then(|| "python".to_owned());
        (0..100).map(move |n| format!("{batch}-{n}")).chain(python)
    });
    let expected: Vec<String> = sent.filter(|id| !out.contains(&id.as_str())).collect();
    assert_eq!(left, expected);
}

/// Once all is over and swept, nothing is left of any task: what remains is one key each for the store and its queues.
#[tokio::test]
async fn nothing_is_left_of_what_was_swept() {
    let server = RedisServer::start().await;
    let (store, clock) = open(&server).await;
    let later = Some(clock.now() + Duration::from_secs(5));
    let messages = vec![
        message("ends"),
        message("retried"),
        message("given back"),
        message("dies"),
        Routed { due: later, tags: vec!["x".into()], ..message("later") },
        Routed { priority: 4, ..message("uneven") },
        message("purged"),
    ];
    store.publish(messages).await.unwrap();
    let opened = NewChord { group_id: GroupId::from("g"), size: 2, body: Json::parse("{}").unwrap() };
    store.record(vec![Record { chords: vec![opened], ..part("ends", 0) }]).await.unwrap();
    store.save_group(&GroupId::from("saved"), &Json::parse("[]").unwrap()).await.unwrap();
    // One that is deleted leaves nothing for a sweep, and the opened chord of its id stays.
    store.save_group(&GroupId::from("g"), &Json::parse("[]").unwrap()).await.unwrap();
    let kept = |store: &RedisServer| store.number(&["ZCARD", "celeriac:groups"]);
    assert_eq!(kept(&server), 3);
    store.delete_group(&GroupId::from("g")).await.unwrap();
    assert_eq!(kept(&server), 2);
    for _ in 0..3 {
        for delivery in reserve(&store).await {
            match delivery.task_id.as_str() {
                "given back" if delivery.deliveries == 1 => {
                    store.requeue(&[delivery.tag], None, true).await.unwrap();
                }
                "retried" => {
                    let again = Transaction {
                        publish: vec![message("ends too")],
                        ..Transaction::fenced(delivery.tag, Then::Ack)
                    };
                    store.commit(vec![again]).await.unwrap();
                }
                "dies" => assert!(store.bury(&delivery.tag, "poison").await.unwrap()),
                _ => finish(&store, &delivery).await,
            }
        }
        clock.advance(Duration::from_secs(6));
    }
    assert_eq!(store.drop_dead(&[TaskId::from("dies")]).await.unwrap().len(), 1);
    clock.advance(LEASE);
    while store.sweep(clock.now(), 3).await.unwrap() > 0 {}
    let left = server.command(&["KEYS", "*"]);
    let left: Vec<&str> =
        left.split("\r\n").skip(1).filter(|line| !line.starts_with('$') && !line.is_empty()).collect();
    let expected = [
        "_kombu.binding.q",
        "_kombu.binding_permanent.q",
        "celeriac:consumers",
        "celeriac:counter",
        "celeriac:feed",
        "celeriac:queues",
        "celeriac:swept",
        "celeriac:tasks",
    ];
    let unexpected: Vec<&&str> = left.iter().filter(|key| !expected.contains(key)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert_eq!(server.number(&["XLEN", "celeriac:tasks"]), 0);
}

/// In a cluster only a prefix with a hash tag keeps all keys on one node; with it the store finds that node.
#[tokio::test]
async fn a_cluster_needs_a_hash_tag() {
    let server = RedisServer::start_in_cluster_mode().await;
    let connect = async |prefix: &str| {
        let options = RedisOptions {
            global_keyprefix: prefix.into(),
            result_keyprefix: prefix.into(),
            ..RedisOptions::default()
        };
        RedisStore::connect(&server.url(), options, SystemClock::shared()).await
    };
    let error = connect("px:").await.unwrap_err();
    assert!(matches!(&error, Error::Open { remedy, .. } if remedy.contains("{celery}:")), "{error}");
    let store = connect("{px}:").await.unwrap();
    store.publish(vec![message("a")]).await.unwrap();
    let deliveries = reserve(&store).await;
    assert_eq!(ids(&deliveries), ["a"]);
    finish(&store, &deliveries[0]).await;
}

/// Sentinel is asked where the master is, the next one where the first does not answer.
#[tokio::test]
async fn sentinel_tells_where_the_master_is() {
    let server = RedisServer::start().await;
    let sentinel = server.start_sentinel("tasks").await;
    let connect =
        async |url: String| RedisStore::connect(&url, RedisOptions::default(), SystemClock::shared()).await;
    let store = connect(format!("sentinel://127.0.0.1:1,{}/tasks/0", sentinel.address())).await.unwrap();
    store.publish(vec![message("a")]).await.unwrap();
    assert_eq!(server.number(&["LLEN", "q"]), 1);
    // Asked anew for each connection.
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert_eq!(ids(&reserve(&store).await), ["a"]);
    let error = connect(format!("sentinel://{}/another", sentinel.address())).await.unwrap_err();
    assert!(matches!(&error, Error::Open { why, .. } if why.contains("another")), "{error}");
}

/// A server that wants a password says so, with the remedy and without the password.
#[tokio::test]
async fn credentials_are_checked_and_not_shown() {
    let server = RedisServer::start().await;
    server.command(&["CONFIG", "SET", "requirepass", "sesame"]);
    let connect = async |credentials: &str| {
        let url = server.url().replace("redis://", &format!("redis://{credentials}"));
        RedisStore::connect(&url, RedisOptions::default(), SystemClock::shared()).await
    };
    connect(":sesame@").await.unwrap();
    for wrong in ["", ":open-sesame@"] {
        let error = connect(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error}");
        assert!(!error.to_string().contains("sesame"), "{error}");
    }
}

/// Nobody there is told at once, and as something that may pass.
#[tokio::test]
async fn an_absent_server_is_unavailable() {
    let mut server = RedisServer::start().await;
    server.kill();
    let error =
        RedisStore::connect(&server.url(), RedisOptions::default(), SystemClock::shared()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// A server without room says so, and has written nothing.
#[tokio::test]
async fn a_full_server_is_told_apart() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    store.publish(vec![message("a")]).await.unwrap();
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = store.publish(vec![message("b")]).await.unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert_eq!(phase(&store, "b").await, None);
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(ids(&reserve(&store).await), ["a"]);
}

mod application {
    use celeriac::{Celeriac, Context, chord};

    use super::*;
    use crate::support::{Running, config};

    #[celeriac::task(name = "redis.add")]
    async fn add(x: i64, y: i64) -> i64 {
        x + y
    }

    #[celeriac::task(name = "redis.xsum")]
    async fn xsum(values: Vec<i64>) -> i64 {
        values.iter().sum()
    }

    #[celeriac::task(name = "redis.flaky", max_retries = 3, default_retry_delay = 0)]
    async fn flaky(cx: Context) -> Result<u32, String> {
        cx.progress(u64::from(cx.retries()), 2).await;
        if cx.retries() < 2 { Err("not yet".to_owned()) } else { Ok(cx.retries()) }
    }

    /// The same program as on a file, with another URL.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_application_runs_by_changing_its_url() {
        let server = RedisServer::start().await;
        let app = Celeriac::builder().broker(server.url()).config(config(LEASE)).connect().await.unwrap();
        let app = app.register(add).register(xsum).register(flaky);
        let running = Running::start(app.worker());
        let sum = chord((0..10).map(|n| add(n, 1)), xsum::s()).delay(&app).await.unwrap();
        let flaky = flaky().delay(&app).await.unwrap();
        assert_eq!(sum.get().await.unwrap(), 55);
        assert_eq!(flaky.get().await.unwrap(), 2);
        let report = running.stop().await;
        assert_eq!((report.succeeded, report.retried, report.lost), (12, 2, 0));
    }
}
