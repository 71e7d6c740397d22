//! Ends that are told: each end of a task that asks for it writes one message that tells, in the same step.

use std::time::Duration;

use celeriac::broker::Reserve;
use celeriac::client::{WEBHOOK_QUEUE, WEBHOOK_TASK};
use celeriac::clock::SystemClock;
use celeriac::id::WorkerName;
use celeriac::memory::MemoryStore;
use celeriac::protocol::Message;
use celeriac::store::{Store, Then, Transaction};
use celeriac::testing::{Fault, FaultPlan, Faulty};
use celeriac::{AsyncResult, CallOptions, Celeriac, Context, Ignore, QueueName, chain, chord, group};
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, Running, config, events};

const URL: &str = "https://hooks.example/services/secret-part";

#[celeriac::task(name = "webhooks.double")]
async fn double(number: i64) -> i64 {
    number * 2
}

#[celeriac::task(name = "webhooks.fails", max_retries = 2, default_retry_delay = 0)]
async fn fails(_number: i64) -> Result<i64, std::io::Error> {
    Err(std::io::Error::other("no such luck"))
}

#[celeriac::task(name = "webhooks.ignores")]
async fn ignores() -> Result<(), Ignore> {
    Err(Ignore)
}

#[celeriac::task(name = "webhooks.large")]
async fn large(bytes: usize) -> String {
    "x".repeat(bytes)
}

#[celeriac::task(name = "webhooks.pends")]
async fn pends(cx: Context) {
    cx.emit("began", &1).await;
    std::future::pending::<()>().await;
}

#[celeriac::task(name = "webhooks.dies", acks_late)]
async fn dies() {
    std::future::pending::<()>().await;
}

#[celeriac::task(name = "webhooks.sum")]
async fn sum(numbers: Vec<i64>) -> i64 {
    numbers.into_iter().sum()
}

async fn app() -> Celeriac {
    of(Store::of(MemoryStore::new(SystemClock::shared()))).await
}

async fn of(store: Store) -> Celeriac {
    let builder = Celeriac::builder().store(store).config(config(Duration::from_secs(60)));
    let app = builder.connect().await.unwrap();
    app.register(double)
        .register(fails)
        .register(ignores)
        .register(large)
        .register(pends)
        .register(dies)
        .register(sum)
}

fn told() -> CallOptions {
    CallOptions { webhook: Some(URL.to_owned()), ..CallOptions::default() }
}

/// The messages that wait to be told, with what they say; each is taken from its queue.
async fn word(app: &Celeriac) -> Vec<(Message, serde_json::Value)> {
    let request = Reserve {
        worker: WorkerName::from("reader"),
        queues: vec![QueueName::from(WEBHOOK_QUEUE)],
        limit: 100,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
        stop: CancellationToken::new(),
    };
    let deliveries = app.store().broker.reserve(&request).await.unwrap();
    let acks = deliveries.iter().map(|delivery| Transaction::fenced(delivery.tag.clone(), Then::Ack));
    app.store().transact.commit(acks.collect()).await.unwrap();
    let read = |message: Message| {
        let [url, told] = &message.body.args[..] else { panic!("two arguments") };
        assert_eq!(url.as_string().unwrap(), URL);
        let told = told.to().unwrap();
        (message, told)
    };
    deliveries.iter().map(|delivery| read(Message::decode(&delivery.message).unwrap())).collect()
}

/// The one message that waits to be told.
async fn one_word(app: &Celeriac) -> (Message, serde_json::Value) {
    let mut words = word(app).await;
    assert_eq!(words.len(), 1, "{words:#?}");
    words.remove(0)
}

