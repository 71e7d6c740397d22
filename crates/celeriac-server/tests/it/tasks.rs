//! Sending tasks and looking at them, on every store.

use celeriac::state::Phase;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Api, gate};

macro_rules! on_every_store {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Api::memory().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Api::sqlite().await).await;
            })*
        }
    };
}

on_every_store! {
    a_task_is_sent_run_and_looked_at
    a_failure_is_told
    results_are_waited_for
    tasks_are_listed
    keys_are_kept
    ids_are_keys
    batches_are_whole
    what_waits_is_revoked
    what_runs_is_told_to_stop
    what_is_over_runs_again
    many_are_revoked_and_run_again
    queues_are_paused_and_purged
    waiting_is_explained
}

async fn a_task_is_sent_run_and_looked_at(mut api: Api) {
    let sent = api
        .task(json!({ "task": "app.add", "args": [2, 3], "tags": ["red", "x y"], "headers": {"trace": 7}, "shadow": "sum" }))
        .await
        .expect(202);
    let id = sent.id();
    assert_eq!(sent.headers["location"], format!("/api/v1/tasks/{id}"));
    assert_eq!(sent.body["state"], "PENDING");
    assert_eq!(sent.body["phase"], "queued");
    assert_eq!(sent.body["tags"], json!(["red", "x y"]));
    assert_eq!(sent.body["args"], "(2, 3)");
    assert_eq!(sent.body["shadow"], "sum");
    assert_eq!(sent.body["queue"], "celery");
    api.work(1).await;
    let view = api.in_state(&id, "SUCCESS").await;
    assert_eq!(view["result"], 5);
    assert_eq!(view["error"], Value::Null);
    assert_eq!(view["phase"], "settled");
    assert_eq!(view["waits"], Value::Null);
    assert_eq!(view["deliveries"], Value::Null);
    assert!(view["worker"].as_str().unwrap().starts_with("w0@test/"));
    let attempts = view["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{view}");
    assert_eq!(attempts[0]["outcome"], "succeeded");
    assert!(attempts[0]["ended"].is_string());
    assert!(view["times"]["accepted"].as_str().unwrap() <= view["times"]["finished"].as_str().unwrap());
    // What is not known is not found, whatever it is called.
    for id in ["no-such-task", "%00", "%F0%9F%A6%80", "a%2Fb", &"x".repeat(5000)] {
        let answer = api.get(&format!("/api/v1/tasks/{id}")).await.expect(404);
        assert_eq!(answer.body["type"], "/problems/unknown-task");
    }
    // The options of a task hold for those who send it by name.
    let sent = api.task(json!({ "task": "app.elsewhere" })).await.expect(202);
    assert_eq!((&sent.body["queue"], &sent.body["priority"]), (&json!("elsewhere"), &json!(3)));
}

async fn a_failure_is_told(mut api: Api) {
    api.work(1).await;
    let id =
        api.task(json!({ "task": "app.fail", "kwargs": {"why": "no \u{1f980}"} })).await.expect(202).id();
    let view = api.in_state(&id, "FAILURE").await;
    assert_eq!(view["error"]["message"], "no \u{1f980}");
    assert_eq!(view["kwargs"], "{'why': 'no \u{1f980}'}");
    assert_eq!(view["attempts"][0]["outcome"], "failed");
    assert_eq!(view["attempts"][0]["error"], view["error"]);
    let result = api.get(&format!("/api/v1/tasks/{id}/result")).await.expect(200).body;
    assert_eq!(result["state"], "FAILURE");
    assert_eq!(result["error"], view["error"]);
    assert!(result["traceback"].is_string());
    assert_eq!(result["result"], Value::Null);
}

async fn results_are_waited_for(mut api: Api) {
    let gate_name = format!("results {}", api.app.url());
    let id = api.task(json!({ "task": "app.gate", "args": [gate_name] })).await.expect(202).id();
    let path = format!("/api/v1/tasks/{id}/result");
    let early = api.get(&path).await.expect(202).body;
    assert_eq!((&early["state"], &early["ready"]), (&json!("PENDING"), &json!(false)));
    api.get(&format!("{path}?wait=0.01")).await.expect(202);
    api.work(1).await;
    api.in_state(&id, "STARTED").await;
    let path = format!("{path}?wait=60");
    let (waited, ()) = tokio::join!(api.get(&path), async { gate(&gate_name).add_permits(1) });
    let waited = waited.expect(200).body;
    assert_eq!(waited["result"], gate_name);
    api.get("/api/v1/tasks/none/result?wait=30").await.expect(404);
    assert_eq!(api.get(&format!("{path}&wait=1")).await.places(), ["wait"]);
    for wrong in ["-1", "61", "NaN", "inf", "1e999", "soon", ""] {
        let answer = api.get(&format!("/api/v1/tasks/{id}/result?wait={wrong}&x=1")).await;
        assert_eq!(answer.places(), ["wait", "x"], "{wrong}");
    }
}

