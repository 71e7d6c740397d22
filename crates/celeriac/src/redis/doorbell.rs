//! Where those wait who are to be woken by a change of a key, whoever changes it.
//!
//! The server is asked to remember which keys we looked at, and says when one of them is changed: `CLIENT TRACKING`, made
//! for caches. A look at a key that does not exist counts, a `LPUSH` of a Python producer is a change like any other, and
//! nothing is taken off a list to find out that it is there. So one connection serves all who wait in a process, for
//! messages, results, logs, revocations and commands alike, and what was changed between the look and the wait is told,
//! because the look itself began the watch.
//!
//! What was considered instead: `BRPOP` takes messages off, and a lost answer loses them; `BLMOVE q q RIGHT RIGHT` takes
//! nothing off, but waits for one list and needs a connection for each; keyspace notifications are off by default, and
//! hosted servers do not let them be turned on; publishing a word of our own leaves out what Python sends.
//!
//! A watch ends with the change it tells, so who is woken arms it again before he looks again. Whatever is lost between (a
//! connection, a server) wakes everybody, and a connection on which nothing was said for a while is asked whether it lives,
//! as long as anybody waits. All look again by themselves every few seconds, which is the net beneath.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::Connector;
use super::line::{Line, SUSPICION};
use super::value;
use crate::store::Result;

/// Who waits looks again by himself after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same where the server tells nothing of changes, because it or whatever stands before it does not know how to.
const POLL: Duration = Duration::from_millis(50);

/// How often the connection is asked whether it lives, while anybody waits.
const PULSE: Duration = SUSPICION;

/// The doorbell of one link.
pub(crate) struct Doorbell {
    connector: Arc<Connector>,
    runtime: tokio::runtime::Handle,
    /// Of a connection it is known whether it tells changes.
    line: Line<bool>,
    room: Arc<Mutex<Room>>,
}

/// Those who wait.
#[derive(Default)]
struct Room {
    by_key: HashMap<Vec<u8>, Vec<u64>>,
    bells: HashMap<u64, Arc<Notify>>,
    last: u64,
    /// The connection is asked whether it lives.
    pulses: bool,
}

impl Doorbell {
    pub(super) fn new(connector: Arc<Connector>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        let room = Arc::<Mutex<Room>>::default();
        let (opened, told, lost) = (connector.clone(), room.clone(), room.clone());
        let open = move || -> BoxFuture<'static, _> {
            let (connector, room) = (opened.clone(), told.clone());
            async move { open(&connector, &room).await }.boxed()
        };
        // What was changed meanwhile nobody tells.
        let lost = move || lock(&lost).ring_all();
        let timeout = connector.connect_timeout;
        let line = Line::new(connector.shown(), runtime.clone(), timeout, Box::new(open), Box::new(lost));
        Arc::new(Self { connector, runtime, line, room })
    }

    /// A bell that rings when one of `keys` is changed, once it is armed.
    pub(crate) fn bell(self: &Arc<Self>, keys: Vec<String>) -> Bell {
        let rung = Arc::new(Notify::new());
        let mut room = self.lock();
        room.last += 1;
        let number = room.last;
        for key in &keys {
            room.by_key.entry(key.clone().into_bytes()).or_default().push(number);
        }
        room.bells.insert(number, rung.clone());
        if !std::mem::replace(&mut room.pulses, true) {
            self.runtime.spawn(pulse(Arc::downgrade(self)));
        }
        drop(room);
        Bell { doorbell: self.clone(), keys, number, rung, look_again: LOOK_AGAIN }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        lock(&self.room)
    }

    /// Has reads answered, which begins a watch of the keys they read; says too whether changes are told.
    async fn look(&self, reads: &Pipeline) -> Result<(Vec<Value>, bool)> {
        let deadline = Instant::now() + self.connector.patience;
        loop {
            let held = self.line.connection(self.connector.patience).await?;
            let mut connection = held.connection.clone();
            let answers = connection.send_packed_commands(reads, 0, reads.len());
            let answers = self.line.answer(&held, answers).await;
            let error = match answers.and_then(super::fault::no_error_within) {
                Ok(answers) => return Ok((answers, held.known)),
                Err(error) => error,
            };
            if super::fault::breaks(&error) {
                self.line.take_down(&held);
            }
            let error = self.connector.error(&error, "wait for a change");
            if !error.is_transient() || Instant::now() >= deadline {
                return Err(error);
            }
        }
    }
}

