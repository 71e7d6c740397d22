//! The Python process that imports the application and forks children: starting it, asking it, hearing of its children.
//!
//! A thread of its own starts the process and waits for its end, and lives as long as it does. A task reads what it says.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::frame::{self, Channel, Frame, Reader};
use crate::manifest::Manifest;
use crate::source::{self, Source};

/// How long it may take to go: what the application does at `worker_shutdown` is part of it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to go when it has only described the application.
const DESCRIBED_PATIENCE: Duration = Duration::from_secs(5);

/// How the Python process is started.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StartOptions {
    /// The application, as Celery's `-A` names it.
    pub app: String,
    /// The node name.
    pub hostname: String,
    /// A folder to work in.
    pub workdir: Option<PathBuf>,
    /// The queues to consume from, where the application is not to say.
    pub queues: Vec<String>,
    /// Queues not to consume from.
    pub exclude_queues: Vec<String>,
    /// Modules to import besides.
    pub include: Vec<String>,
    /// What to log, in Celery's words.
    pub loglevel: Option<String>,
    /// Where to.
    pub logfile: Option<String>,
    /// The kind of pool, where that is said.
    pub pool: Option<String>,
    /// `fork` or `spawn`.
    pub start_method: String,
    /// How many tasks run at once, where that is said.
    pub concurrency: Option<usize>,
    /// Variables of the environment to set.
    pub environment: Map<String, Value>,
    /// Only describe the application.
    pub describe: bool,
    /// Describe what its tasks take, too.
    pub signatures: bool,
}

/// How a child is to be.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChildOptions {
    /// It leaves results to the worker.
    pub(crate) leaves_results: bool,
    /// `prefork`, `threads` or `asyncio`.
    pub(crate) pool: &'static str,
}

/// What is known of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is being forked.
    Coming,
    /// It lives, under this process id.
    Lives(u32),
    /// It is gone: its exit code, or a signal as a negative number.
    Over(i32),
}

/// The process.
#[derive(Debug)]
pub struct Zygote {
    stream: UnixStream,
    sending: tokio::sync::Mutex<()>,
    children: Mutex<HashMap<u32, watch::Sender<Fate>>>,
    last: AtomicU32,
    pid: u32,
    /// It is told to go.
    closing: CancellationToken,
    /// It is gone.
    gone: CancellationToken,
    _source: Source,
}

#[derive(Debug, Deserialize)]
struct Failed {
    error: String,
    traceback: String,
}

#[derive(Debug, Deserialize)]
struct Child {
    pid: u32,
    #[serde(default)]
    status: i32,
}

/// What `start` has begun.
struct Started {
    channel: Channel,
    pid: u32,
    gone: CancellationToken,
    source: Source,
}

fn start(python: &Path, name: &str) -> Result<Started> {
    let source = source::unpack()?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(python);
    command
        .args(["-c", source::BOOT])
        .arg(source.path())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // What tasks print is no data of this program's.
        .stdout(Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?));
    let (sender, receiver) = std::sync::mpsc::channel();
    let gone = CancellationToken::new();
    let told = gone.clone();
    // The process asks to die with the thread that has started it, which is why that one stays.
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        };
        // The parent's copy of the other end goes with the command.
        drop(command);
        let _ = sender.send(Ok(process.id()));
        let _ = process.wait();
        told.cancel();
    })?;
    let started = receiver.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
    let pid = started.map_err(|source| Error::Start { python: python.display().to_string(), source })?;
    Ok(Started { channel: Channel::new(UnixStream::from_std(ours)?), pid, gone, source })
}

async fn load(channel: &mut Channel, options: &StartOptions) -> Result<Manifest> {
    channel.send(&frame::json(frame::START, 0, options)).await?;
    let wrong = |why: serde_json::Error| Error::Frame(why.to_string());
    loop {
        let Some(Frame { kind, payload, .. }) = channel.receive().await? else {
            return Err(Error::Gone("before it had imported it; what it said stands above".to_owned()));
        };
        match kind {
            frame::READY => {
                let told: Value = serde_json::from_slice(&payload).map_err(wrong)?;
                let found = told.get("version").and_then(Value::as_u64).unwrap_or_default();
                if found != u64::from(frame::VERSION) {
                    let found = u32::try_from(found).unwrap_or_default();
                    return Err(Error::Version { found, expected: frame::VERSION });
                }
                return serde_json::from_value(told).map_err(wrong);
            }
            frame::FAILED => {
                let Failed { error, traceback } = serde_json::from_slice(&payload).map_err(wrong)?;
                return Err(Error::Application { app: options.app.clone(), why: error, traceback });
            }
            frame::WARNING => tracing::warn!("{}", text(&payload)),
            other => return Err(Error::Frame(format!("a frame of kind {other} at the start"))),
        }
    }
}

fn text(payload: &[u8]) -> String {
    serde_json::from_slice(payload).unwrap_or_default()
}

/// Imports the application in a process that goes at once, and says what it is.
///
/// # Errors
/// Python cannot be started, or the application cannot be imported.
pub async fn describe(python: &Path, options: &StartOptions) -> Result<Manifest> {
    let options = StartOptions { describe: true, ..options.clone() };
    let mut started = start(python, "python-describe")?;
    let manifest = load(&mut started.channel, &options).await?;
    let (pid, gone) = (started.pid, started.gone);
    tokio::spawn(async move {
        // Threads that the application has started when it was imported would keep it, and all that it holds.
        if tokio::time::timeout(DESCRIBED_PATIENCE, gone.cancelled()).await.is_err() {
            send_signal(pid, Signal::KILL);
        }
    });
    Ok(manifest)
}