async fn tasks_are_listed(mut api: Api) {
    let mut ids = Vec::new();
    for number in 0..5 {
        let body = json!({ "task": "app.add", "args": [number, 1], "tags": [format!("t{}", number % 2)] });
        ids.push(api.task(body).await.expect(202).id());
    }
    ids.reverse();
    let listed = |body: &Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    // Newest first, page by page.
    let mut found = Vec::new();
    let mut path = "/api/v1/tasks?limit=2".to_owned();
    loop {
        let page = api.get(&path).await.expect(200).body;
        assert!(listed(&page).len() <= 2);
        found.extend(listed(&page));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/v1/tasks?limit=2&cursor={next}");
    }
    assert_eq!(found, ids);
    let of = async |query: &str| listed(&api.get(&format!("/api/v1/tasks?{query}")).await.expect(200).body);
    assert_eq!(of("tag=t1").await, [ids[1].clone(), ids[3].clone()]);
    assert_eq!(of("state=PENDING,FAILURE&phase=queued").await, ids);
    assert_eq!(of("state=SUCCESS&state=FAILURE").await, [""; 0]);
    assert_eq!(of("q=app.a&task=app.add&queue=celery").await, ids);
    assert_eq!(of(&format!("q={}", ids[2])).await, [ids[2].clone()]);
    assert_eq!(of("since=2999-01-01T00:00:00Z").await, [""; 0]);
    assert_eq!(of("until=2999-01-01T00:00:00%2B02:00").await, ids);
    let item = &api.get("/api/v1/tasks?limit=1").await.body["items"][0];
    assert_eq!(item["waits"]["code"], "no_worker_for_queue");
    api.work(2).await;
    for id in &ids {
        api.in_state(id, "SUCCESS").await;
    }
    let worker = |query: &'static str| api.get(query);
    assert_eq!(listed(&worker("/api/v1/tasks?worker=w0@test&state=SUCCESS").await.body), ids);
    assert_eq!(listed(&worker("/api/v1/tasks?worker=w1@test").await.body), [""; 0]);
    // Every problem at once.
    let places = api
        .get("/api/v1/tasks?limit=0&cursor=x&phase=gone&since=now&states=A&task=&state=,A&until=1")
        .await
        .places();
    assert_eq!(places, ["state", "phase", "task", "since", "until", "limit", "cursor", "states"]);
}

async fn keys_are_kept(api: Api) {
    let body = json!({ "task": "app.add", "args": [1, {"a": [1, 2]}], "idempotency_key": "k" });
    let first = api.task(body.clone()).await.expect(202);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    // The same again, and the same in another spelling.
    let again = api.task(body).await.expect(202);
    assert_eq!((again.id(), &again.headers["idempotency-replayed"]), (first.id(), &"true".parse().unwrap()));
    let request = api.request(Method::POST, "/api/v1/tasks").header("content-type", "application/json");
    let request = request
        .header("idempotency-key", "k")
        .body("{ \"args\":[ 1,{\"a\" :[1,2]}],\n\"queue\":null, \"task\": \"app.add\"}");
    let again = api.answer(request).await.expect(202);
    assert_eq!((again.id(), &again.headers["idempotency-replayed"]), (first.id(), &"true".parse().unwrap()));
    // The key for something else, by a new arg or a new option.
    for other in [json!({ "args": [2, 2] }), json!({ "args": [1, {"a": [1, 2]}], "queue": "q" })] {
        let mut body = json!({ "task": "app.add", "idempotency_key": "k" });
        body.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        let refused = api.task(body).await.expect(409).body;
        assert_eq!(refused["type"], "/problems/key-reused");
        assert_eq!(refused["errors"][0]["at"], "/idempotency_key");
        assert!(refused["detail"].as_str().unwrap().contains("key k"), "{refused}");
    }
    // Of another task it is another key.
    let other =
        api.task(json!({ "task": "app.fail", "args": ["x"], "idempotency_key": "k" })).await.expect(202);
    assert_ne!(other.id(), first.id());
    let keys = |key: &'static str| api.request(Method::POST, "/api/v1/tasks").header("idempotency-key", key);
    let both = keys("k").json(&json!({ "task": "app.add", "args": [1, 1], "idempotency_key": "l" }));
    assert_eq!(api.answer(both).await.expect(409).body["type"], "/problems/two-keys");
    let wrong = keys("two words").json(&json!({ "task": "app.add", "args": [1, 1] }));
    assert_eq!(api.answer(wrong).await.places(), ["Idempotency-Key"]);
    assert_eq!(api.get("/api/v1/tasks").await.body["items"].as_array().unwrap().len(), 2);
}

