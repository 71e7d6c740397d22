//! What is told of the process: probes, metrics, the description of the API, and mounting in another application.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use celeriac::Celeriac;
use celeriac::clock::SystemClock;
use celeriac::memory::MemoryStore;
use celeriac::store::Store;
use celeriac::testing::{FaultPlan, Faulty};
use celeriac_server::{Access, ServerConfig, description, embedded, router};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::client::{Api, http_client};
use crate::support::{Listening, server, soon};

#[tokio::test]
async fn probes_turn_red_for_their_own_cause() {
    let server = server(Access::default(), ServerConfig::default()).await;
    // Without a connection: a server that is shutting down takes no new ones.
    let probe = async |path: &str| {
        let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        let response = router(server.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    assert_eq!(probe("/readyz").await.0, 200);
    server.draining().cancel();
    let (status, body) = probe("/readyz").await;
    assert_eq!((status, &body["ok"]), (503, &json!(false)));
    assert_eq!(body["checks"][0], json!({ "name": "store", "ok": true, "text": "it answers" }));
    assert_eq!(body["checks"][1]["ok"], false);
    assert_eq!(probe("/livez").await.0, 200);
}

#[tokio::test]
async fn a_store_that_is_away_is_told() {
    let plan = FaultPlan::none();
    let store = Faulty::new(Store::of(MemoryStore::new(SystemClock::shared())), &plan);
    let app = Celeriac::builder().store(store).connect().await.unwrap();
    let api = Api::of(app, None, ServerConfig::default()).await;
    let id = api.add(1, 1).await;
    plan.set_outage(true);
    let answer = api.get("/readyz").await;
    assert_eq!((answer.status.as_u16(), &answer.body["checks"][0]["ok"]), (503, &json!(false)));
    api.get("/livez").await.expect(200);
    for path in
        ["/api/v1/tasks", "/api/v1/queues", "/api/v1/workers", &format!("/api/v1/tasks/{id}/result?wait=9")]
    {
        let answer = api.get(path).await.expect(503);
        assert_eq!(answer.body["type"], "/problems/store-unavailable");
        assert_eq!(answer.headers["retry-after"], "1");
    }
    plan.set_outage(false);
    api.get(&format!("/api/v1/tasks/{id}")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_of_queues_workers_and_requests() {
    let mut api = Api::memory().await;
    api.work(2).await;
    let id = api.add(1, 1).await;
    api.in_state(&id, "SUCCESS").await;
    api.task(json!({ "task": "app.elsewhere" })).await.expect(202);
    api.get("/api/v1/tasks/none").await.expect(404);
    api.get("/wp-login.php").await.expect(404);
    let answer = api.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.body.as_str().unwrap();
    for line in [
        "celeriac_queue_ready{queue=\"elsewhere\"} 1",
        "celeriac_queue_paused{queue=\"elsewhere\"} 0",
        "celeriac_workers 1",
        "celeriac_worker_slots 2",
        "celeriac_dead_letters 0",
        "celeriac_streams 0",
        "celeriac_http_requests_total{method=\"GET\",route=\"/api/v1/tasks/{id}\",status=\"4xx\"} 1",
        "celeriac_http_requests_total{method=\"POST\",route=\"/api/v1/tasks\",status=\"2xx\"} 2",
        "celeriac_http_requests_total{method=\"GET\",route=\"other\",status=\"4xx\"} 1",
        "# TYPE celeriac_http_request_duration_seconds histogram",
        concat!("celeriac_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(text.contains("process_start_time_seconds 1"), "{text}");
    // Every name is in the page about them.
    let page = include_str!("../../../../docs/metrics.md");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
}

/// Set this to write the description anew: `CELERIAC_WRITE_OPENAPI=1 cargo nextest run -p celeriac-server openapi`.
const WRITE: &str = "CELERIAC_WRITE_OPENAPI";

#[tokio::test]
async fn the_openapi_snapshot_is_up_to_date() {
    let server = server(Access::default(), ServerConfig::default()).await;
    let text = format!("{}\n", serde_json::to_string_pretty(&description(&server)).unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    // Not `assert_eq!`, whose message would be both texts.
    assert!(
        kept == text,
        "the API differs from openapi.json; if it should, set {WRITE}=1 and run this test again"
    );
}

#[tokio::test]
async fn the_description_and_its_browser_are_served() {
    let api = Api::memory().await;
    let served = api.get("/openapi.json").await.expect(200).body;
    assert_eq!(served, description(&api.server));
    assert_eq!(served["openapi"], "3.1.0");
    for (path, methods) in served["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses {
                // What operations have in common stands in the document once.
                let place = response["$ref"].as_str().map(|place| place.trim_start_matches('#'));
                let response = place.map_or(response, |place| served.pointer(place).unwrap());
                assert!(!response["description"].as_str().unwrap().is_empty(), "{method} {path} {status}");
                assert!(
                    response["content"].is_object() || status == "204",
                    "{method} {path} {status} has no schema"
                );
            }
            let open = ["/livez", "/readyz"].contains(&&**path);
            assert_eq!(responses.contains_key("401"), !open, "{method} {path}");
        }
    }
    let page = api.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.as_str().unwrap().contains("swagger-ui"));
    // Nothing is fetched from elsewhere.
    assert!(!page.body.as_str().unwrap().contains("https://"));
    let start = api.get("/docs/swagger-initializer.js").await;
    assert!(start.body.as_str().unwrap().contains("/openapi.json"), "{start:?}");
}

#[tokio::test]
async fn task_routes_are_mounted_anywhere() {
    let server = server(Access::default(), ServerConfig::default()).await;
    let whole = Router::new().nest("/my/jobs", embedded(server.clone()));
    let listening = Listening::start(&server, whole).await;
    let base = format!("http://{}/my/jobs/tasks", listening.address);
    let client = http_client();
    let call = client.post(&base).json(&json!({ "task": "anything" }));
    let sent = soon("an answer", call.send()).await.unwrap();
    assert_eq!(sent.status(), 202);
    let location = sent.headers()["location"].to_str().unwrap().to_owned();
    let id = sent.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(location, format!("/my/jobs/tasks/{id}"));
    let view = client.get(format!("http://{}{location}", listening.address));
    assert_eq!(soon("an answer", view.send()).await.unwrap().status(), 200);
    let wrong = client.get(format!("http://{}/my/jobs/queues", listening.address));
    assert_eq!(soon("an answer", wrong.send()).await.unwrap().status(), 404);
    listening.stopped().await;
}