impl Zygote {
    /// Starts Python and imports the application.
    ///
    /// # Errors
    /// Python cannot be started, or the application cannot be imported.
    pub async fn start(python: &Path, options: &StartOptions) -> Result<(Arc<Self>, Manifest)> {
        let Started { mut channel, pid, gone, source } = start(python, "python-zygote")?;
        let manifest = load(&mut channel, options).await?;
        let (stream, reader) = channel.into_parts();
        let zygote = Arc::new(Self {
            stream,
            sending: tokio::sync::Mutex::default(),
            children: Mutex::default(),
            last: AtomicU32::new(0),
            pid,
            closing: CancellationToken::new(),
            gone,
            _source: source,
        });
        tokio::spawn(Arc::clone(&zygote).hear(reader));
        Ok((zygote, manifest))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process is gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Lets it go: it kills what it has forked and ends.
    pub async fn close(&self) {
        self.closing.cancel();
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        if tokio::time::timeout(CLOSE_PATIENCE, self.gone()).await.is_err() {
            tracing::warn!(pid = self.pid, "the Python zygote does not end by itself, killed");
            send_signal(self.pid, Signal::KILL);
            self.gone().await;
        }
    }

    /// Has a child forked; its number, its end of the conversation, and its fate.
    pub(crate) async fn fork(
        &self,
        options: &ChildOptions,
    ) -> std::io::Result<(u32, Channel, watch::Receiver<Fate>)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, fate) = watch::channel(Fate::Coming);
        self.lock().insert(number, sender);
        let bytes = frame::json(frame::FORK, number, options);
        if let Err(error) = self.send(&bytes, Some(&theirs.into())).await {
            self.lock().remove(&number);
            return Err(error);
        }
        Ok((number, Channel::new(UnixStream::from_std(ours)?), fate))
    }

    /// Has modules imported that children were found to import.
    pub(crate) async fn import(&self, modules: &[String]) {
        // The next children only come up slower without.
        let _ = self.send(&frame::json(frame::IMPORT, 0, &modules), None).await;
    }

    /// Has a signal of Celery's sent, one that concerns the whole worker.
    pub async fn signal(&self, name: &str) {
        let _ = self.send(&frame::json(frame::SIGNAL, 0, &json!({ "name": name })), None).await;
    }

    /// Has Celery's `worker_shutting_down` sent: by which signal the worker was told, `Warm` or `Cold`, and the exit code.
    pub async fn shutting_down(&self, sig: &str, how: &str, exitcode: u8) {
        let told = json!({ "name": "worker_shutting_down", "sig": sig, "how": how, "exitcode": exitcode });
        let _ = self.send(&frame::json(frame::SIGNAL, 0, &told), None).await;
    }

    async fn send(&self, mut bytes: &[u8], mut descriptor: Option<&OwnedFd>) -> std::io::Result<()> {
        let _turn = self.sending.lock().await;
        while !bytes.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let carried = descriptor.map(AsFd::as_fd);
                if let Some(carried) = &carried {
                    control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(carried)));
                }
                Ok(sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
            });
            bytes = &bytes[sent.await?..];
            // It went with the first bytes.
            descriptor = None;
        }
        Ok(())
    }

    async fn hear(self: Arc<Self>, mut reader: Reader) {
        loop {
            let found = match reader.next() {
                Ok(Some(found)) => found,
                Ok(None) => {
                    reader.buffer.reserve(1 << 14);
                    let read = async {
                        self.stream.readable().await?;
                        self.stream.try_read_buf(&mut reader.buffer)
                    };
                    match read.await {
                        Ok(0) => break,
                        Ok(_) => continue,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                        Err(_) => break,
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the Python zygote says what is not understood");
                    break;
                }
            };
            self.heard(&found);
        }
        if !self.closing.is_cancelled() {
            tracing::error!(pid = self.pid, "the Python zygote is gone");
        }
        self.bury_all();
    }

    fn heard(&self, found: &Frame) {
        let child = || serde_json::from_slice::<Child>(&found.payload).ok();
        match found.kind {
            frame::FORKED => {
                if let (Some(child), Some(fate)) = (child(), self.lock().get(&found.call)) {
                    fate.send_replace(Fate::Lives(child.pid));
                }
            }
            frame::EXITED => {
                if let (Some(child), Some(fate)) = (child(), self.lock().remove(&found.call)) {
                    fate.send_replace(Fate::Over(child.status));
                }
            }
            frame::WARNING => tracing::warn!("{}", text(&found.payload)),
            frame::ERROR => tracing::error!("{}", text(&found.payload)),
            other => tracing::warn!(kind = other, "the Python zygote says what is not understood"),
        }
    }

    /// Without their parent the children are as good as dead; they are made so, with what they have started.
    fn bury_all(&self) {
        for (_, fate) in self.lock().drain() {
            if let Fate::Lives(pid) = *fate.borrow() {
                kill_group(pid);
            }
            fate.send_replace(Fate::Over(-Signal::KILL.as_raw()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, watch::Sender<Fate>>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a process that leads a group, and the group.
pub(crate) fn kill_group(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It is gone when this fails.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Sends a process a signal.
pub(crate) fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