async fn ids_are_keys(mut api: Api) {
    let body = json!({ "task": "app.add", "args": [1, 1], "task_id": "mine/é" });
    let first = api.task(body.clone()).await.expect(202);
    assert_eq!(first.headers["location"], "/api/v1/tasks/mine%2F%C3%A9");
    api.work(1).await;
    api.in_state("mine%2F%C3%A9", "SUCCESS").await;
    // Finished, and still not sent again.
    let again = api.task(body).await.expect(202);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.body["state"], "SUCCESS");
    let taken = api.task(json!({ "task": "app.add", "args": [2, 2], "task_id": "mine/é" })).await.expect(409);
    assert_eq!(taken.body["type"], "/problems/key-reused");
}

async fn batches_are_whole(api: Api) {
    let call = |x: i64| json!({ "task": "app.add", "args": [x, 1] });
    let sent = api.post("/api/v1/tasks/batch", json!({ "tasks": [call(1), call(2)] })).await.expect(202).body;
    assert_eq!(sent["items"].as_array().unwrap().len(), 2);
    let wrong = json!({ "tasks": [call(3), {"task": "app.add", "args": [1, 1], "countdown": -1, "extra": 1}, 7, {"args": []}] });
    let places = api.post("/api/v1/tasks/batch", wrong).await.places();
    assert_eq!(places, ["/tasks/1/countdown", "/tasks/1/extra", "/tasks/2", "/tasks/3/task"]);
    let unknown = json!({ "tasks": [call(3), {"task": "app.ad"}, {"task": "nothing.like.it"}] });
    let unknown = api.post("/api/v1/tasks/batch", unknown).await.expect(404).body;
    assert_eq!(unknown["errors"][0]["at"], "/tasks/1/task");
    assert!(
        unknown["errors"][0]["problem"].as_str().unwrap().ends_with("did you mean app.add?"),
        "{unknown}"
    );
    assert_eq!(unknown["errors"][1]["at"], "/tasks/2/task");
    // The same key twice is one call, and one of other content is refused.
    let keyed = |x: i64| json!({ "task": "app.add", "args": [x, 1], "idempotency_key": "k" });
    let twice =
        api.post("/api/v1/tasks/batch", json!({ "tasks": [keyed(1), keyed(1)] })).await.expect(202).body;
    assert_eq!(twice["items"][0]["id"], twice["items"][1]["id"]);
    assert_eq!(
        (&twice["items"][0]["replayed"], &twice["items"][1]["replayed"]),
        (&json!(false), &json!(true))
    );
    let other =
        api.post("/api/v1/tasks/batch", json!({ "tasks": [call(1), keyed(2)] })).await.expect(409).body;
    assert_eq!(other["errors"][0]["at"], "/tasks/1/idempotency_key");
    for empty in [json!({ "tasks": [] }), json!({}), json!({ "tasks": null })] {
        assert_eq!(api.post("/api/v1/tasks/batch", empty).await.places(), ["/tasks"]);
    }
    // Nothing of what was refused is there.
    assert_eq!(api.get("/api/v1/tasks").await.body["items"].as_array().unwrap().len(), 3);
}

