//! What is refused, and how it is told.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Api;

#[tokio::test]
async fn every_problem_of_a_call_is_listed() {
    let api = Api::memory().await;
    let body = json!({
        "task": "", "args": {"x": 1}, "kwargs": [1], "queue": 7, "priority": 10, "countdown": "soon",
        "eta": "tomorrow", "expires": true, "time_limit": 0, "soft_time_limit": -1, "task_id": "x".repeat(256),
        "idempotency_key": "", "tags": ["ok", "", 3], "ignore_result": "yes", "shadow": [],
        "headers": {"eta": 1, "celeriac_webhook": "http://10.0.0.1/"}, "webhook": "",
        "countdwn": 1,
    });
    let places = api.task(body).await.places();
    let expected = [
        "/task",
        "/args",
        "/kwargs",
        "/countdown",
        "/eta",
        "/idempotency_key",
        "/task_id",
        "/tags/1",
        "/tags/2",
        "/headers/celeriac_webhook",
        "/headers/eta",
        "/webhook",
        "/expires",
        "/priority",
        "/queue",
        "/time_limit",
        "/soft_time_limit",
        "/ignore_result",
        "/shadow",
        "/countdwn",
    ];
    let mut sorted: Vec<&str> = places.iter().map(|place| &**place).collect();
    let mut wanted = expected.to_vec();
    sorted.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted);
    let both = json!({ "task": "app.add", "args": [1, 1], "countdown": 1, "eta": "2999-01-01T00:00:00Z", "task_id": "a", "idempotency_key": "b" });
    assert_eq!(api.task(both).await.places(), ["/countdown", "/idempotency_key"]);
    for not_an_object in [json!([]), json!(7), json!("x"), Value::Null] {
        assert_eq!(api.task(not_an_object).await.places(), [""]);
    }
    assert_eq!(api.get("/api/v1/tasks").await.body["items"], json!([]));
}

#[tokio::test]
async fn what_no_worker_could_read_is_refused() {
    let api = Api::memory().await;
    let deep = (0..210).fold(json!(1), |inner, _| json!([inner]));
    let body = json!({ "task": "app.add", "args": [1, deep], "kwargs": {"a/b": {"__type__": "pickle", "__value__": 1}} });
    assert_eq!(api.task(body).await.places(), ["/args/1", "/kwargs/a~1b"]);
}

#[tokio::test]
async fn numbers_of_any_size_travel_unchanged() {
    let api = Api::memory().await;
    let request =
        api.request(Method::POST, "/api/v1/tasks").header("content-type", "application/json; charset=utf-8");
    let body = r#"{"task": "app.add", "args": [123456789012345678901234567890, 1.10], "priority": 2.0}"#;
    let sent = api.answer(request.body(body)).await.expect(202).body;
    assert_eq!(sent["args"], "(123456789012345678901234567890, 1.10)");
    assert_eq!(sent["priority"], 2);
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let api = Api::with(|config| config.body_bytes_max = 1000).await;
    let send = async |content_type: Option<&str>, body: Vec<u8>| {
        let mut request = api.request(Method::POST, "/api/v1/tasks").body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        api.answer(request).await
    };
    let json = Some("application/json");
    let malformed = send(json, b"{\n\"task\": }".to_vec()).await.expect(400).body;
    assert!(malformed["detail"].as_str().unwrap().ends_with("line 2 column 9"), "{malformed}");
    send(json, b"{\"task\": \"\xff\"}".to_vec()).await.expect(400);
    send(json, b"{\"task\": NaN}".to_vec()).await.expect(400);
    send(json, Vec::new()).await.expect(400);
    send(json, [b"[".repeat(400), b"]".repeat(400)].concat()).await.expect(400);
    send(Some("text/plain"), b"{}".to_vec()).await.expect(415);
    send(None, b"{}".to_vec()).await.expect(415);
    let large = send(json, vec![b' '; 1001]).await.expect(413).body;
    assert_eq!(large["type"], "/problems/body-too-large");
}

#[tokio::test]
async fn unknown_tasks_are_refused_where_names_are_known() {
    let api = Api::memory().await;
    let unknown = api.task(json!({ "task": "app.ad" })).await.expect(404).body;
    assert_eq!(unknown["type"], "/problems/unknown-task-name");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean app.add"), "{unknown}");
    api.task(json!({ "task": "celery.map" })).await.expect(202);
    let lenient = Api::with(|config| config.accept_unknown_tasks = true).await;
    lenient.task(json!({ "task": "app.\u{0}ad" })).await.expect(202);
}

#[tokio::test]
async fn a_full_queue_takes_nothing_more() {
    let api = Api::with(|config| config.queue_bound = 3).await;
    api.add(1, 1).await;
    let call = || json!({ "task": "app.add", "args": [1, 1] });
    // The whole batch must fit.
    let full =
        api.post("/api/v1/tasks/batch", json!({ "tasks": [call(), call(), call()] })).await.expect(429);
    assert_eq!(full.body["type"], "/problems/queue-full");
    assert_eq!(full.headers["retry-after"], "5");
    api.post("/api/v1/tasks/batch", json!({ "tasks": [call(), call()] })).await.expect(202);
    api.task(call()).await.expect(429);
    // Another queue has room.
    api.task(json!({ "task": "app.add", "args": [1, 1], "queue": "other" })).await.expect(202);
}

#[tokio::test]
async fn nobody_has_deliveries_signed_for_them() {
    let api = Api::with(|config| config.accept_unknown_tasks = true).await;
    let task = json!({ "task": "celeriac.webhook", "args": ["http://a.example/", {}] });
    assert_eq!(api.task(task.clone()).await.places(), ["/task"]);
    let batch = api.post("/api/v1/tasks/batch", json!({ "tasks": [task] })).await;
    assert_eq!(batch.places(), ["/tasks/0/task"]);
}

#[tokio::test]
async fn webhooks_need_a_secret() {
    let api = Api::memory().await;
    let body = || json!({ "task": "app.add", "args": [1, 1], "webhook": "https://example.com/x" });
    assert_eq!(api.task(body()).await.expect(403).body["type"], "/problems/webhooks-off");
    let able = Api::with(|config| config.webhook_secret = Some("a secret of the tests".to_owned())).await;
    able.task(body()).await.expect(202);
    for wrong in ["https://me:pw@example.com/x", "ftp://example.com/", "http://127.0.0.1/", "example"] {
        let places = able
            .task(json!({ "task": "app.add", "args": [1, 1], "webhook": wrong, "priority": 10 }))
            .await
            .places();
        assert_eq!(places, ["/webhook", "/priority"], "{wrong}");
    }
}

#[tokio::test]
async fn what_there_is_not() {
    let api = Api::memory().await;
    let nothing = api.get("/api/v1/nothing").await.expect(404).body;
    assert_eq!(nothing["type"], "/problems/no-route");
    let wrong = api.send(Method::DELETE, "/api/v1/tasks", None).await.expect(405);
    assert_eq!(wrong.body["type"], "/problems/method-not-allowed");
    let allow = wrong.headers["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    assert!(api.get("/problems/queue-full").await.expect(200).body["text"].is_string());
    api.get("/problems/none").await.expect(404);
}
