//! One connection that many share, kept up for as long as somebody wants it.
//!
//! ```text
//!           ┌── a call fails for the connection's sake, or another one turns out to be good ──┐
//!           ▼                                                                                │
//!   down ──open──► up ── calls ───────────────────────────────────────────────────────────────┘
//!    ▲ └─fails: pause, longer each time, with jitter, while anybody waits ─┐
//!    └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A connection may be dead without saying so: a firewall forgot it, a machine lost its power, a master was frozen and
//! replaced. A call that has had no answer for [`SUSPICION`] therefore has another connection made beside the one it waits
//! on, again and again. Where that succeeds the server answers, and would have answered the call: the old connection is
//! dead, and all who wait on it are told. A server that is merely slow answers nobody, and nothing is given up; nor is
//! anything when the server says that it has more to send on the old connection, as an answer that is long on a path that
//! is narrow: that has until it is out of time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::{Error, Result};

/// A call without an answer for so long has it found out whether its connection is dead.
pub(super) const SUSPICION: Duration = Duration::from_secs(2);
/// The shortest and the longest pause between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// An attempt that has not succeeded for so long gets another one beside it.
const HANGS: Duration = Duration::from_secs(1);

/// Makes a connection, and says what else is to be known of it.
pub(super) type Open<T> =
    Box<dyn Fn() -> BoxFuture<'static, Result<(MultiplexedConnection, T)>> + Send + Sync>;
/// Told when a connection is given up.
pub(super) type Lost = Box<dyn Fn() + Send + Sync>;

/// A connection kept up, with something that is known of each.
pub(super) struct Line<T>(Arc<Inner<T>>);

struct Inner<T> {
    shown: String,
    runtime: tokio::runtime::Handle,
    /// The longest that one attempt may take.
    connect_timeout: Duration,
    open: Open<T>,
    lost: Lost,
    state: Mutex<State<T>>,
    /// Something in the state is another.
    changed: watch::Sender<()>,
}

struct State<T> {
    up: Option<Held<T>>,
    /// Counts connections, so that of many who see one break the first takes it down, and not the next one with it.
    number: u64,
    /// Who wants a connection, or another one than there is.
    wanted: usize,
    opening: bool,
    /// The number of a connection on which much is under way: that it takes long is no reason to suspect it. Until its
    /// answer is there, or is out of time.
    left_alone: u64,
    /// Attempts that failed, ever and in a row.
    attempts: u64,
    failures: u32,
    /// Not tried again before this.
    rests_until: Option<Instant>,
    error: Option<Error>,
}

/// A connection, and what is known of it.
#[derive(Clone)]
pub(super) struct Held<T> {
    pub(super) connection: MultiplexedConnection,
    pub(super) known: T,
    number: u64,
    dead: CancellationToken,
    /// What the server calls the connection.
    id: Option<i64>,
}

