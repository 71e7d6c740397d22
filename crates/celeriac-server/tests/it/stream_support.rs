//! What the tests of streams share: a worker that streams, a server that can be killed, a proxy that cuts connections,
//! and clients that know nothing of ours.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use celeriac::backend::{LogRecord, Record};
use celeriac::clock::SystemClock;
use celeriac::memory::MemoryStore;
use celeriac::protocol::ResultMeta;
use celeriac::store::Store;
use celeriac::{Celeriac, Context, Json, State, TaskId, Worker};
use celeriac_server::{Access, Server, ServerConfig, router, sse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::Listening;

/// How long a test waits for what must happen, before it calls it lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call).await.expect("this should have happened long ago")
}

/// The token numbered `n`, with characters of every length.
pub(crate) fn token(n: u64) -> String {
    format!("{}{n} ", ["w", "ü", "語", "😀", "\n", "\r\n", "\"", "\u{2028}"][(n % 8) as usize])
}

pub(crate) fn whole_text(tokens: u64) -> String {
    (0..tokens).map(token).collect()
}

/// Streams so many tokens, resting for a moment after each `burst` of them.
#[celeriac::task]
pub(crate) async fn speak(cx: Context, tokens: u64, burst: u64) -> u64 {
    for n in 0..tokens {
        cx.token(&token(n)).await;
        if burst > 0 && n % burst == burst - 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokens
}

pub(crate) async fn app(folder: &Path) -> Celeriac {
    let url = format!("sqlite://{}/celeriac.db", folder.display());
    Celeriac::connect(&url).await.unwrap().register(speak)
}

/// A store in memory.
pub(crate) fn memory() -> Store {
    Store::of(MemoryStore::new(SystemClock::shared()))
}

/// Makes a task known to the store, as a worker does that begins with it.
pub(crate) async fn introduce(store: &Store, id: &TaskId) {
    let results = vec![ResultMeta::new(id, State::Started, Json::null())];
    store.backend.record(vec![Record { results, ..Record::default() }]).await.unwrap();
}

pub(crate) fn record(id: &TaskId, event: &str, data: &str) -> LogRecord {
    LogRecord { task_id: id.clone(), event: event.into(), data: Json::parse(data).unwrap() }
}

pub(crate) async fn append(store: &Store, log: Vec<LogRecord>) {
    store.backend.record(vec![Record { log, ..Record::default() }]).await.unwrap();
}

/// Appends a record for each of `numbers`, which is its content.
pub(crate) async fn append_numbers(store: &Store, id: &TaskId, numbers: std::ops::RangeInclusive<u64>) {
    append(store, numbers.map(|n| record(id, "number", &n.to_string())).collect()).await;
}

/// Ends a task as workers do.
pub(crate) async fn end(store: &Store, id: &TaskId) {
    let results = vec![ResultMeta::new(id, State::Success, Json::null())];
    let log = vec![record(id, "end", r#"{"state": "SUCCESS", "result": null}"#)];
    store.backend.record(vec![Record { results, log, ..Record::default() }]).await.unwrap();
}

/// A server with all its routes behind the accept loop that serves them.
pub(crate) struct Stage {
    pub(crate) app: Celeriac,
    pub(crate) listening: Listening,
}

impl Stage {
    pub(crate) async fn of(app: Celeriac, config: ServerConfig) -> Self {
        let server = Server::new(app.clone(), Access::default(), config);
        let listening = Listening::start(&server, router(server.clone())).await;
        Self { app, listening }
    }

    pub(crate) async fn memory(config: ServerConfig) -> Self {
        Self::of(Celeriac::connect("memory://").await.unwrap(), config).await
    }

    pub(crate) async fn on(store: Store, config: ServerConfig) -> Self {
        Self::of(Celeriac::builder().store(store).connect().await.unwrap(), config).await
    }

    pub(crate) fn store(&self) -> &Store {
        self.app.store()
    }

    /// Asks for what `path`, below the prefix of the API, has.
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Raw {
        let path = format!("/api/v1{path}");
        soon(Raw::get(self.listening.address, &path, headers)).await.expect("an answer")
    }

    /// The stream of a task, which must be had.
    pub(crate) async fn watch(&self, id: &TaskId, query: &str) -> Raw {
        let answer = self.get(&format!("/tasks/{id}/events{query}"), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        answer
    }

    /// The stream of all tasks, which must be had.
    pub(crate) async fn feed(&self, query: &str) -> Raw {
        let answer = self.get(&format!("/events{query}"), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        answer
    }
}

/// A worker in this process.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    worker: JoinHandle<celeriac::Result<celeriac::worker::Report>>,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, worker: tokio::spawn(worker.run(async { drop(stopped.await) })) }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.worker.await.unwrap().unwrap();
    }
}

/// The settings, with times so short that a test can wait for them.
pub(crate) fn config() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.stream_retry = Duration::from_millis(2);
    config
}

/// The routes under test, and nothing around them.
pub(crate) fn routes(server: Server) -> Router {
    Router::new()
        .route("/api/v1/tasks/{id}/events", get(sse::events))
        .route("/api/v1/events", get(sse::feed))
        .route("/celeriac.js", get(sse::script))
        .with_state(server)
}

/// A server on a runtime of its own, which can be killed with everything it has open.
pub(crate) struct Killable {
    pub(crate) address: SocketAddr,
    pub(crate) server: Server,
    runtime: Option<Runtime>,
}

impl Killable {
    /// On a free port.
    pub(crate) fn start(server: Server) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), server)
    }

    pub(crate) fn start_at(address: SocketAddr, server: Server) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = std::thread::scope(|scope| {
            let bind = || {
                runtime.block_on(soon(async {
                    loop {
                        match TcpListener::bind(address).await {
                            Ok(listener) => return listener,
                            // The port is that of one who was killed a moment ago.
                            Err(_) => tokio::task::yield_now().await,
                        }
                    }
                }))
            };
            scope.spawn(bind).join().unwrap()
        });
        let address = listener.local_addr().unwrap();
        let routes = routes(server.clone());
        runtime.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, server, runtime: Some(runtime) }
    }

    pub(crate) fn events_of(&self, id: &celeriac::TaskId) -> String {
        format!("http://{}/api/v1/tasks/{id}/events", self.address)
    }
}

