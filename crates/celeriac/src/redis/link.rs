//! The way to Redis, for all that is asked of it.
//!
//! A thread with a runtime of its own drives every connection, so that they live on whichever runtime a caller comes from,
//! and however long a task keeps that one busy. Commands of all callers share one connection, which a
//! [`line`](super::line) keeps up, and are pipelined on it; no blocking command goes there. Who waits for something waits at
//! the [`doorbell`](super::doorbell), on another one.
//!
//! A call is sent again by itself only when it was certainly not carried out, or when it is a read.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::connect::Connector;
use super::doorbell::Doorbell;
use super::fault;
use super::keys::Keys;
use super::line::{Held, Line, pause};
use super::rights;
use super::script::Script;
use super::subscription::{Channel, Subscription};
use crate::store::{Error, Result};

/// How a [`Link`] is set.
#[derive(Debug, Clone)]
pub(crate) struct LinkOptions {
    /// Celery's `global_keyprefix` of the broker.
    pub(crate) prefix: String,
    /// Celery's `global_keyprefix` of the result backend.
    pub(crate) result_prefix: String,
    /// How long one connection may take to be made.
    pub(crate) connect_timeout: Duration,
    /// How long an answer may take.
    pub(crate) response_timeout: Duration,
    /// How long a call waits for a connection that is down before it fails.
    pub(crate) patience: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            result_prefix: String::new(),
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(10),
            patience: Duration::from_secs(2),
        }
    }
}

/// A script is told again so often to a server that forgets it each time.
const LOADS_MAX: u32 = 3;

/// Every connection to one database of one Redis.
pub(crate) struct Link {
    connector: Arc<Connector>,
    options: LinkOptions,
    keys: Keys,
    runtime: tokio::runtime::Handle,
    line: Line<()>,
    doorbell: Arc<Doorbell>,
    thread: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("to", &self.shown()).finish_non_exhaustive()
    }
}

/// What is sent at once.
enum Parcel<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
}

impl Parcel<'_> {
    async fn send(&self, held: &Held<()>) -> RedisResult<Vec<Value>> {
        let mut connection = held.connection.clone();
        match self {
            Parcel::One(command) => connection.send_packed_command(command).await.map(|value| vec![value]),
            Parcel::Many(pipeline) if pipeline.is_transaction() => {
                // MULTI and each command are answered first, and all of it at the end.
                let answer = connection.send_packed_commands(pipeline, pipeline.len() + 1, 1).await;
                answer.map(|mut values| match values.pop() {
                    Some(Value::Array(values)) => values,
                    other => other.into_iter().collect(),
                })
            }
            Parcel::Many(pipeline) => connection.send_packed_commands(pipeline, 0, pipeline.len()).await,
        }
    }
}

