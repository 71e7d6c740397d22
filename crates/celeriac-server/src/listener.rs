//! The accept loop: connections up to a bound, each held to a pace, and an end in good order.
//!
//! ```text
//!  accept ─► a place is free? ─ no ─► 503, close
//!               │ yes
//!               ▼
//!            connection ── head not in time, idle ──────────► closed
//!               │       └─ takes nothing of what is written ► cut
//!  shutdown ────┴► no more accepted, streams end, requests finish ─ drain timeout ─► cut
//! ```
//!
//! It speaks HTTP/1.1 alone. A stream that is not read then fills its socket, where that is noticed and bounded by a few
//! kilobytes; in HTTP/2 it would fill a window of its own, among others on a connection that does well. Browsers speak
//! HTTP/2 only under TLS, so whoever wants it has a proxy in front, and proxies speak HTTP/1.1 to what is behind them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::access::Access;
use crate::config::ServerConfig;
use crate::problem::Problem;
use crate::server::Server;

/// The largest head of a request, and the most that is buffered of a response, in bytes.
const BUFFER_MAX: usize = 16 * 1024;
/// Connections the kernel keeps until they are accepted: thousands of clients reconnect at once after a restart.
const BACKLOG: u32 = 4_096;
/// Connections that are told that there is no place, at once; those beyond are closed without a word.
const REFUSALS_MAX: usize = 256;
/// How long such a connection is kept, so that the answer is read before it is closed.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long accepting pauses when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Others than this machine could reach it, and there is no token.
    #[error(
        "without a token the server listens on loopback only, and {address} can be reached from elsewhere: set a \
         token, or listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// The address is none, or is taken.
    #[error("cannot listen on {address}")]
    Io {
        /// The address as it was given.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens on `address`, as `127.0.0.1:8787` or `localhost:8787`.
///
/// # Errors
/// When that cannot be; and when `access` is open and the address is not one of loopback, where nobody but this
/// machine comes in.
pub async fn bind(address: &str, access: &Access) -> Result<TcpListener, BindError> {
    let wrong = |source| BindError::Io { address: address.to_owned(), source };
    let addresses: Vec<SocketAddr> = lookup_host(address).await.map_err(wrong)?.collect();
    let reachable = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
    if access.is_open()
        && let Some(address) = addresses.iter().find(reachable)
    {
        return Err(BindError::Open { address: *address });
    }
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in addresses {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(wrong(last))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that was just stopped leaves connections behind that would keep the next from listening.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` to whoever connects, until `shutdown` is ready; then accepts nobody more, cancels
/// [`Server::draining`], which ends streams, and waits for what is under way, up to
/// [`drain_timeout`](ServerConfig::drain_timeout). What is not over by then is cut.
///
/// # Errors
/// When the address that it listens on cannot be told. Connections that fail end by themselves, and a process without
/// file descriptors waits until it has some.
pub async fn serve(
    listener: TcpListener,
    server: Server,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared {
        router,
        settings: Settings::of(server.config()),
        draining: server.draining().clone(),
        cut: CancellationToken::new(),
    });
    let places = Arc::new(Semaphore::new(server.config().connections_max.min(Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    tracing::info!(%address, "listening");
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(connection(Arc::clone(&shared), stream, peer, place));
                }
                Err(_) => {
                    tracing::warn!(%peer, connections = connections.len(), "no place for one more connection");
                    if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                        connections.spawn(refuse(stream, permit));
                    }
                }
            },
            // The client thought better of it.
            Err(error) if is_of_client(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections, trying again");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    () = &mut shutdown => break,
                }
            }
        }
    }
    drop(listener);
    connections.close();
    tracing::info!(%address, connections = connections.len(), "no more connections are accepted");
    shared.draining.cancel();
    if tokio::time::timeout(server.config().drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(%address, connections = connections.len(), "connections are cut that are not over yet");
        shared.cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// What connections share.
struct Shared {
    router: Router,
    settings: Settings,
    draining: CancellationToken,
    /// Time is up.
    cut: CancellationToken,
}

/// What a connection is held to.
#[derive(Debug, Clone, Copy)]
struct Settings {
    header_timeout: Duration,
    stall_timeout: Duration,
}

impl Settings {
    fn of(config: &ServerConfig) -> Self {
        Self { header_timeout: config.header_timeout, stall_timeout: config.stall_timeout }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
    // Records of a stream are small and each is written when it comes: none is to wait for the next.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the connection was over before it began");
        return;
    }
    let stream = Paced::new(stream, shared.settings.stall_timeout);
    let router = shared.router.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = router.clone().oneshot(request);
        // A future of a whole router would make every idle connection as large as the largest handler.
        Box::pin(response) as Pin<Box<dyn Future<Output = Result<_, Infallible>> + Send>>
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also the time for which a connection may be idle between two requests.
        .header_read_timeout(shared.settings.header_timeout)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = shared.cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}

/// Says that there is no place, and that another try may find one.
async fn refuse(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let detail = "the server has as many connections as it takes; try again";
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many connections", detail);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let talk = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // A socket that is closed with something unread in it resets the connection, and the answer is lost.
        let mut unread = [0; 1_024];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(REFUSAL_PATIENCE, talk).await;
}

/// A stream whose peer has to take what is written to it, sooner or later.
///
/// The timer is there only while a write waits, so that a stream that has nothing to say costs none.
#[derive(Debug)]
struct Paced<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    /// Passes on what a write came to; one that has waited for too long fails.
    fn pace<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.pace(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.pace(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