async fn ended<R>(result: &AsyncResult<R>, app: &Celeriac) {
    events(app, &result.id(), "end", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_of_a_run_is_told_once() {
    let app = app().await;
    let worker = Running::start(app.worker().concurrency(2));
    let done = double(4).apply_async(&app, told()).await.unwrap();
    ended(&done, &app).await;
    let (message, said) = one_word(&app).await;
    assert_eq!(said["id"], done.id().as_str());
    assert_eq!((&said["task"], &said["state"]), (&"webhooks.double".into(), &"SUCCESS".into()));
    assert_eq!((&said["result"], &said["attempt"]), (&8.into(), &1.into()));
    assert!(said["at"].as_str().unwrap().parse::<celeriac::Timestamp>().is_ok(), "{said}");
    assert!(said.get("error").is_none() && said.get("truncated").is_none(), "{said}");
    assert_eq!(message.headers.task, WEBHOOK_TASK);
    assert_eq!(message.headers.ignore_result, Some(true));
    assert_eq!(
        (message.headers.parent_id.as_deref(), message.headers.group.as_deref()),
        (None, None),
        "it stands alone"
    );
    assert!(!message.headers.argsrepr.contains("secret-part"), "{}", message.headers.argsrepr);

    let failed = fails(1).apply_async(&app, told()).await.unwrap();
    ended(&failed, &app).await;
    let (_, said) = one_word(&app).await;
    assert_eq!(
        (&said["state"], &said["attempt"]),
        (&"FAILURE".into(), &3.into()),
        "its retries are not ends"
    );
    assert_eq!(said["error"]["exc_message"][0], "no such luck");
    assert!(said.get("result").is_none());

    let ignored = ignores().apply_async(&app, told()).await.unwrap();
    ended(&ignored, &app).await;
    assert_eq!(one_word(&app).await.1["state"], "IGNORED");

    for (bytes, fits) in [(65_534, true), (65_535, false)] {
        let result = large(bytes).apply_async(&app, told()).await.unwrap();
        ended(&result, &app).await;
        let (_, said) = one_word(&app).await;
        assert_eq!(said.get("result").is_some(), fits, "{bytes}");
        assert_eq!(said.get("truncated").is_some(), !fits, "{bytes}");
    }

    let stopped = pends().apply_async(&app, told()).await.unwrap();
    events(&app, &stopped.id(), "began", 1).await;
    stopped.revoke(true).await.unwrap();
    ended(&stopped, &app).await;
    assert_eq!(one_word(&app).await.1["state"], "REVOKED");

    let quiet = double(4).delay(&app).await.unwrap();
    ended(&quiet, &app).await;
    assert!(word(&app).await.is_empty(), "nobody asked");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_without_a_run_are_told_once() {
    let app = app().await;
    let later = CallOptions { countdown: Some(Duration::from_secs(600)), ..told() };
    let delayed = double(1).apply_async(&app, later).await.unwrap();
    let queued = double(2).apply_async(&app, told()).await.unwrap();
    for result in [&delayed, &queued] {
        result.revoke(false).await.unwrap();
        let (_, said) = one_word(&app).await;
        assert_eq!((&said["id"], &said["state"]), (&result.id().as_str().into(), &"REVOKED".into()));
        result.revoke(false).await.unwrap();
        assert!(word(&app).await.is_empty(), "it was over");
    }

    let past = CallOptions { expires: Some(app.clock().now()), ..told() };
    let expired = double(3).apply_async(&app, past).await.unwrap();
    let worker = Running::start(app.worker().concurrency(1));
    ended(&expired, &app).await;
    let (_, said) = one_word(&app).await;
    assert_eq!((&said["state"], &said["error"]["exc_message"][0]), (&"REVOKED".into(), &"expired".into()));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_told_and_so_is_its_second_life() {
    let app = app().await;
    let result = dies().apply_async(&app, told()).await.unwrap();
    let id = result.id();
    let dies_of_it = async || {
        // Workers that take the message and are never heard of again.
        for _ in 0..app.config().task_max_deliveries {
            let request = Reserve {
                worker: WorkerName::from("lost"),
                queues: vec![app.config().task_default_queue.clone()],
                limit: 1,
                lease: Duration::ZERO,
                wait: PATIENCE,
                stop: CancellationToken::new(),
            };
            assert_eq!(app.store().broker.reserve(&request).await.unwrap().len(), 1);
            app.store().broker.restore().await.unwrap();
        }
    };
    dies_of_it().await;
    let worker = Running::start(app.worker().concurrency(1));
    ended(&result, &app).await;
    worker.stop().await;
    let (first, said) = one_word(&app).await;
    assert_eq!((&said["state"], &said["error"]["exc_type"]), (&"FAILURE".into(), &"WorkerLostError".into()));

    assert_eq!(app.store().broker.revive(std::slice::from_ref(&id)).await.unwrap().len(), 1);
    dies_of_it().await;
    let worker = Running::start(app.worker().concurrency(1));
    events(&app, &id, "end", 2).await;
    worker.stop().await;
    let (second, _) = one_word(&app).await;
    assert_ne!(first.headers.id, second.headers.id, "another end is another word");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_workflow_is_that_of_its_last_part() {
    let app = app().await;
    let worker = Running::start(app.worker().concurrency(2));
    let steps = chain([double(1), double::s(), double::s()]);
    let whole = steps.apply_async(&app, told()).await.unwrap();
    ended(&whole, &app).await;
    let (_, said) = one_word(&app).await;
    assert_eq!((&said["id"], &said["result"]), (&whole.id().as_str().into(), &8.into()));

    // A step that never runs has an end too.
    let broken = fails(1).then(double::s());
    let whole = broken.apply_async(&app, told()).await.unwrap();
    ended(&whole, &app).await;
    let (_, said) = one_word(&app).await;
    assert_eq!((&said["id"], &said["state"]), (&whole.id().as_str().into(), &"FAILURE".into()));

    let joined = chord([double(1), double(2)], sum::s());
    let whole = joined.apply_async(&app, told()).await.unwrap();
    ended(&whole, &app).await;
    let (_, said) = one_word(&app).await;
    assert_eq!((&said["id"], &said["result"]), (&whole.id().as_str().into(), &6.into()));

    let members = group([double(1), double(2)]);
    let whole = members.apply_async(&app, told()).await.unwrap();
    for member in whole.results() {
        ended(&member, &app).await;
    }
    assert_eq!(word(&app).await.len(), 2, "a group ends with each of its members");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_written_again_is_told_once() {
    // Each commit of the worker in turn is done and its answer lost, so that the settler repeats the end. In two stores
    // an end is several commits, and what is repeated is half done.
    for split in [false, true] {
        for nth in 1.. {
            let messages = Store::of(MemoryStore::new(SystemClock::shared()));
            let results = Store::of(MemoryStore::new(SystemClock::shared()));
            let plan = FaultPlan::nth_of("commit", nth, Fault::ReplyLost);
            let (sender, worker) = if split {
                let faulty = Faulty::new(messages.clone(), &plan);
                (Store::split(&messages, &results), Store::split(&faulty, &results))
            } else {
                (messages.clone(), Faulty::new(messages, &plan))
            };
            let sender = of(sender).await;
            let result = double(4).apply_async(&sender, told()).await.unwrap();
            let worker = of(worker).await;
            let worker = Running::start(worker.worker().concurrency(1));
            ended(&result, &sender).await;
            worker.stop().await;
            one_word(&sender).await;
            if plan.hits() == 0 {
                assert!(nth > 1, "the fault has struck");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_another_worker_writes_again_is_told_once() {
    // Of an end in two stores the word is out, and then whoever was at it is gone: the next reservation ends it again.
    let messages = Store::of(MemoryStore::new(SystemClock::shared()));
    let results = Store::of(MemoryStore::new(SystemClock::shared()));
    let plan = FaultPlan::nth_of("record", 1, Fault::Before);
    let app = of(Store::split(&messages, &Faulty::new(results, &plan))).await;
    let app = app.with_config(config(Duration::from_millis(50)));
    let result = double(4).apply_async(&app, told()).await.unwrap();
    assert!(result.revoke(false).await.is_err());
    assert_eq!(plan.hits(), 1);
    one_word(&app).await;
    let worker = Running::start(app.worker().concurrency(1));
    ended(&result, &app).await;
    worker.stop().await;
    assert!(word(&app).await.is_empty(), "it had been told");
}