impl Link {
    /// Connects, and checks that the server is one to work with.
    ///
    /// # Errors
    /// [`Error::Open`] for a URL, a server or credentials that will not do, with the remedy; [`Error::Unavailable`] when
    /// nobody answers.
    pub(crate) async fn connect(url: &str, options: LinkOptions) -> Result<Arc<Self>> {
        let connector = Arc::new(Connector {
            address: Address::parse(url)?,
            prefix: options.prefix.clone(),
            result_prefix: options.result_prefix.clone(),
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            patience: options.patience,
        });
        let (runtime, thread) = spawn_runtime(connector.shown())?;
        let opened = connector.clone();
        let open = move || -> BoxFuture<'static, _> {
            let connector = opened.clone();
            async move { Ok((connector.multiplexed().await?, ())) }.boxed()
        };
        let (timeout, open) = (connector.connect_timeout, Box::new(open));
        let link = Arc::new(Self {
            line: Line::new(connector.shown(), runtime.clone(), timeout, open, Box::new(|| {})),
            keys: Keys::new(&options.prefix, &options.result_prefix),
            doorbell: Doorbell::new(connector.clone(), runtime.clone()),
            connector,
            options,
            runtime,
            thread: Mutex::new(Some(thread)),
        });
        let mut held = link.line.connection(link.options.connect_timeout).await?;
        link.connector.check(&mut held.connection).await?;
        rights::check(&link).await?;
        Ok(link)
    }

    /// Names keys.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The number of the database, which Celery has in the names of channels.
    pub(crate) fn db(&self) -> i64 {
        self.connector.address.db
    }

    /// What may be shown of the URL.
    pub(crate) fn shown(&self) -> &str {
        self.connector.shown()
    }

    /// Where connections are driven: for loops that must not depend on the runtime of a caller.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Where those wait who are to be woken by a change of a key.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Runs a script, loading it where the server does not know it.
    ///
    /// # Errors
    /// After [`Error::Unavailable`] it may or may not have run.
    pub(crate) async fn run<A: AsRef<[u8]>>(&self, script: &Script, args: &[A]) -> Result<Value> {
        let mut command = redis::cmd("EVALSHA");
        // One key, so that a cluster knows the node; the script names the others itself.
        command.arg(script.hash()).arg(1).arg(self.keys.own("counter"));
        for arg in args {
            command.arg(arg.as_ref());
        }
        let what = script.name();
        let mut sent = self.send(what, Parcel::One(&command), script.is_repeatable()).await;
        for _ in 0..LOADS_MAX {
            if !matches!(&sent, Err(Failed::Refused(error)) if is_no_script(error)) {
                break;
            }
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script.text());
            self.send(what, Parcel::One(&load), true).await.map_err(|why| self.error(why, what))?;
            sent = self.send(what, Parcel::One(&command), script.is_repeatable()).await;
        }
        match sent {
            Ok(mut values) => Ok(values.pop().unwrap_or_default()),
            Err(Failed::Refused(error)) if fault::denies_in_script(&error) => {
                // Redis 7.0 does not say what it is that the user may not do.
                let named = Box::pin(rights::check(self)).await.err();
                Err(named.unwrap_or_else(|| self.error(Failed::Refused(error), what)))
            }
            Err(why) => Err(self.error(why, what)),
        }
    }

    /// Sends a command that changes something.
    ///
    /// # Errors
    /// After [`Error::Unavailable`] it may or may not have been carried out.
    pub(crate) async fn command(&self, what: &str, command: &Cmd) -> Result<Value> {
        let mut values = self.values(what, Parcel::One(command), false).await?;
        Ok(values.pop().unwrap_or_default())
    }

    /// Sends a command that changes nothing, or nothing more when it is sent again: which it is when its answer was lost.
    pub(crate) async fn read(&self, what: &str, command: &Cmd) -> Result<Value> {
        let mut values = self.values(what, Parcel::One(command), true).await?;
        Ok(values.pop().unwrap_or_default())
    }

    /// Sends several commands at once; one answer for each.
    ///
    /// # Errors
    /// After [`Error::Unavailable`] any of them may have been carried out.
    pub(crate) async fn pipeline(&self, what: &str, pipeline: &Pipeline) -> Result<Vec<Value>> {
        self.values(what, Parcel::Many(pipeline), false).await
    }

    /// The same for commands that change nothing, or nothing more when they are sent again.
    pub(crate) async fn read_all(&self, what: &str, pipeline: &Pipeline) -> Result<Vec<Value>> {
        self.values(what, Parcel::Many(pipeline), true).await
    }

    /// Does a piece of work where the connections are driven: what goes to and fro several times wakes no other thread in
    /// between. It ends with the answer, or when that is no longer waited for.
    pub(crate) async fn drive<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let work = AbortOnDropHandle::new(self.runtime.spawn(work));
        work.await.unwrap_or_else(|error| Err(Error::unavailable(what, error)))
    }

    /// Subscribes to channels, over a connection of its own, and keeps at it until the answer is dropped.
    pub(crate) fn subscribe(&self, channels: Vec<Channel>) -> Subscription {
        Subscription::start(self.connector.clone(), &self.runtime, channels)
    }

    /// An answer that has not the form it should have.
    pub(crate) fn unexpected(&self, what: &str) -> Error {
        fault::unexpected(what, self.shown())
    }

    async fn values(&self, what: &str, parcel: Parcel<'_>, read: bool) -> Result<Vec<Value>> {
        self.send(what, parcel, read).await.map_err(|why| self.error(why, what))
    }

    fn error(&self, why: Failed, what: &str) -> Error {
        match why {
            Failed::Refused(error) => self.connector.error(&error, what),
            Failed::Unreachable(error) => error,
        }
    }

    async fn send(&self, what: &str, parcel: Parcel<'_>, read: bool) -> Result<Vec<Value>, Failed> {
        let deadline = Instant::now() + self.options.patience + self.options.response_timeout;
        let mut repeated = 0;
        loop {
            let held = self.line.connection(self.options.patience).await.map_err(Failed::Unreachable)?;
            let sent = self.line.answer(&held, parcel.send(&held)).await;
            let error = match sent.map_err(fault::cause).and_then(fault::no_error_within) {
                Ok(values) => return Ok(values),
                Err(error) => error,
            };
            if fault::breaks(&error) {
                self.line.take_down(&held);
                let harmless = fault::passes(&error) || (read && !error.is_timeout());
                if harmless && Instant::now() < deadline {
                    tracing::debug!(%error, what, "the call is sent again");
                    if fault::passes(&error) || repeated > 0 {
                        // The server answers, and refuses, or cuts off whoever sends this: give it a moment.
                        tokio::time::sleep(pause(2 + repeated)).await;
                    }
                    repeated += 1;
                    continue;
                }
            }
            return Err(Failed::Refused(error));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, _)) = thread {
            // Connections end with the runtime that drives them. Nothing waits for that: this may be that very thread.
            let _ = stop.send(());
        }
    }
}

/// Why a parcel has no answer.
enum Failed {
    Refused(RedisError),
    Unreachable(Error),
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

type Thread = (oneshot::Sender<()>, JoinHandle<()>);

fn spawn_runtime(shown: &str) -> Result<(tokio::runtime::Handle, Thread)> {
    let failed =
        |error: std::io::Error| Error::unavailable(format!("connect ({shown}): start a thread"), error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    let drive = move || {
        // Whether it is told to stop or its owner is gone, it stops.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    };
    let thread =
        std::thread::Builder::new().name("celeriac-redis".to_owned()).spawn(drive).map_err(failed)?;
    Ok((handle, (stop, thread)))
}