/// Asks the connection whether it lives, for as long as anybody waits.
async fn pulse(doorbell: Weak<Doorbell>) {
    let mut ping = redis::pipe();
    ping.cmd("PING");
    loop {
        tokio::time::sleep(PULSE).await;
        let Some(doorbell) = doorbell.upgrade() else { return };
        {
            let mut room = doorbell.lock();
            if room.bells.is_empty() {
                room.pulses = false;
                return;
            }
        }
        // Who waits is woken when it turns out to be dead, and those who come find out by themselves why.
        let _ = doorbell.look(&ping).await;
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn open(connector: &Connector, room: &Arc<Mutex<Room>>) -> Result<(MultiplexedConnection, bool)> {
    let room = room.clone();
    let told = move |push: PushInfo| -> Result<(), std::convert::Infallible> {
        tell(&room, &push);
        Ok(())
    };
    let client = connector.client(ProtocolVersion::RESP3).await?;
    let opened = connector.open_raw(&client, connector.config().set_push_sender(told)).await;
    let tracking = match opened {
        Ok(mut connection) => {
            let mut track = redis::cmd("CLIENT");
            track.arg("TRACKING").arg("ON");
            let tracks = connection.send_packed_command(&track).await.and_then(Value::extract_error);
            tracks.map(|_| connection)
        }
        Err(error) => Err(error),
    };
    let error = match tracking {
        Ok(connection) => return Ok((connection, true)),
        // It cannot be reached, and whether it could do it is not known.
        Err(error) if super::fault::breaks(&error) => return Err(connector.error(&error, "connect")),
        Err(error) => error.to_string(),
    };
    // The server speaks no RESP3, or what stands before it does not.
    let connection = connector.multiplexed().await?;
    tracing::warn!(to = connector.shown(), error, "the server tells nothing of changes: looking every 50 ms");
    Ok((connection, false))
}

fn tell(room: &Mutex<Room>, push: &PushInfo) {
    let room = lock(room);
    match push.kind {
        PushKind::Invalidate => {
            let keys = push.data.first().unwrap_or(&Value::Nil);
            // Without keys everything was flushed.
            if value::items(keys).is_empty() {
                room.ring_all();
            }
            for key in value::items(keys).iter().filter_map(value::bytes) {
                for number in room.by_key.get(key).into_iter().flatten() {
                    if let Some(bell) = room.bells.get(number) {
                        bell.notify_one();
                    }
                }
            }
        }
        PushKind::Disconnection => room.ring_all(),
        _ => {}
    }
}

impl Room {
    fn ring_all(&self) {
        for bell in self.bells.values() {
            bell.notify_one();
        }
    }
}

/// One who waits. Dropped, he waits no more.
pub(crate) struct Bell {
    doorbell: Arc<Doorbell>,
    keys: Vec<String>,
    number: u64,
    rung: Arc<Notify>,
    look_again: Duration,
}

impl Bell {
    /// Begins to watch: what is changed from now on ends the next [`Bell::wait`]. Call it before each look.
    pub(crate) async fn arm(&mut self) -> Result<()> {
        let mut reads = redis::pipe();
        let exist = reads.cmd("EXISTS");
        for key in &self.keys {
            exist.arg(key);
        }
        self.look(&reads).await.map(drop)
    }

    /// The same by a look, whose answers it returns: `reads` read each of the keys, and change nothing.
    pub(crate) async fn look(&mut self, reads: &Pipeline) -> Result<Vec<Value>> {
        let (answers, tracks) = self.doorbell.look(reads).await?;
        self.look_again = if tracks { LOOK_AGAIN } else { POLL };
        Ok(answers)
    }

    /// Waits until it is time to look again, at most until `deadline`.
    pub(crate) async fn wait(&self, deadline: Instant) {
        let until = deadline.min(Instant::now() + self.look_again);
        // Why the wait is over, the next look tells.
        let _ = tokio::time::timeout_at(until, self.rung.notified()).await;
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let mut room = self.doorbell.lock();
        room.bells.remove(&self.number);
        for key in &self.keys {
            if let Some(numbers) = room.by_key.get_mut(key.as_bytes()) {
                numbers.retain(|number| *number != self.number);
                if numbers.is_empty() {
                    room.by_key.remove(key.as_bytes());
                }
            }
        }
    }
}