impl Drop for Killable {
    /// Nothing is told to anybody: connections break off wherever they are.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A server of an application of its own on the file of another, as another process would be.
pub(crate) async fn serve(folder: &Path, config: ServerConfig) -> Killable {
    Killable::start(Server::new(app(folder).await, Access::default(), config))
}

/// A proxy that cuts each connection after a random number of bytes, or a tenth of a second. A client that comes again
/// with the same request has got nothing by the last one (its next record was too large, or too late): it is given twice
/// as much each time, or it would never get further.
pub(crate) struct CuttingProxy {
    pub(crate) address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    work: JoinHandle<()>,
}

impl CuttingProxy {
    pub(crate) async fn start(upstream: SocketAddr, bytes_max: u64, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = cuts.clone();
        let mut random = fastrand::Rng::with_seed(seed);
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let work = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let bytes = random.u64(1..=bytes_max);
                let (asked, counted) = (asked.clone(), counted.clone());
                tokio::spawn(async move {
                    let _ = pass_on(client, upstream, bytes, &asked).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, cuts, work }
    }

    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Passes on so many bytes of the answer, or twice as many for each time that the same was asked before.
async fn pass_on(
    mut client: TcpStream,
    upstream: SocketAddr,
    bytes: u64,
    asked: &Mutex<HashMap<Vec<u8>, u32>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let factor = {
        let mut asked = asked.lock().unwrap();
        let times = asked.entry(request.clone()).or_default();
        *times += 1;
        1 << (*times - 1).min(16)
    };
    let passing = async {
        let mut server = TcpStream::connect(upstream).await?;
        server.write_all(&request).await?;
        let (mut from_client, mut to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        let ask = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
        let mut from_server = from_server.take(bytes * u64::from(factor));
        let answer = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
        tokio::select! {
            done = ask => done,
            done = answer => done,
        }
    };
    tokio::time::timeout(Duration::from_millis(100) * factor, passing).await?
}

/// A frame as the tests read it: by hand, and only when it is whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Frame {
    pub(crate) id: Option<u64>,
    pub(crate) event: String,
    pub(crate) data: Option<serde_json::Value>,
    pub(crate) retry: Option<u64>,
    pub(crate) comment: bool,
}

/// The whole frames at the front of `bytes`, which are taken out.
pub(crate) fn take_frames(bytes: &mut Vec<u8>) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
        let text = String::from_utf8(bytes.drain(..end + 2).collect()).unwrap();
        let mut frame = Frame::default();
        for line in text.trim_end_matches('\n').split('\n') {
            match line.split_once(": ").unwrap_or((line, "")) {
                ("id", id) => frame.id = Some(id.parse().unwrap()),
                ("event", event) => frame.event = event.to_owned(),
                ("data", data) => frame.data = Some(serde_json::from_str(data).unwrap()),
                ("retry", retry) => frame.retry = Some(retry.parse().unwrap()),
                (":", "") => frame.comment = true,
                other => panic!("a line of no frame of ours: {other:?}"),
            }
        }
        frames.push(frame);
    }
    frames
}

/// An answer as it comes over a socket.
pub(crate) struct Raw {
    socket: TcpStream,
    buffer: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) head: String,
    chunked: bool,
    ended: bool,
    /// Of the body, what is no whole frame yet, and the frames that are.
    text: Vec<u8>,
    whole: VecDeque<Frame>,
}

