//! A client of the API, and what it talks to: a server on a port, an application with tasks, perhaps a worker.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use celeriac::{Celeriac, TaskId};
use celeriac_server::{Access, Server, ServerConfig, router};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Listening, PATIENCE, soon};

/// Adds two numbers.
///
/// They are *whole*.
#[celeriac::task(name = "app.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "app.fail", max_retries = 0)]
async fn fail(why: String) -> Result<(), std::io::Error> {
    Err(std::io::Error::other(why))
}

/// Waits at the gate of this name.
#[celeriac::task(name = "app.gate", max_retries = 3, default_retry_delay = 3600, autoretry)]
async fn at_gate(name: String) -> Result<String, std::io::Error> {
    gate(&name).acquire().await.unwrap().forget();
    Ok(name)
}

#[celeriac::task(name = "app.elsewhere", queue = "elsewhere", priority = 3)]
async fn elsewhere() -> i64 {
    0
}

/// The gate of a name; each permit lets one task through.
pub(crate) fn gate(name: &str) -> Arc<Semaphore> {
    static GATES: LazyLock<Mutex<HashMap<String, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);
    let mut gates = GATES.lock().unwrap();
    Arc::clone(gates.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))))
}

/// What a test talks to.
pub(crate) struct Api {
    pub(crate) app: Celeriac,
    pub(crate) server: Server,
    client: reqwest::Client,
    base: String,
    _listening: Listening,
    workers: Vec<(CancellationToken, JoinHandle<celeriac::Result<celeriac::worker::Report>>)>,
    _folder: Option<tempfile::TempDir>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The answer, which must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status == 204 {
            assert_eq!(self.body, "", "{self:?}");
            return self;
        }
        let content_type = self.headers["content-type"].to_str().unwrap();
        let expected = if status < 400 { "application/json" } else { "application/problem+json" };
        assert_eq!(content_type, expected);
        if status >= 400 {
            assert_eq!(self.body["status"], status);
            assert!(self.body["type"].as_str().unwrap().starts_with("/problems/"));
        }
        self
    }

    /// The places of the problems of a 422.
    #[track_caller]
    pub(crate) fn places(self) -> Vec<String> {
        let errors = self.expect(422).body["errors"].as_array().unwrap().clone();
        errors.iter().map(|error| error["at"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap().to_owned()
    }
}

impl Api {
    /// On a store in memory.
    pub(crate) async fn memory() -> Self {
        Self::on("memory://", None, ServerConfig::default()).await
    }

    /// On a file.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("tasks.db").display());
        Self::on(&url, Some(folder), ServerConfig::default()).await
    }

    /// With settings of the test's own.
    pub(crate) async fn with(set: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::default();
        set(&mut config);
        Self::on("memory://", None, config).await
    }

    async fn on(url: &str, folder: Option<tempfile::TempDir>, config: ServerConfig) -> Self {
        Self::of(Celeriac::connect(url).await.unwrap(), folder, config).await
    }

    /// On a store of the test's own.
    pub(crate) async fn of(app: Celeriac, folder: Option<tempfile::TempDir>, config: ServerConfig) -> Self {
        let app = app.register(add).register(fail).register(at_gate).register(elsewhere);
        let server = Server::new(app.clone(), Access::default(), config);
        let listening = Listening::start(&server, router(server.clone())).await;
        let base = format!("http://{}", listening.address);
        Self {
            app,
            server,
            client: http_client(),
            base,
            _listening: listening,
            workers: Vec::new(),
            _folder: folder,
        }
    }

    /// Starts a worker with this many slots.
    pub(crate) async fn work(&mut self, concurrency: usize) {
        let stop = CancellationToken::new();
        let worker = self.app.worker().name(format!("w{}@test", self.workers.len())).concurrency(concurrency);
        let running = tokio::spawn(worker.run(stop.clone().cancelled_owned()));
        self.workers.push((stop, running));
        let count = self.workers.len();
        self.until("/api/v1/workers", |body| body["items"].as_array().unwrap().len() == count).await;
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.answer(request).await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn answer(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = soon("an answer", request.send()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = soon("a body", response.text()).await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Sends a task.
    pub(crate) async fn task(&self, body: Value) -> Answer {
        self.post("/api/v1/tasks", body).await
    }

    /// Sends `app.add`.
    pub(crate) async fn add(&self, x: i64, y: i64) -> String {
        self.task(json!({ "task": "app.add", "args": [x, y] })).await.expect(202).id()
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await.expect(200);
            if wanted(&answer.body) {
                return answer.body;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} stays {:#}", answer.body);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// The view of a task once it is in this state.
    pub(crate) async fn in_state(&self, id: &str, state: &str) -> Value {
        self.until(&format!("/api/v1/tasks/{id}"), |body| body["state"] == state).await
    }

    /// Where the message of a task stands.
    pub(crate) async fn phase(&self, id: &str) -> Option<celeriac::state::Phase> {
        let places = self.app.store().broker.locate(&[TaskId::from(id)]).await.unwrap();
        places[0].as_ref().map(|place| place.phase)
    }

    pub(crate) async fn stop_workers(&mut self) {
        for (stop, running) in self.workers.drain(..) {
            stop.cancel();
            soon("the end of a worker", running).await.unwrap().unwrap();
        }
    }
}

pub(crate) fn http_client() -> reqwest::Client {
    // A client wants to know how it would do TLS, be there none to do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}
