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
//! connection, a server) wakes everybody; and all look again by themselves every few seconds, which also finds out about a
//! connection that is dead without saying so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::Connector;
use super::link::pause;
use super::value;
use crate::store::{Error, Result};

/// Who waits looks again by himself after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same where the server tells nothing of changes, because it or whatever stands before it does not know how to.
const POLL: Duration = Duration::from_millis(50);

/// The doorbell of one link.
pub(crate) struct Doorbell {
    connector: Arc<Connector>,
    runtime: tokio::runtime::Handle,
    line: tokio::sync::Mutex<Line>,
    room: Arc<Mutex<Room>>,
}

#[derive(Default)]
struct Line {
    up: Option<MultiplexedConnection>,
    number: u64,
    failures: u32,
    /// Changes are told.
    tracks: bool,
}

/// Those who wait.
#[derive(Default)]
struct Room {
    by_key: HashMap<Vec<u8>, Vec<u64>>,
    bells: HashMap<u64, Arc<Notify>>,
    last: u64,
}

impl Doorbell {
    pub(super) fn new(connector: Arc<Connector>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self { connector, runtime, line: tokio::sync::Mutex::default(), room: Arc::default() })
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
        drop(room);
        Bell { doorbell: self.clone(), keys, number, rung, look_again: LOOK_AGAIN }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch `keys`; says whether changes are told.
    async fn arm(&self, keys: &[String]) -> Result<bool> {
        let mut command = redis::cmd("EXISTS");
        for key in keys {
            command.arg(key);
        }
        let deadline = Instant::now() + self.connector.patience;
        loop {
            let error = match self.connection().await {
                Ok((mut connection, number, tracks)) => {
                    match connection.send_packed_command(&command).await.and_then(Value::extract_error) {
                        Ok(_) => return Ok(tracks),
                        Err(error) => {
                            self.take_down(number).await;
                            self.connector.error(&error, "wait for a change")
                        }
                    }
                }
                Err(error) => error,
            };
            if !error.is_transient() || Instant::now() >= deadline {
                return Err(error);
            }
        }
    }

    async fn take_down(&self, number: u64) {
        let mut line = self.line.lock().await;
        if line.number == number {
            line.up = None;
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64, bool)> {
        let mut line = self.line.lock().await;
        if let Some(up) = &line.up {
            return Ok((up.clone(), line.number, line.tracks));
        }
        if line.failures > 0 {
            tokio::time::sleep(pause(line.failures)).await;
        }
        let (connector, room) = (self.connector.clone(), self.room.clone());
        // On the runtime that drives connections, whoever calls.
        let opening = self.runtime.spawn(async move { open(&connector, &room).await });
        match opening.await.map_err(|error| Error::unavailable("connect", error))? {
            Ok((up, tracks)) => {
                line.number += 1;
                (line.failures, line.tracks) = (0, tracks);
                line.up = Some(up.clone());
                Ok((up, line.number, tracks))
            }
            Err(error) => {
                line.failures = line.failures.saturating_add(1);
                Err(error)
            }
        }
    }
}

async fn open(connector: &Connector, room: &Arc<Mutex<Room>>) -> Result<(MultiplexedConnection, bool)> {
    let room = room.clone();
    let told = move |push: PushInfo| -> Result<(), std::convert::Infallible> {
        tell(&room, &push);
        Ok(())
    };
    let client = connector.client(ProtocolVersion::RESP3).await;
    let opened = match &client {
        Ok(client) => connector.open(client, connector.config().set_push_sender(told)).await,
        Err(_) => Err(Error::unavailable("connect", "no server")),
    };
    let error = match opened {
        Ok(mut connection) => {
            let mut track = redis::cmd("CLIENT");
            track.arg("TRACKING").arg("ON");
            match connection.send_packed_command(&track).await.and_then(Value::extract_error) {
                Ok(_) => return Ok((connection, true)),
                Err(error) if super::fault::breaks(&error) => {
                    return Err(connector.error(&error, "ask to be told of changes"));
                }
                Err(error) => error.to_string(),
            }
        }
        Err(error) => {
            client?;
            error.to_string()
        }
    };
    // Either the server cannot be reached at all, or it speaks no RESP3.
    let connection = connector.multiplexed().await?;
    tracing::warn!(to = connector.shown(), error, "the server tells nothing of changes: looking every 50 ms");
    Ok((connection, false))
}

fn tell(room: &Mutex<Room>, push: &PushInfo) {
    let room = room.lock().unwrap_or_else(PoisonError::into_inner);
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
        let tracks = self.doorbell.arm(&self.keys).await?;
        self.look_again = if tracks { LOOK_AGAIN } else { POLL };
        Ok(())
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
