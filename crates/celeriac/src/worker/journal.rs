//! Writes what runs report while they run: progress, streamed tokens, finished steps. Each write is fenced by the
//! run's lease, and many runs share a commit.
//!
//! Tokens are gathered: a buffer is written when it is full, or when the token interval has passed since the first one
//! came, whichever is earlier.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::backend::Record;
use crate::store::{Outcome, Then, Transaction};
use crate::task::{JournalAnswer, JournalWrite};

/// Writes that may wait.
pub(super) const BOUND: usize = 1_024;
const BATCH_MAX: usize = 256;
const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(
    shared: Arc<Shared>,
    mut writes: mpsc::Receiver<JournalWrite>,
    done: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut tokens_due: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            () = sleep_until(tokens_due.unwrap_or_else(Instant::now)), if tokens_due.is_some() => {}
            received = writes.recv_many(&mut batch, BATCH_MAX) => {
                if received == 0 {
                    return;
                }
            }
            () = done.cancelled() => return,
        }
        let mut transactions = Vec::new();
        let mut answers: Vec<Option<oneshot::Sender<JournalAnswer>>> = Vec::new();
        let mut now = tokens_due.is_some_and(|due| due <= Instant::now());
        for write in batch.drain(..) {
            match write {
                JournalWrite::Tokens { now: full } => {
                    now |= full;
                    tokens_due.get_or_insert_with(|| Instant::now() + shared.journal.token_interval());
                }
                // A flush: everything before it has been written by now.
                JournalWrite::Record { record: Record { log, steps, results, .. }, answer, .. }
                    if log.is_empty() && steps.is_empty() && results.is_empty() =>
                {
                    let _ = answer.send(JournalAnswer::Written);
                }
                JournalWrite::Record { tag, record, answer } => {
                    let mut transaction = Transaction::fenced(tag, Then::Keep);
                    transaction.record = record;
                    transactions.push(transaction);
                    answers.push(Some(answer));
                }
            }
        }
        if now {
            tokens_due = None;
            for buffer in shared.journal.drain_tokens() {
                let mut transaction = Transaction::fenced(buffer.tag.clone(), Then::Keep);
                transaction.record.log = buffer.into_records();
                transactions.push(transaction);
                answers.push(None);
            }
        }
        if transactions.is_empty() {
            continue;
        }
        let outcomes = commit(&shared, transactions, &done).await;
        for (place, answer) in answers.into_iter().enumerate() {
            let Some(answer) = answer else { continue };
            let written = outcomes.get(place).is_some_and(Outcome::is_committed);
            let _ = answer.send(if written { JournalAnswer::Written } else { JournalAnswer::Lost });
        }
    }
}

/// Commits, and tries again while the store is away: runs wait for their records meanwhile, which bounds them.
async fn commit(shared: &Shared, transactions: Vec<Transaction>, done: &CancellationToken) -> Vec<Outcome> {
    loop {
        match shared.app.store().transact.commit(transactions.clone()).await {
            Ok(outcomes) => return outcomes,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "cannot write to task logs, trying again");
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                    () = done.cancelled() => return Vec::new(),
                }
            }
            Err(error) => {
                tracing::error!(%error, "records of task logs cannot be written, left out");
                return Vec::new();
            }
        }
    }
}
