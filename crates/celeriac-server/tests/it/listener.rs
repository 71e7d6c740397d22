//! The accept loop, over real sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use celeriac_server::listener::BindError;
use celeriac_server::{Access, Role, ServerConfig, listener};
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::support::{Listening, PATIENCE, server, soon};

fn config() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.drain_timeout = PATIENCE;
    config
}

async fn hello() -> &'static str {
    "hello"
}

#[tokio::test]
async fn without_a_token_only_loopback_is_listened_on() {
    let open = Access::open();
    for address in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        if let Err(error @ BindError::Open { .. }) = listener::bind(address, &open).await {
            panic!("{address}: {error}");
        }
    }
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        let error = listener::bind(address, &open).await.unwrap_err();
        assert!(matches!(error, BindError::Open { .. }), "{address}: {error}");
        assert!(error.to_string().contains("set a token"), "{error}");
    }
    let guarded = Access::builder().token(Role::Read, "secret-0123456789").unwrap().build();
    listener::bind("0.0.0.0:0", &guarded).await.unwrap();
    assert!(matches!(listener::bind("nowhere", &guarded).await, Err(BindError::Io { .. })));
}

#[tokio::test]
async fn who_sends_no_head_is_cut_off() {
    let mut config = config();
    config.header_timeout = Duration::from_millis(200);
    let server = server(Access::open(), config).await;
    let listening = Listening::start(&server, Router::new().route("/", get(hello))).await;
    let mut slow = listening.connect().await;
    slow.send("GET / HTTP/1.1\r\nhost: local").await;
    slow.read_to_end().await;
    let mut silent = listening.connect().await;
    silent.read_to_end().await;
    // One that asks in time is served, and may be idle no longer than that either.
    let mut good = listening.connect().await;
    good.get("/").await;
    good.read_until("hello").await;
    good.read_to_end().await;
    listening.stopped().await;
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_fills_nothing_but_its_socket() {
    const CHUNK: usize = 64 * 1024;
    let made = Arc::new(AtomicUsize::new(0));
    let over = CancellationToken::new();
    let endless = {
        let (made, over) = (Arc::clone(&made), over.clone());
        move || async move {
            let ends = over.drop_guard();
            Body::from_stream(stream::unfold(ends, move |ends| {
                made.fetch_add(CHUNK, Ordering::Relaxed);
                async move { Some((Ok::<_, Infallible>(Bytes::from(vec![0; CHUNK])), ends)) }
            }))
        }
    };
    let mut config = config();
    config.stall_timeout = Duration::from_millis(300);
    let server = server(Access::open(), config).await;
    let listening = Listening::start(&server, Router::new().route("/", get(endless))).await;
    let mut stalled = listening.connect().await;
    stalled.get("/").await;
    stalled.read_until("200 OK").await;
    soon("the end of the stream", over.cancelled()).await;
    let made = made.load(Ordering::Relaxed);
    // What was made is in the sockets' buffers; the kernel lets loopback have a few MiB on either side.
    assert!(made < 32 << 20, "{made} bytes were made for a client that read none");
    let read = stalled.read_to_end().await.len();
    assert!(made - read < 4 * CHUNK, "{made} bytes were made, and the sockets held {read}");
    listening.stopped().await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_not_cut() {
    let mut config = config();
    config.stall_timeout = Duration::from_millis(50);
    config.header_timeout = Duration::from_millis(50);
    let late = CancellationToken::new();
    let waits = {
        let late = late.clone();
        move || async move {
            let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"first ")) });
            let last = stream::once(async move {
                late.cancelled().await;
                Ok(Bytes::from_static(b"last"))
            });
            Body::from_stream(futures_util::StreamExt::chain(first, last))
        }
    };
    let server = server(Access::open(), config).await;
    let router = Router::new().route("/waits", get(waits)).route("/", get(hello));
    let listening = Listening::start(&server, router).await;
    let mut quiet = listening.connect().await;
    quiet.get("/waits").await;
    quiet.read_until("first").await;
    // Connections that come, idle and are cut in the meantime: several times the bounds have passed then.
    for _ in 0..4 {
        let mut other = listening.connect().await;
        other.read_to_end().await;
    }
    late.cancel();
    quiet.read_until("last").await;
    listening.stopped().await;
}

