//! Clients whose connections break, and servers that do: the text arrives whole all the same.

use std::path::Path;
use std::process::Stdio;

use celeriac::TaskId;
use celeriac::backend::Watch;
use celeriac_server::client::Stream;
use celeriac_server::{Access, Server};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::stream_support::*;

const TOKENS: u64 = 20_000;

const CURL_BYTES_MAX: u64 = 20_000;

/// Our own client.
async fn ours(url: String) -> Gathered {
    let mut gathered = Gathered::default();
    let mut stream = Stream::connect(url);
    while let Some(event) = stream.next().await.unwrap() {
        let data = serde_json::from_str(&event.data).unwrap();
        gathered.take(event.id.unwrap().parse().unwrap(), &event.event, &data);
    }
    gathered
}

/// A socket, and the little that is needed to read a stream off it.
async fn raw(address: std::net::SocketAddr, id: TaskId) -> Gathered {
    let mut gathered = Gathered::default();
    let path = format!("/api/v1/tasks/{id}/events");
    while !gathered.ended {
        gathered.connections += 1;
        let last = gathered.position.to_string();
        let Some(mut answer) = Raw::get(address, &path, &[("Last-Event-ID", &last)]).await else { continue };
        assert_eq!(answer.status, 200, "{}", answer.head);
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await {
            bytes.extend(chunk);
            take_frames(&mut bytes).iter().for_each(|frame| gathered.take_frame(frame));
        }
        assert!(answer.is_whole() || !gathered.ended);
    }
    gathered
}

/// curl, killed after a random number of bytes, or twice as many for each time that no record was whole.
async fn curl(url: String, seed: u64) -> Gathered {
    let mut gathered = Gathered::default();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes_max = CURL_BYTES_MAX;
    while !gathered.ended {
        let before = gathered.position;
        gathered.connections += 1;
        let last = format!("Last-Event-ID: {}", gathered.position);
        let mut child = Command::new("curl")
            .args(["--silent", "--fail", "--no-buffer", "--header", &last, &url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("curl is installed");
        let mut output = child.stdout.take().unwrap().take(random.u64(1..bytes_max));
        let mut bytes = Vec::new();
        while output.read_buf(&mut bytes).await.unwrap() > 0 {
            take_frames(&mut bytes).iter().for_each(|frame| gathered.take_frame(frame));
        }
        // Gone by itself when the server was; it is killed all the same.
        child.kill().await.unwrap();
        bytes_max = if gathered.position == before { 2 * bytes_max } else { CURL_BYTES_MAX };
    }
    gathered
}

fn assert_whole(what: &str, gathered: &Gathered) {
    assert!(gathered.ended, "{what}");
    assert!(gathered.text == whole_text(TOKENS), "the text of {what} is another");
}

async fn task(folder: &Path, burst: u64) -> (Running, TaskId) {
    let app = app(folder).await;
    let worker = Running::start(app.worker());
    (worker, speak(TOKENS, burst).delay(&app).await.unwrap().id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_at_any_byte_lose_nothing() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let (worker, id) = task(folder.path(), 8).await;
    let server = serve(folder.path(), config()).await;
    let proxy = CuttingProxy::start(server.address, 6_000, seed).await;
    let url = server.events_of(&id);
    let through_proxy = format!("http://{}/api/v1/tasks/{id}/events", proxy.address);
    let (ours, raw, curl) =
        soon(async { tokio::join!(ours(through_proxy), raw(proxy.address, id), curl(url, seed)) }).await;
    assert_whole("our client", &ours);
    assert_whole("the socket", &raw);
    assert_whole("curl", &curl);
    let (cuts, ours) = (proxy.cuts(), proxy.cuts() - raw.connections);
    println!(
        "{cuts} cuts, {ours} of our client, {} of the socket, {} of curl",
        raw.connections, curl.connections
    );
    assert!(ours > 20 && raw.connections > 20 && curl.connections > 10, "too few cuts to prove anything");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing() {
    const KILLS: u64 = 4;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let (worker, id) = task(folder.path(), 8).await;
    let mut server = serve(folder.path(), config()).await;
    let (address, url) = (server.address, server.events_of(&id));
    let watching = app(folder.path()).await;
    let bytes = whole_text(TOKENS).len() as u64;
    let kill = async {
        let (mut written, mut after) = (0, 0);
        for round in 1..=KILLS {
            // Wherever the clients are by then: the text has grown by another part of the whole.
            while written < bytes * round / (KILLS + 1) {
                let watch = Watch::Log { task_id: id.clone(), after };
                watching.store().backend.wait(&watch, PATIENCE).await.unwrap();
                let page = watching.log(&id, Some(after), 100).await.unwrap();
                assert!(!page.ended, "the stream was over too soon");
                for entry in page.entries {
                    after = entry.position;
                    let data: serde_json::Value = entry.data.to().unwrap();
                    written += data["text"].as_str().map_or(0, str::len) as u64;
                }
            }
            drop(server);
            server = Killable::start_at(
                address,
                Server::new(app(folder.path()).await, Access::default(), config()),
            );
        }
        server
    };
    let (ours, raw, curl, _server) =
        soon(async { tokio::join!(ours(url.clone()), raw(address, id.clone()), curl(url, seed), kill) })
            .await;
    assert_whole("our client", &ours);
    assert_whole("the socket", &raw);
    assert_whole("curl", &curl);
    assert!(raw.connections > KILLS as usize, "{} connections", raw.connections);
    worker.stop().await;
}
