//! A few connections for reading, used on blocking threads and given back before anything is awaited: an open read
//! transaction would keep the write-ahead log from starting over.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::connect;
use super::fault::Fault;

/// Reads at once; others wait their turn.
const READERS_MAX: usize = 4;

/// The readers of one open store.
pub(super) struct Readers {
    path: PathBuf,
    busy_timeout: Duration,
    room: Semaphore,
    rested: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, busy_timeout: Duration) -> Self {
        Self { path, busy_timeout, room: Semaphore::new(READERS_MAX), rested: Mutex::default() }
    }

    /// Runs `read` on a connection of its own.
    pub(super) async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let closed = |_| Fault::Unavailable("the store is closed".to_owned());
        let _permit = self.room.acquire().await.map_err(closed)?;
        let readers = self.clone();
        let work = move || {
            let rested = readers.rested.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match rested {
                Some(connection) => connection,
                None => connect::reader(&readers.path, readers.busy_timeout)?,
            };
            let found = read(&connection);
            readers.rested.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            found
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(found) => found,
            Err(error) => Err(Fault::Unavailable(format!("a read did not end: {error}"))),
        }
    }

    /// Closes the connections at rest, so that the writer is the last to close and tidies up.
    pub(super) fn close(&self) {
        self.room.close();
        self.rested.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