async fn what_waits_is_revoked(api: Api) {
    let later = api.task(json!({ "task": "app.add", "args": [1, 1], "countdown": 3600 })).await.expect(202);
    assert_eq!(later.body["phase"], "delayed");
    assert_eq!(later.body["waits"]["code"], "eta");
    assert_eq!(later.body["waits"]["until"], later.body["times"]["eta"]);
    let later = later.id();
    let now = api.add(1, 1).await;
    let revoke = async |id: &str| api.send(Method::POST, &format!("/api/v1/tasks/{id}/revoke"), None).await;
    assert_eq!(revoke(&later).await.expect(200).body["revoked"], "scheduled");
    assert_eq!(revoke(&now).await.expect(200).body["revoked"], "queued");
    assert_eq!(revoke(&now).await.expect(200).body["revoked"], "finished");
    assert_eq!(revoke("none").await.expect(404).body["type"], "/problems/unknown-task");
    let view = api.in_state(&later, "REVOKED").await;
    assert_eq!(view["attempts"], json!([]));
    let wrong = json!({ "terminate": 1, "signal": "KILL", "grace": 3, "force": true });
    let places = api.post(&format!("/api/v1/tasks/{now}/revoke"), wrong).await.places();
    assert_eq!(places, ["/terminate", "/signal", "/grace", "/force"]);
}

async fn what_runs_is_told_to_stop(mut api: Api) {
    api.work(1).await;
    let gate_name = format!("stop {}", api.app.url());
    let id = api.task(json!({ "task": "app.gate", "args": [gate_name] })).await.expect(202).id();
    let running = api.in_state(&id, "STARTED").await;
    assert_eq!(running["attempts"][0]["outcome"], "running");
    assert_eq!(running["deliveries"], 1);
    assert_eq!(running["waits"], Value::Null);
    let conflict = api.send(Method::POST, &format!("/api/v1/tasks/{id}/retry"), None).await.expect(409).body;
    assert!(conflict["detail"].as_str().unwrap().starts_with("w0@test/"), "{conflict}");
    let path = format!("/api/v1/tasks/{id}/revoke");
    let told = api.post(&path, json!({})).await.expect(200).body;
    assert_eq!((&told["revoked"], &told["terminate"]), (&json!("running"), &json!(false)));
    assert_eq!(api.get(&format!("/api/v1/tasks/{id}")).await.body["state"], "STARTED");
    let told = api.post(&path, json!({ "terminate": true, "signal": "SIGUSR1" })).await.expect(200).body;
    assert_eq!((&told["revoked"], &told["terminate"]), (&json!("running"), &json!(true)));
    assert!(told["worker"].as_str().unwrap().starts_with("w0@test/"));
    let view = api.in_state(&id, "REVOKED").await;
    assert_eq!(view["error"]["message"], "terminated");
}

async fn what_is_over_runs_again(mut api: Api) {
    let id = api.add(20, 1).await;
    let retry =
        async |api: &Api, id: &str| api.send(Method::POST, &format!("/api/v1/tasks/{id}/retry"), None).await;
    assert_eq!(retry(&api, &id).await.expect(409).body["type"], "/problems/unfinished");
    api.work(1).await;
    api.in_state(&id, "SUCCESS").await;
    api.stop_workers().await;
    let again = retry(&api, &id).await.expect(202).body;
    assert_eq!((&again["state"], &again["phase"]), (&json!("PENDING"), &json!("queued")));
    assert_eq!(again["id"], id.as_str());
    assert_eq!(again["result"], Value::Null);
    api.work(1).await;
    assert_eq!(api.in_state(&id, "SUCCESS").await["result"], 21);
    // One that was revoked before its time runs at once.
    let body = json!({ "task": "app.add", "args": [1, 1], "countdown": 3600, "expires": 7200 });
    let later = api.task(body).await.expect(202).id();
    api.post(&format!("/api/v1/tasks/{later}/revoke"), json!({})).await.expect(200);
    let again = retry(&api, &later).await.expect(202).body;
    assert_eq!((&again["times"]["eta"], &again["times"]["expires"]), (&Value::Null, &Value::Null));
    assert_eq!(api.in_state(&later, "SUCCESS").await["result"], 2);
    retry(&api, "none").await.expect(404);
}