impl Raw {
    /// Asks for `path`; `None` when the connection broke before the head was whole.
    pub(crate) async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Option<Self> {
        Self::ask(TcpStream::connect(address).await.ok()?, address, path, headers).await
    }

    /// The same over a connection of the test's own.
    pub(crate) async fn ask(
        mut socket: TcpStream,
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Option<Self> {
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut buffer = Vec::new();
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1)?.parse().unwrap();
        let chunked = head.contains("transfer-encoding: chunked");
        let (text, whole) = (Vec::new(), VecDeque::new());
        Some(Self { socket, buffer, status, head, chunked, ended: false, text, whole })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The next piece of the body; `None` when it has ended, or broke off, which `is_whole` tells apart.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        assert!(self.chunked, "{}", self.head);
        loop {
            if self.ended {
                return None;
            }
            if let Some(line) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let size = std::str::from_utf8(&self.buffer[..line]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if self.buffer.len() >= line + 4 + size {
                    let chunk = self.buffer[line + 2..line + 2 + size].to_vec();
                    self.buffer.drain(..line + 4 + size);
                    self.ended = size == 0;
                    if self.ended {
                        return None;
                    }
                    return Some(chunk);
                }
            }
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.ended
    }

    /// The bytes of the body until it ends, which must be in good order.
    pub(crate) async fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(chunk) = soon(self.chunk()).await {
            body.extend(chunk);
        }
        assert!(self.ended, "the body broke off");
        body
    }

    /// The next frame; `None` when the body has ended, or broke off, which `is_whole` tells apart.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        while self.whole.is_empty() {
            match self.chunk().await {
                Some(chunk) => {
                    self.text.extend(chunk);
                    self.whole.extend(take_frames(&mut self.text));
                }
                None => {
                    assert!(!self.ended || self.text.is_empty(), "half a frame at the end: {:?}", self.text);
                    return None;
                }
            }
        }
        self.whole.pop_front()
    }

    /// The position that the stream says it begins after: its first frames are `retry:` and an id without data.
    pub(crate) async fn begins_after(&mut self) -> u64 {
        let retry = soon(self.frame()).await.expect("a frame");
        assert_eq!(retry, Frame { retry: retry.retry, ..Frame::default() }, "nothing but retry");
        assert!(retry.retry.is_some());
        let position = soon(self.frame()).await.expect("a frame");
        assert_eq!(position, Frame { id: position.id, ..Frame::default() }, "nothing but an id");
        position.id.expect("an id")
    }

    /// The next frame that is a record, which must come.
    pub(crate) async fn record(&mut self) -> Frame {
        loop {
            let frame = soon(self.frame()).await.expect("the stream ended before its time");
            if frame.id.is_some() && frame.data.is_some() {
                return frame;
            }
        }
    }

    /// All frames until the body ends, which must be in good order.
    pub(crate) async fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = soon(self.frame()).await {
            frames.push(frame);
        }
        assert!(self.ended, "the body broke off");
        frames
    }

    /// The body of an answer with a length.
    pub(crate) async fn json(mut self) -> serde_json::Value {
        let length: usize = self.header("content-length").unwrap().parse().unwrap();
        while self.buffer.len() < length {
            assert_ne!(soon(self.socket.read_buf(&mut self.buffer)).await.unwrap(), 0, "the body broke off");
        }
        serde_json::from_slice(&self.buffer[..length]).unwrap()
    }
}

/// What a client has gathered; each record must follow the one before it.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) position: u64,
    pub(crate) text: String,
    pub(crate) ended: bool,
    pub(crate) connections: usize,
}

impl Gathered {
    pub(crate) fn take(&mut self, id: u64, event: &str, data: &serde_json::Value) {
        assert_eq!(id, self.position + 1, "a gap or a repeat");
        assert!(!self.ended, "something after the end");
        self.position = id;
        match event {
            "token" => self.text.push_str(data["text"].as_str().unwrap()),
            "end" => self.ended = true,
            _ => {}
        }
    }

    pub(crate) fn take_frame(&mut self, frame: &Frame) {
        match (&frame.data, frame.id) {
            (Some(data), Some(id)) => self.take(id, &frame.event, data),
            (None, Some(id)) => assert_eq!(id, self.position, "the stream begins where it was asked to"),
            _ => {}
        }
    }
}
