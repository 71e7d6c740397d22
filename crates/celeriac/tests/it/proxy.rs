//! A path to a server that can be made bad: it resets, goes deaf without saying so, lets nothing through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the path is. Connections are counted from 0, in the order in which they are made.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Those before this one are reset.
    reset: usize,
    /// What those before this one send is swallowed, and they hear nothing more.
    deaf: usize,
    /// Answers to those before this one are swallowed.
    mute: usize,
    /// Nothing passes, and nobody is told.
    hole: bool,
    /// Who connects is sent away.
    refuses: bool,
    /// So many bytes of answers pass in a second, on each connection; 0 for all.
    narrow: usize,
}

pub(crate) struct Proxy {
    port: u16,
    flow: watch::Sender<Flow>,
    made: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// The path to what listens at `address`.
    pub(crate) async fn to(address: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let flow = watch::Sender::new(Flow::default());
        let made = Arc::<AtomicUsize>::default();
        let accepting = tokio::spawn(accept(listener, address, flow.clone(), made.clone()));
        Self { port, flow, made, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Resets every connection that there is.
    pub(crate) fn reset(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.flow.send_modify(|flow| flow.reset = made);
    }

    /// Every connection that there is stays, and is of no use any more; new ones are good.
    pub(crate) fn go_deaf(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.flow.send_modify(|flow| flow.deaf = made);
    }

    /// What is sent over the connections that there are arrives, and no answer comes.
    pub(crate) fn lose_answers(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.flow.send_modify(|flow| flow.mute = made);
    }

    /// Lets nothing through, be it on new connections, until [`Proxy::open`]. What is sent meanwhile arrives then.
    pub(crate) fn close(&self) {
        self.flow.send_modify(|flow| flow.hole = true);
    }

    /// Lets so many bytes of answers pass in a second on each connection.
    pub(crate) fn narrow(&self, bytes: usize) {
        self.flow.send_modify(|flow| flow.narrow = bytes);
    }

    /// Sends away who connects, until [`Proxy::open`].
    pub(crate) fn refuse(&self) {
        self.flow.send_modify(|flow| flow.refuses = true);
    }

    /// New connections are good again.
    pub(crate) fn open(&self) {
        self.flow.send_modify(|flow| (flow.hole, flow.refuses) = (false, false));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.flow.send_modify(|flow| flow.reset = usize::MAX);
    }
}

async fn accept(listener: TcpListener, address: String, flow: watch::Sender<Flow>, made: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        if flow.borrow().refuses {
            let _ = client.set_zero_linger();
            continue;
        }
        let number = made.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(carry(client, address.clone(), Path { number, flow: flow.subscribe() }));
    }
}

/// Carries one connection both ways until either side ends it, or it is reset.
async fn carry(client: TcpStream, address: String, path: Path) {
    let mut watched = path.clone();
    let _ = client.set_nodelay(true);
    let carried = async {
        path.clone().passable().await;
        let socket = TcpSocket::new_v4().unwrap();
        // So little that what a narrow path holds up waits in the server.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let Ok(server) = socket.connect(address.parse().unwrap()).await else { return };
        let _ = server.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = pump(from_client, to_server, path.clone(), false) => {}
            () = pump(from_server, to_client, path, true) => {}
        }
    };
    tokio::select! {
        () = carried => {}
        // Both sockets are closed with what was not read: that is a reset.
        _ = watched.flow.wait_for(|flow| flow.reset > watched.number) => {}
    }
}

#[derive(Clone)]
struct Path {
    number: usize,
    flow: watch::Receiver<Flow>,
}

impl Path {
    async fn passable(&mut self) {
        let _ = self.flow.wait_for(|flow| !flow.hole).await;
    }

    fn is_deaf(&self, answers: bool) -> bool {
        let flow = self.flow.borrow();
        flow.deaf > self.number || (answers && flow.mute > self.number)
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut path: Path, answers: bool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        path.passable().await;
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // It may have become a hole since.
        path.passable().await;
        if path.is_deaf(answers) {
            if read == 0 {
                // Nor is the other side told that this one has gone.
                std::future::pending::<()>().await;
            }
            continue;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        let narrow = path.flow.borrow().narrow;
        if answers && narrow > 0 {
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / narrow as f64)).await;
        }
    }
}
