//! Dead letters, workers, and what is known of tasks.

use std::time::Duration;

use celeriac::broker::Reserve;
use celeriac::id::WorkerName;
use celeriac::{QueueName, TaskId};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::client::Api;

/// Buries what waits, as a worker does with poison.
async fn bury(api: &Api, count: usize) {
    let broker = &api.app.store().broker;
    let reserve = Reserve {
        worker: WorkerName::from("undertaker@test/1"),
        queues: vec![QueueName::from("celery")],
        limit: count,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
        stop: CancellationToken::new(),
    };
    let deliveries = broker.reserve(&reserve).await.unwrap();
    assert_eq!(deliveries.len(), count);
    for delivery in deliveries {
        assert!(broker.bury(&delivery.tag, "it was time").await.unwrap());
    }
}

async fn dead_letters(mut api: Api) {
    let mut ids = Vec::new();
    for number in 0..4 {
        ids.push(api.add(number, 1).await);
    }
    bury(&api, 4).await;
    let page = api.get("/api/v1/dead?limit=3").await.expect(200).body;
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&page["items"][0]["id"], &page["items"][0]["reason"]),
        (&json!(ids[0]), &json!("it was time"))
    );
    let rest = format!("/api/v1/dead?limit=3&cursor={}", page["next"].as_str().unwrap());
    let rest = api.get(&rest).await.expect(200).body;
    assert_eq!((&rest["items"][0]["id"], &rest["next"]), (&json!(ids[3]), &Value::Null));
    let view = api.get(&format!("/api/v1/tasks/{}", ids[0])).await.expect(200).body;
    assert_eq!((&view["phase"], &view["waits"]["code"]), (&json!("dead"), &json!("dead")));
    let dropped = api.post("/api/v1/dead/drop", json!({ "ids": [ids[3], "none"] })).await.expect(200).body;
    assert_eq!((&dropped["done"], &dropped["not_dead"]), (&json!(1), &json!(1)));
    for wrong in [json!({}), json!({ "ids": [], "all": true })] {
        assert_eq!(api.post("/api/v1/dead/retry", wrong).await.places(), [""]);
    }
    // One by its task, the rest together.
    api.send(Method::POST, &format!("/api/v1/tasks/{}/retry", ids[2]), None).await.expect(202);
    let retried = api.post("/api/v1/dead/retry", json!({ "all": true })).await.expect(200).body;
    assert_eq!((&retried["done"], &retried["more"]), (&json!(2), &json!(false)));
    api.work(2).await;
    for (number, id) in ids[..3].iter().enumerate() {
        assert_eq!(api.in_state(id, "SUCCESS").await["result"], number + 1);
    }
    assert_eq!(api.get("/api/v1/dead").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_in_memory() {
    dead_letters(Api::memory().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_on_sqlite() {
    dead_letters(Api::sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_listed_and_told_things() {
    let mut api = Api::memory().await;
    assert_eq!(api.get("/api/v1/workers").await.expect(200).body["items"], json!([]));
    api.send(Method::POST, "/api/v1/workers/w0@test/ping", None).await.expect(404);
    api.work(3).await;
    let workers = api.get("/api/v1/workers").await.expect(200).body;
    let worker = &workers["items"][0];
    assert_eq!((&worker["node"], &worker["concurrency"]), (&json!("w0@test"), &json!(3)));
    assert!(worker["tasks"].as_array().unwrap().contains(&json!("app.add")));
    let name = worker["name"].as_str().unwrap().replace('/', "%2F");
    for name in ["w0@test", &name] {
        let told = api.post(&format!("/api/v1/workers/{name}/ping"), json!({})).await.expect(200).body;
        assert_eq!(told["replies"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told["missing"], json!([]));
    }
    assert_eq!(api.post("/api/v1/workers/w0@test/pong", json!({})).await.places(), ["command"]);
    assert_eq!(api.post("/api/v1/workers/w0@test/ping", json!([1])).await.places(), [""]);
    let registry = api.get("/api/v1/registry").await.expect(200).body;
    let names: Vec<&str> =
        registry["items"].as_array().unwrap().iter().map(|task| task["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["app.add", "app.elsewhere", "app.fail", "app.gate"]);
    assert_eq!(registry["items"][1]["options"]["queue"], "elsewhere");
    assert_eq!(registry["items"][0]["workers"], json!(["w0@test"]));
    assert_eq!(api.get("/api/v1/schedules").await.expect(200).body, json!({ "items": [], "next": null }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_gone_is_told_of() {
    let api = Api::memory().await;
    let id = api.add(1, 1).await;
    let reserve = Reserve {
        worker: WorkerName::from("ghost@test/1"),
        queues: vec![QueueName::from("celery")],
        limit: 1,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
        stop: CancellationToken::new(),
    };
    assert_eq!(api.app.store().broker.reserve(&reserve).await.unwrap()[0].task_id, TaskId::from(&*id));
    let view = api.get(&format!("/api/v1/tasks/{id}")).await.expect(200).body;
    assert_eq!((&view["phase"], &view["waits"]["code"]), (&json!("reserved"), &json!("worker_lost")));
}