impl<T: Clone + Send + 'static> Line<T> {
    /// A line that is down. Connections are made on `runtime`, whoever wants one.
    pub(super) fn new(
        shown: &str,
        runtime: tokio::runtime::Handle,
        connect_timeout: Duration,
        open: Open<T>,
        lost: Lost,
    ) -> Self {
        let state = State {
            up: None,
            number: 0,
            wanted: 0,
            opening: false,
            left_alone: 0,
            attempts: 0,
            failures: 0,
            rests_until: None,
            error: None,
        };
        let (state, changed) = (Mutex::new(state), watch::Sender::new(()));
        let shown = shown.to_owned();
        Self(Arc::new(Inner { shown, runtime, connect_timeout, open, lost, state, changed }))
    }

    /// The connection, made if need be. Waits for it as long as `patience`, and then for an attempt under way.
    ///
    /// # Errors
    /// Why it cannot be made: at once when another attempt would not help.
    pub(super) async fn connection(&self, patience: Duration) -> Result<Held<T>> {
        let deadline = Instant::now() + patience;
        let mut changed = self.0.changed.subscribe();
        let mut wish = None;
        let mut seen = None;
        loop {
            // Before the look, so that what changes after it is heard.
            changed.borrow_and_update();
            {
                let mut state = self.0.lock();
                if let Some(up) = &state.up {
                    return Ok(up.clone());
                }
                let seen = *seen.get_or_insert(state.attempts);
                if state.attempts > seen
                    && let Some(error) = &state.error
                    && (!error.is_transient() || Instant::now() >= deadline)
                {
                    return Err(again(error));
                }
                if wish.is_none() {
                    state.wanted += 1;
                    wish = Some(Wish(&self.0));
                }
                self.0.start(&mut state);
            }
            if Instant::now() < deadline {
                let _ = tokio::time::timeout_at(deadline, changed.changed()).await;
            } else {
                let _ = changed.changed().await;
            }
        }
    }

    /// Waits for the answer to what was sent over a connection, or for that to turn out dead.
    pub(super) async fn answer<A>(
        &self,
        held: &Held<T>,
        exchange: impl Future<Output = RedisResult<A>>,
    ) -> RedisResult<A> {
        let suspicion = async {
            tokio::time::sleep(SUSPICION).await;
            let mut changed = self.0.changed.subscribe();
            self.0.lock().wanted += 1;
            let _wish = Wish(&self.0);
            loop {
                changed.borrow_and_update();
                {
                    let mut state = self.0.lock();
                    if state.up.as_ref().is_some_and(|up| up.number > held.number) {
                        return;
                    }
                    if state.left_alone != held.number {
                        self.0.start(&mut state);
                    }
                }
                let _ = changed.changed().await;
            }
        };
        let sent = Instant::now();
        tokio::select! {
            // An answer that is there counts, whatever was found out meanwhile.
            biased;
            answer = exchange => {
                if sent.elapsed() > SUSPICION {
                    self.0.lock().left_alone = 0;
                }
                answer
            }
            () = held.dead.cancelled() => Err(dead()),
            () = suspicion => Err(dead()),
        }
    }

    /// Gives a connection up. One that was made since stays.
    pub(super) fn take_down(&self, held: &Held<T>) {
        let mut state = self.0.lock();
        if state.up.as_ref().is_some_and(|up| up.number == held.number) {
            state.up = None;
            drop(state);
            self.0.changed.send_replace(());
            (self.0.lost)();
        }
    }
}