async fn many_are_revoked_and_run_again(mut api: Api) {
    for number in 0..6 {
        let body = json!({ "task": "app.add", "args": [number, 1], "tags": [format!("t{}", number % 2)] });
        api.task(body).await.expect(202);
    }
    let revoke = async |body: Value| api.post("/api/v1/tasks/revoke", body).await;
    // A filter that filters nothing is not what anybody means.
    for (wrong, places) in [
        (json!({}), vec![""]),
        (json!({ "filter": {} }), vec!["/filter"]),
        (json!({ "filter": {"tag": null} }), vec!["/filter/tag"]),
        (json!({ "filter": {"tags": "x", "limit": 3} }), vec!["/filter/limit", "/filter/tags"]),
        (json!({ "all": false }), vec!["/all"]),
        (json!({ "all": true, "ids": [] }), vec![""]),
        (json!({ "ids": "x" }), vec!["/ids"]),
        (json!({ "filter": {"phase": ["gone"]} }), vec!["/filter/phase"]),
        (json!({ "all": true, "terminate": true, "signal": "KILL" }), vec!["/signal"]),
    ] {
        assert_eq!(revoke(wrong.clone()).await.places(), places, "{wrong}");
    }
    assert_eq!(api.get("/api/v1/tasks?phase=queued").await.body["items"].as_array().unwrap().len(), 6);
    let done = revoke(json!({ "filter": {"tag": "t1"}, "terminate": true, "signal": "SIGUSR1" }))
        .await
        .expect(200)
        .body;
    assert_eq!((&done["queued"], &done["more"]), (&json!(3), &json!(false)));
    let done = revoke(json!({ "ids": ["none"] })).await.expect(200).body;
    assert_eq!(done["unknown"], 1);
    let done = revoke(json!({ "all": true })).await.expect(200).body;
    assert_eq!((&done["queued"], &done["finished"]), (&json!(3), &json!(0)));
    let done = api.post("/api/v1/tasks/retry", json!({ "filter": {"tag": "t0"} })).await.expect(200).body;
    assert_eq!((&done["retried"], &done["unfinished"]), (&json!(3), &json!(0)));
    api.work(2).await;
    let succeeded = |body: &Value| body["items"].as_array().unwrap().len() == 3;
    api.until("/api/v1/tasks?state=SUCCESS", succeeded).await;
    // All means those that did not succeed.
    let done = api.post("/api/v1/tasks/retry", json!({ "all": true })).await.expect(200).body;
    assert_eq!(done["retried"], 3);
}

async fn queues_are_paused_and_purged(mut api: Api) {
    let paused = api.post("/api/v1/queues/celery/pause", json!({})).await.expect(200).body;
    assert_eq!((&paused["name"], &paused["paused"]), (&json!("celery"), &json!(true)));
    api.work(1).await;
    let id = api.add(1, 1).await;
    let view = api.get(&format!("/api/v1/tasks/{id}")).await.expect(200).body;
    assert_eq!(view["waits"]["code"], "queue_paused");
    let queues = api.get("/api/v1/queues").await.expect(200).body;
    assert_eq!(queues["items"][0]["ready"], 1);
    assert_eq!(queues["items"][0]["workers"], json!(["w0@test"]));
    let purged = api.send(Method::POST, "/api/v1/queues/celery/purge", None).await.expect(200).body;
    assert_eq!(purged["purged"], 1);
    api.in_state(&id, "REVOKED").await;
    let id = api.add(1, 1).await;
    let resumed = api.send(Method::POST, "/api/v1/queues/celery/resume", None).await.expect(200).body;
    assert_eq!(resumed["paused"], false);
    api.in_state(&id, "SUCCESS").await;
    let purged = api.send(Method::POST, "/api/v1/queues/%00never%2Fused/purge", None).await.expect(200).body;
    assert_eq!(purged["purged"], 0);
    let long = format!("/api/v1/queues/{}/pause", "q".repeat(256));
    assert_eq!(api.post(&long, json!({})).await.places(), ["name"]);
}

async fn waiting_is_explained(mut api: Api) {
    api.work(1).await;
    let gate_name = format!("waits {}", api.app.url());
    let first = api.task(json!({ "task": "app.gate", "args": [gate_name] })).await.expect(202).id();
    api.in_state(&first, "STARTED").await;
    let second = api.add(1, 1).await;
    let third = api.add(1, 1).await;
    // The worker says how many it runs with its next beat.
    let path = format!("/api/v1/tasks/{third}");
    let busy = api.until(&path, |body| body["waits"]["code"] == "workers_busy").await;
    assert_eq!(busy["waits"]["ahead"], 1);
    assert_eq!(busy["waits"]["text"], "1 of 1 slots of its workers are taken; 1 task is before it");
    let elsewhere = api.task(json!({ "task": "app.elsewhere" })).await.expect(202);
    assert_eq!(elsewhere.body["waits"]["code"], "no_worker_for_queue");
    assert_eq!(api.phase(&second).await, Some(Phase::Queued));
    gate(&gate_name).add_permits(1);
    api.in_state(&third, "SUCCESS").await;
}
