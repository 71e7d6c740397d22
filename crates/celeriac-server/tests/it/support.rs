//! What the tests of the server share.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use celeriac::Celeriac;
use celeriac_server::{Access, Server, ServerConfig, listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must happen, before it calls it lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What must happen, within patience.
pub(crate) async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.unwrap_or_else(|_| panic!("{what}: it did not happen"))
}

/// A server on a store in memory.
pub(crate) async fn server(access: Access, config: ServerConfig) -> Server {
    Server::new(Celeriac::connect("memory://").await.unwrap(), access, config)
}

/// A server that listens on a port of its own.
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Listening {
    pub(crate) async fn start(server: &Server, router: Router) -> Self {
        let tcp = listener::bind("127.0.0.1:0", server.access()).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(listener::serve(tcp, server.clone(), router, stopped));
        Self { address, stop, serving }
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection(soon("a connection", TcpStream::connect(self.address)).await.unwrap())
    }

    pub(crate) fn begin_to_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn stopped(self) {
        self.stop.cancel();
        soon("the end of the server", self.serving).await.unwrap().unwrap();
    }
}

/// A connection of a client that writes and reads bytes.
pub(crate) struct Connection(pub(crate) TcpStream);

impl Connection {
    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    }

    /// What comes until `end` has come.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        let mut text = String::new();
        while !text.contains(end) {
            let mut bytes = [0; 4096];
            let read = soon(end, self.0.read(&mut bytes)).await.unwrap();
            assert!(read > 0, "the connection is closed, and {end:?} has not come: {text:?}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        text
    }

    /// What comes until the other side closes the connection, in whatever manner.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let _ = soon("the end of the connection", self.0.read_to_end(&mut all)).await;
        all
    }
}