impl<T: Clone + Send + 'static> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to make a connection, unless that is under way.
    fn start(self: &Arc<Self>, state: &mut State<T>) {
        if !std::mem::replace(&mut state.opening, true) {
            self.runtime.spawn(self.clone().connect());
        }
    }

    /// Makes a connection; tries for as long as somebody wants one. An attempt that hangs, perhaps begun just before the
    /// path was good again, does not keep the next one from being begun.
    async fn connect(self: Arc<Self>) {
        let mut attempts = FuturesUnordered::new();
        let mut next = self.lock().rests_until.unwrap_or_else(Instant::now);
        loop {
            {
                let mut state = self.lock();
                if state.wanted == 0 {
                    state.opening = false;
                    return;
                }
            }
            let opened = tokio::select! {
                Some(opened) = attempts.next() => opened,
                () = tokio::time::sleep_until(next) => {
                    attempts.push(self.attempt());
                    next = Instant::now() + HANGS;
                    continue;
                }
            };
            let ended = match opened {
                Ok((mut connection, known)) => {
                    if let Some(number) = self.still_sends(&mut connection).await {
                        let mut state = self.lock();
                        (state.opening, state.left_alone) = (false, number);
                        drop(state);
                        self.changed.send_replace(());
                        return;
                    }
                    let id = client_id(&mut connection).await;
                    self.succeeded(connection, known, id)
                }
                Err(error) => {
                    let rests_until = self.failed(error);
                    if attempts.is_empty() {
                        next = rests_until;
                    }
                    false
                }
            };
            self.changed.send_replace(());
            if ended {
                return;
            }
        }
    }

    async fn attempt(&self) -> Result<(MultiplexedConnection, T)> {
        let opened = tokio::time::timeout(self.connect_timeout, (self.open)()).await;
        opened.map_err(|late| Error::unavailable(format!("connect ({})", self.shown), late))?
    }

    /// The number of the connection that there is, if the server has more to send on it, as it says on another one.
    async fn still_sends(&self, other: &mut MultiplexedConnection) -> Option<u64> {
        let (number, id) = self.lock().up.as_ref().and_then(|up| Some((up.number, up.id?)))?;
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST").arg("ID").arg(id);
        let listed: RedisResult<String> = list.query_async(other).await;
        // Nothing where it is listed no more.
        // What waits in its buffer, in the list behind that, and in memory: not all servers count all of it.
        let waits = |field: &str| {
            let waits = ["obl=", "oll=", "omem="].iter().find_map(|name| field.strip_prefix(name));
            waits.is_some_and(|count| count != "0")
        };
        listed.is_ok_and(|line| line.split(' ').any(waits)).then_some(number)
    }

    fn succeeded(&self, connection: MultiplexedConnection, known: T, id: Option<i64>) -> bool {
        let mut state = self.lock();
        (state.opening, state.rests_until, state.error) = (false, None, None);
        if std::mem::take(&mut state.failures) > 0 {
            tracing::info!(to = self.shown, "connected again");
        }
        if state.wanted == 0 && state.up.is_some() {
            // The one that was thought dead has answered.
            return true;
        }
        state.number += 1;
        let number = state.number;
        let before = state.up.replace(Held { connection, known, number, dead: CancellationToken::new(), id });
        drop(state);
        if let Some(before) = before {
            tracing::warn!(to = self.shown, "a connection was dead and did not say so");
            before.dead.cancel();
            (self.lost)();
        }
        true
    }

    /// Says when to try again.
    fn failed(&self, error: Error) -> Instant {
        let mut state = self.lock();
        state.attempts += 1;
        state.failures = state.failures.saturating_add(1);
        let rests_until = Instant::now() + pause(state.failures);
        state.rests_until = Some(rests_until);
        if state.failures == 1 {
            tracing::warn!(to = self.shown, %error, "cannot connect");
        }
        state.error = Some(error);
        rests_until
    }
}

/// What the server calls a connection; nothing where it, or what stands before it, does not say.
async fn client_id(connection: &mut MultiplexedConnection) -> Option<i64> {
    redis::cmd("CLIENT").arg("ID").query_async(connection).await.ok()
}

/// Somebody wants a connection.
struct Wish<'l, T>(&'l Inner<T>);

impl<T> Drop for Wish<'_, T> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).wanted -= 1;
    }
}

/// The same error for one more who waits.
fn again(error: &Error) -> Error {
    match error {
        Error::Open { what, why, remedy } => {
            Error::Open { what: what.clone(), why: why.clone(), remedy: remedy.clone() }
        }
        Error::Unavailable { what, source } => Error::unavailable(what.clone(), source.to_string()),
        other => Error::unavailable("connect", other.to_string()),
    }
}

fn dead() -> RedisError {
    let why = "the server answers on other connections, and no longer on this one";
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, why).into()
}

/// A pause before attempt number `failures` + 1.
pub(super) fn pause(failures: u32) -> Duration {
    let longest = (PAUSES.0 * 2_u32.saturating_pow(failures.min(10))).min(PAUSES.1);
    // Half of it is chance, so that those who lost one server do not come back in step.
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        for failures in 0..100 {
            let pause = pause(failures);
            assert!(pause >= PAUSES.0 / 2 && pause <= PAUSES.1, "{failures}: {pause:?}");
        }
        assert!(pause(100) >= PAUSES.1 / 2);
    }
}
