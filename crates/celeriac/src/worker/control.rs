//! Hears what is said to the worker, and answers: remote control, in Celery's words. What each command does stands in
//! `panel.rs`.
//!
//! ```text
//!  the end of the commands ─► beat (heartbeat.rs) ─► wait for commands ─► do each ─► answer ─┐
//!                                                          ▲─────────────────────────────────┘
//! ```
//!
//! A worker shows itself only when it listens, so that whoever sees it can reach it. A command that was done is not done
//! again, whether its answer could be stored or not.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::announcer::{self, Untold};
use super::{Shared, heartbeat, panel, revocation};
use crate::canvas;
use crate::control::{Command, Elected, Reply};
use crate::protocol::{Signature, pidbox};
use crate::task::Dynamic;

/// How long one call waits; the loop goes on at once.
const WAIT: Duration = Duration::from_secs(5);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(500);
/// How often an answer is tried to be stored: who asked does not wait for ever.
const REPLY_TRIES: u32 = 3;

/// Starts the thread of remote control, the heartbeat and the events. It ends after `done`.
pub(super) fn spawn(
    shared: Arc<Shared>,
    untold: Untold,
    done: CancellationToken,
) -> std::io::Result<JoinHandle<()>> {
    // One thread more for the reads of an embedded store, which block.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build()?;
    std::thread::Builder::new().name("celeriac-control".to_owned()).spawn(move || {
        runtime.block_on(async {
            if let Some(end) = commands_end(&shared, &done).await {
                let mingle = async {
                    // The consumer may have asked while the store was away.
                    revocation::learn(&shared).await;
                    if shared.mingles {
                        revocation::mingle(&shared).await;
                    }
                };
                tokio::join!(
                    heartbeat::run(&shared, &done),
                    listen(&shared, &done, end),
                    announcer::run(&shared, untold, &done),
                    mingle,
                    serve(&shared, &done),
                );
            }
        });
    })
}

/// Does what the worker is elected to by others.
async fn serve(shared: &Shared, done: &CancellationToken) {
    let Some(announcer) = shared.app.store().control.announcer().filter(|_| shared.gossips) else { return };
    let mut candidacy = announcer.stand(shared.model_event());
    loop {
        let elected = tokio::select! {
            () = done.cancelled() => return,
            elected = candidacy.elected() => elected,
        };
        let Some(Elected { topic, action }) = elected else { return };
        // As celery/worker/consumer/gossip.py, which knows this one duty.
        if topic != "task" {
            tracing::warn!(topic, "elected to something that is not known here");
            continue;
        }
        let sent = match Signature::decode(&action) {
            Ok(signature) => {
                canvas::Signature::<Dynamic>::from_wire(signature).delay(&shared.app).await.map(drop)
            }
            Err(why) => Err(crate::Error::invalid("action", why)),
        };
        if let Err(error) = sent {
            tracing::error!(%error, "cannot send the task that this worker was elected to send");
        }
    }
}

/// Where the commands for this worker begin; `None` when it is over before the store was there.
async fn commands_end(shared: &Shared, done: &CancellationToken) -> Option<u64> {
    loop {
        match shared.app.store().control.commands_end().await {
            Ok(end) => return Some(end),
            Err(error) => tracing::warn!(%error, "cannot listen for commands, trying again"),
        }
        tokio::select! {
            () = done.cancelled() => return None,
            () = tokio::time::sleep(STORE_AWAY_PAUSE) => {}
        }
    }
}

async fn listen(shared: &Shared, done: &CancellationToken, mut after: u64) {
    loop {
        // Dropping the wait loses nothing: a command stays until it is out of date.
        let found = tokio::select! {
            () = done.cancelled() => return,
            found = shared.app.store().control.commands(&shared.worker, after, WAIT) => found,
        };
        match found {
            Ok(commands) => {
                for (number, command) in commands {
                    after = number;
                    obey(shared, &command).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for commands, trying again");
                tokio::select! {
                    () = done.cancelled() => return,
                    () = tokio::time::sleep(STORE_AWAY_PAUSE) => {}
                }
            }
        }
    }
}

async fn obey(shared: &Shared, command: &Command) {
    let mut reply = Reply { worker: shared.worker.clone(), content: panel::answer(shared, command).await };
    if let Err(error) = reply.check_size() {
        reply.content = pidbox::error(&error.to_string());
    }
    for _ in 0..REPLY_TRIES {
        match shared.app.store().control.reply(&command.ticket, &reply).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(method = %command.method, %error, "cannot answer a command"),
        }
        tokio::time::sleep(STORE_AWAY_PAUSE).await;
    }
}