#[tokio::test]
async fn beyond_the_bound_connections_are_turned_away() {
    let mut config = config();
    config.connections_max = 2;
    let server = server(Access::open(), config).await;
    let listening = Listening::start(&server, Router::new().route("/", get(hello))).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = listening.connect().await;
        connection.get("/").await;
        connection.read_until("hello").await;
        held.push(connection);
    }
    let mut refused = listening.connect().await;
    refused.get("/").await;
    let answer = String::from_utf8(refused.read_to_end().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains("application/problem+json"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], 503);
    held[1].get("/").await;
    held[1].read_until("hello").await;

    held.remove(0);
    let served = async {
        loop {
            let mut next = listening.connect().await;
            next.get("/").await;
            if next.read_until("\r\n\r\n").await.contains("200 OK") {
                return;
            }
            next.read_to_end().await;
        }
    };
    soon("a place becomes free", served).await;
    drop(held);
    listening.stopped().await;
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_ends_streams() {
    let (began, gate) = (CancellationToken::new(), CancellationToken::new());
    let slow = {
        let (began, gate) = (began.clone(), gate.clone());
        move || async move {
            began.cancel();
            gate.cancelled().await;
            "finished"
        }
    };
    let server = server(Access::open(), config()).await;
    let draining = server.draining().clone();
    let watch = {
        let draining = draining.clone();
        move || async move {
            let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"watching")) });
            let end = stream::once(async move {
                draining.cancelled().await;
                Ok(Bytes::from_static(b"good bye"))
            });
            Body::from_stream(futures_util::StreamExt::chain(first, end))
        }
    };
    let router = Router::new().route("/slow", get(slow)).route("/watch", get(watch)).route("/", get(hello));
    let listening = Listening::start(&server, router).await;
    let mut watching = listening.connect().await;
    watching.get("/watch").await;
    watching.read_until("watching").await;
    let mut idle = listening.connect().await;
    idle.get("/").await;
    idle.read_until("hello").await;
    let mut running = listening.connect().await;
    running.get("/slow").await;
    soon("the request begins", began.cancelled()).await;

    listening.begin_to_stop();
    soon("draining", draining.cancelled()).await;
    let rest = String::from_utf8(watching.read_to_end().await).unwrap();
    assert!(
        rest.contains("good bye") && rest.ends_with("0\r\n\r\n"),
        "the stream ends in good order: {rest:?}"
    );
    idle.read_to_end().await;
    let refused = async { while tokio::net::TcpStream::connect(listening.address).await.is_ok() {} };
    soon("nobody else is let in", refused).await;
    gate.cancel();
    let answer = String::from_utf8(running.read_to_end().await).unwrap();
    assert!(answer.ends_with("finished"), "{answer}");
    listening.stopped().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let began = CancellationToken::new();
    let stuck = {
        let began = began.clone();
        move || async move {
            began.cancel();
            std::future::pending::<()>().await;
        }
    };
    let mut config = config();
    config.drain_timeout = Duration::from_millis(100);
    let server = server(Access::open(), config).await;
    let listening = Listening::start(&server, Router::new().route("/", get(stuck))).await;
    let mut running = listening.connect().await;
    running.get("/").await;
    soon("the request begins", began.cancelled()).await;
    listening.stopped().await;
    assert!(running.read_to_end().await.is_empty(), "it was cut");
}

#[tokio::test]
async fn handlers_know_who_is_connected() {
    use axum::extract::ConnectInfo;
    use std::net::SocketAddr;
    let peer = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string();
    let server = server(Access::open(), config()).await;
    let listening = Listening::start(&server, Router::new().route("/", get(peer))).await;
    let mut connection = listening.connect().await;
    let own = connection.0.local_addr().unwrap().to_string();
    connection.get("/").await;
    connection.read_until(&own).await;
    drop(connection);
    listening.stopped().await;
}
