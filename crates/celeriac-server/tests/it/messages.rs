//! Messages as Celery makes them.

use celeriac::backend::Record;
use celeriac::protocol::ResultMeta;
use celeriac::{Json, State, TaskId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Api;

fn message(id: &str) -> Value {
    json!({
        "body": "W1syLCAzXSwge30sIHt9XQ==", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": { "lang": "py", "task": "proj.add", "id": id, "root_id": id, "x-own": [1] },
        "properties": { "correlation_id": id, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_tag": "t", "delivery_info": { "exchange": "", "routing_key": "proj" } },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_published_as_it_is_and_once() {
    let api = Api::memory().await;
    let body = json!({ "messages": [{ "queue": "proj", "message": message("a") }] });
    let view = api.post("/api/v1/messages", body.clone()).await.expect(202).body;
    assert_eq!(view["items"], json!([{ "id": "a", "task": "proj.add", "replayed": false }]));
    let view = api.post("/api/v1/messages", body).await.expect(202).body;
    assert_eq!(view["items"][0]["replayed"], true, "it waits already: {view}");
    let place = api.app.store().broker.locate(&[TaskId::from("a")]).await.unwrap().pop().flatten();
    assert_eq!(place.unwrap().queue.as_str(), "proj");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_named_and_nothing_is_done() {
    let api = Api::memory().await;
    let good = json!({ "queue": "proj", "message": message("a") });
    let mut bad = good.clone();
    bad["message"]["headers"] = json!({ "id": "b" });
    for (body, at) in [
        (json!({ "messages": [good, bad] }), "/messages/1/message/headers/task"),
        (json!({ "messages": [{ "queue": 1, "message": {} }] }), "/messages/0/queue"),
        (json!({ "results": [{ "status": "SUCCESS", "result": 1, "task_id": "a" }] }), "/results"),
        (json!({}), "/messages"),
    ] {
        let places = api.post("/api/v1/messages", body.clone()).await.expect(422).places();
        assert!(places.iter().any(|place| place == at), "{body}: {places:?}");
    }
    assert_eq!(api.app.store().broker.locate(&[TaskId::from("a")]).await.unwrap(), [None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_kept_and_tasks_forgotten() {
    let api = Api::memory().await;
    assert_eq!(api.get("/api/v1/groups/g").await.expect(200).body, json!({ "result": null }));
    let group = json!([["g", null], [[["a", null], null], [["b", null], null]]]);
    api.send(Method::PUT, "/api/v1/groups/g", Some(json!({ "result": group }))).await.expect(204);
    assert_eq!(api.get("/api/v1/groups/g").await.expect(200).body["result"], group);
    for (body, at) in [
        (json!({}), "/result"),
        (json!({ "result": [["a", null], null] }), "/result"),
        (json!({ "result": ["a"] }), "/result"),
        (json!({ "result": group, "more": 1 }), "/more"),
    ] {
        let places = api.send(Method::PUT, "/api/v1/groups/g", Some(body.clone())).await.expect(422).places();
        assert_eq!(places, [at], "{body}");
    }
    for _ in 0..2 {
        api.send(Method::DELETE, "/api/v1/groups/g", None).await.expect(204);
        assert_eq!(api.get("/api/v1/groups/g").await.expect(200).body["result"], Value::Null);
    }
    let record = Record {
        results: vec![ResultMeta::new("a", State::Success, Json::parse("5").unwrap())],
        ..Default::default()
    };
    api.app.store().backend.record(vec![record]).await.unwrap();
    for _ in 0..2 {
        api.send(Method::DELETE, "/api/v1/tasks/a/meta", None).await.expect(204);
        assert_eq!(api.get("/api/v1/tasks/a/meta").await.expect(200).body["ready"], false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_celery_keeps_of_a_task() {
    let api = Api::memory().await;
    let view = api.get("/api/v1/tasks/nobody/meta").await.expect(200).body;
    assert_eq!(view, json!({ "meta": null, "ready": false }));
    let record = Record {
        results: vec![ResultMeta::new("a", State::Success, Json::parse("5").unwrap())],
        ..Default::default()
    };
    api.app.store().backend.record(vec![record]).await.unwrap();
    let view = api.get("/api/v1/tasks/a/meta?wait=20").await.expect(200).body;
    assert_eq!(view["ready"], true);
    assert_eq!((&view["meta"]["status"], &view["meta"]["result"]), (&json!("SUCCESS"), &json!(5)));
}
