//! Webhooks, delivered to a receiver over real sockets.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use celeriac::client::{WEBHOOK_QUEUE, WEBHOOK_TASK};
use celeriac::{AsyncResult, CallOptions, Celeriac, Json, State as TaskState};
use celeriac_server::{Access, ServerConfig, webhook};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::support::{Listening, PATIENCE, server, soon};

const SECRET: &str = "webhook-secret-0123456789";

/// What a receiver got, and what it answers: each in turn, and the last of them ever after.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Vec<(u16, Option<&'static str>)>>,
    got: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    came: Arc<Notify>,
}

impl Receiver {
    fn answering(answers: &[(u16, Option<&'static str>)]) -> Self {
        Self { answers: Arc::new(answers.to_vec()), ..Self::default() }
    }

    async fn listen(&self) -> Listening {
        async fn receive(
            State(receiver): State<Receiver>,
            uri: axum::http::Uri,
            headers: HeaderMap,
            body: Bytes,
        ) -> impl IntoResponse {
            let mut got = receiver.got.lock().unwrap();
            let (status, wish) = receiver.answers[got.len().min(receiver.answers.len() - 1)];
            got.push((uri.to_string(), headers, body));
            receiver.came.notify_one();
            let mut answer = HeaderMap::new();
            if let Some(wish) = wish {
                let (name, value) = wish.split_once(": ").unwrap();
                answer.insert(axum::http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            }
            (StatusCode::from_u16(status).unwrap(), answer)
        }
        let router = Router::new().fallback(receive).with_state(self.clone());
        Listening::start(&server(Access::open(), ServerConfig::default()).await, router).await
    }

    fn got(&self) -> Vec<(String, HeaderMap, Bytes)> {
        self.got.lock().unwrap().clone()
    }

    async fn got_so_many(&self, count: usize) -> Vec<(String, HeaderMap, Bytes)> {
        let enough = async {
            while self.got().len() < count {
                self.came.notified().await;
            }
        };
        soon("deliveries", enough).await;
        self.got()
    }
}

fn config(private: bool) -> ServerConfig {
    let mut config = ServerConfig::default();
    config.webhook_secret = Some(SECRET.to_owned());
    config.webhook_private = private;
    config
}

/// A courier that runs until it is dropped.
struct Courier {
    _stop: tokio_util::sync::DropGuard,
}

impl Courier {
    fn start(app: &Celeriac, config: &ServerConfig) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(webhook::courier(app, config).unwrap().run(stopped));
        Self { _stop: stop.drop_guard() }
    }
}

async fn send(app: &Celeriac, url: &str) -> AsyncResult {
    let args = vec![Json::string(url), Json::parse(r#"{"id": "a", "state": "SUCCESS"}"#).unwrap()];
    let options = CallOptions { queue: Some(WEBHOOK_QUEUE.to_owned()), ..CallOptions::default() };
    app.send_task(WEBHOOK_TASK, args, Default::default(), options).await.unwrap()
}

#[celeriac::task(name = "tests.triple")]
async fn triple(number: i64) -> i64 {
    number * 3
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_task_is_told_and_signed() {
    let receiver = Receiver::answering(&[(204, None)]);
    let listening = receiver.listen().await;
    let app = Celeriac::connect("memory://").await.unwrap().register(triple);
    let stop = CancellationToken::new();
    let worker = tokio::spawn(app.worker().concurrency(1).run(stop.clone().cancelled_owned()));
    let courier = Courier::start(&app, &config(true));
    let url = format!("http://{}/hook?key=value", listening.address);
    let options = CallOptions { webhook: Some(url), ..CallOptions::default() };
    let result = triple(5).apply_async(&app, options).await.unwrap();

    let got = receiver.got_so_many(1).await;
    let (path, headers, body) = &got[0];
    assert_eq!(path, "/hook?key=value");
    assert_eq!(headers["content-type"], "application/json");
    let told: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!((&told["id"], &told["state"]), (&result.id().as_str().into(), &"SUCCESS".into()));
    assert_eq!((&told["result"], &told["task"]), (&15.into(), &"tests.triple".into()));
    let text = |name: &str| headers[name].to_str().unwrap();
    let (id, timestamp) = (text("celeriac-webhook-id"), text("celeriac-webhook-timestamp"));
    let expected = webhook::signature(SECRET, id, timestamp.parse().unwrap(), body);
    assert_eq!(text("celeriac-webhook-signature"), expected);
    assert_ne!(webhook::signature("another secret", id, timestamp.parse().unwrap(), body), expected);
    let age = app.clock().now().as_second() - timestamp.parse::<i64>().unwrap();
    assert!((0..60).contains(&age), "{age}");

    let delivery = app.async_result::<Json>(id);
    assert_eq!(delivery.wait(PATIENCE).await.unwrap(), TaskState::Success);
    assert_eq!(receiver.got().len(), 1);
    drop(courier);
    stop.cancel();
    worker.await.unwrap().unwrap();
    listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_when_the_receiver_says() {
    let receiver =
        Receiver::answering(&[(503, Some("retry-after: 1")), (404, Some("retry-after: 1")), (200, None)]);
    let listening = receiver.listen().await;
    let app = Celeriac::connect("memory://").await.unwrap();
    let _courier = Courier::start(&app, &config(true));
    let delivery = send(&app, &format!("http://{}/", listening.address)).await;
    assert_eq!(delivery.wait(PATIENCE).await.unwrap(), TaskState::Success);
    let got = receiver.got();
    assert_eq!(got.len(), 3);
    let ids: Vec<_> = got.iter().map(|(_, headers, _)| &headers["celeriac-webhook-id"]).collect();
    assert!(ids.iter().all(|id| **id == delivery.id().as_str()), "each try has the same id: {ids:?}");
    let signatures: Vec<_> =
        got.iter().map(|(_, headers, _)| &headers["celeriac-webhook-signature"]).collect();
    assert_ne!(signatures[0], signatures[2], "and a time of its own");
    listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_is_left_alone() {
    let receiver = Receiver::answering(&[(410, None)]);
    let listening = receiver.listen().await;
    let app = Celeriac::connect("memory://").await.unwrap();
    let _courier = Courier::start(&app, &config(true));
    let delivery = send(&app, &format!("http://{}/", listening.address)).await;
    assert_eq!(delivery.wait(PATIENCE).await.unwrap(), TaskState::Failure);
    assert_eq!(receiver.got().len(), 1);
    listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed() {
    let receiver = Receiver::answering(&[(307, Some("location: /elsewhere")), (200, None)]);
    let listening = receiver.listen().await;
    let app = Celeriac::connect("memory://").await.unwrap();
    let _courier = Courier::start(&app, &config(true));
    let delivery = send(&app, &format!("http://{}/", listening.address)).await;
    let retried = async {
        while delivery.state().await.unwrap() != TaskState::Retry {
            tokio::task::yield_now().await;
        }
    };
    soon("the delivery is put off", retried).await;
    let got = receiver.got();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(got[0].0, "/");
    listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_unless_allowed() {
    let receiver = Receiver::answering(&[(200, None)]);
    let listening = receiver.listen().await;
    let app = Celeriac::connect("memory://").await.unwrap();
    let _courier = Courier::start(&app, &config(false));
    let port = listening.address.port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
        let delivery = send(&app, &format!("http://{host}:{port}/")).await;
        assert_eq!(delivery.wait(PATIENCE).await.unwrap(), TaskState::Failure, "{host}");
        let error = delivery.info().await.unwrap().unwrap().result;
        assert!(error.as_str().contains("private"), "{error}");
    }
    assert!(receiver.got().is_empty());
    listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_shows_no_secret_of_its_url() {
    let app = Celeriac::connect("memory://").await.unwrap();
    let _courier = Courier::start(&app, &config(true));
    // A port that nobody listens on.
    let port = Receiver::answering(&[(200, None)]).listen().await;
    let address = port.address;
    port.stopped().await;
    let delivery = send(&app, &format!("http://{address}/hook?key=hunter2")).await;
    let retried = async {
        while delivery.state().await.unwrap() != TaskState::Retry {
            tokio::task::yield_now().await;
        }
    };
    soon("the delivery is put off", retried).await;
    let meta = delivery.info().await.unwrap().unwrap();
    let shown = format!("{} {:?}", meta.result, meta.traceback);
    assert!(shown.contains("error") && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn without_a_secret_there_is_no_courier() {
    let app = Celeriac::connect("memory://").await.unwrap();
    let error = webhook::courier(&app, &ServerConfig::default()).unwrap_err();
    assert!(error.to_string().contains("set a webhook secret"), "{error}");
    let mut config = config(true);
    config.webhook_secret = Some("short".to_owned());
    assert!(webhook::courier(&app, &config).is_err());
}
