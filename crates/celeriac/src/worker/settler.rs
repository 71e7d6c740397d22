//! Writes the ends of runs, many at once: takes all that wait, commits them together, and frees what they held.
//!
//! While the store is away the ends wait here, their leases renewed, and are tried again; the bound on how many wait is
//! what then stops the worker from taking more.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::ending::{self, Count};
use super::{Shared, fire_chords};
use crate::broker::Delivery;
use crate::id::{DeliveryTag, TaskId};
use crate::protocol::event::EventKind;
use crate::store::{Error, Outcome, Transaction};

/// Ends that may wait to be written.
const BOUND: usize = 1_024;
/// Ends written in one commit.
const BATCH_MAX: usize = 512;
/// Commits under way at once: one is made ready, or what became of it is told, while the store is busy with the other.
const WRITTEN_AT_ONCE: usize = 2;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// How long a worker that shuts down tries to reach a store that is away. What is not written then runs again when its
/// lease has passed.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// The way to the settler.
#[derive(Debug)]
pub(crate) struct Settler {
    sender: mpsc::Sender<Settlement>,
}

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Settlement {
    transaction: Transaction,
    /// The reservation it ends.
    ends: Option<Ends>,
    answer: Option<oneshot::Sender<Outcome>>,
}

/// A reservation that ends.
#[derive(Debug)]
struct Ends {
    tag: DeliveryTag,
    task_id: TaskId,
    /// What that counts as.
    count: Count,
    /// How long the run took, if there was one.
    took: Option<Duration>,
    /// What is told of it, where the transaction does not say.
    told: Option<EventKind>,
}

pub(super) fn channel() -> (Settler, mpsc::Receiver<Settlement>) {
    let (sender, receiver) = mpsc::channel(BOUND);
    (Settler { sender }, receiver)
}

impl Settler {
    /// Ends a reservation; returns when the end waits to be written. `took` is how long its run took, if there was one.
    pub(super) async fn settle(
        &self,
        delivery: &Delivery,
        transaction: Transaction,
        count: Count,
        took: Option<Duration>,
    ) {
        self.settle_telling(delivery, transaction, count, took, None).await;
    }

    /// The same, with the event that tells of the end.
    pub(super) async fn settle_telling(
        &self,
        delivery: &Delivery,
        transaction: Transaction,
        count: Count,
        took: Option<Duration>,
        told: Option<EventKind>,
    ) {
        let ends = Ends { tag: delivery.tag.clone(), task_id: delivery.task_id.clone(), count, took, told };
        let settlement = Settlement { transaction, ends: Some(ends), answer: None };
        // The settler outlives every run, so this fails only when it has panicked; the lease then passes.
        let _ = self.sender.send(settlement).await;
    }

    /// Writes something that does not end a reservation, and waits for what became of it.
    pub(super) async fn commit(&self, transaction: Transaction) -> Option<Outcome> {
        let (answer, answered) = oneshot::channel();
        let settlement = Settlement { transaction, ends: None, answer: Some(answer) };
        self.sender.send(settlement).await.ok()?;
        answered.await.ok()
    }
}

pub(super) async fn run(
    shared: Arc<Shared>,
    mut settlements: mpsc::Receiver<Settlement>,
    done: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut writing = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = writing.next() => {}
            received = settlements.recv_many(&mut batch, BATCH_MAX), if writing.len() < WRITTEN_AT_ONCE => {
                if received == 0 {
                    break;
                }
                writing.push(write(&shared, std::mem::take(&mut batch)));
            }
            () = done.cancelled(), if writing.is_empty() => return,
        }
    }
    while writing.next().await.is_some() {}
}

async fn write(shared: &Arc<Shared>, mut batch: Vec<Settlement>) {
    let transactions: Vec<Transaction> =
        batch.iter_mut().map(|settlement| std::mem::take(&mut settlement.transaction)).collect();
    let committed = commit(shared, &transactions).await;
    for (settlement, transaction) in batch.iter_mut().zip(transactions) {
        settlement.transaction = transaction;
    }
    match committed {
        Ok(outcomes) => {
            for (settlement, outcome) in batch.into_iter().zip(outcomes) {
                finish(shared, settlement, outcome);
            }
        }
        Err(error) if error.is_transient() || matches!(error, Error::Open { .. }) => {
            tracing::error!(%error, ends = batch.len(), "ends could not be stored, their tasks will run again");
        }
        Err(_) => {
            // One of them cannot be stored: find it, and let the others pass.
            for settlement in batch {
                match commit(shared, std::slice::from_ref(&settlement.transaction)).await {
                    Ok(mut outcomes) => {
                        finish(shared, settlement, outcomes.pop().unwrap_or(Outcome::Lost));
                    }
                    Err(error) => unstorable(shared, settlement, &error).await,
                }
            }
        }
    }
}

/// An end that the store will never take becomes a FAILURE that says so.
async fn unstorable(shared: &Arc<Shared>, mut settlement: Settlement, error: &Error) {
    tracing::error!(%error, "an end cannot be stored");
    let Some(ends) = &mut settlement.ends else { return };
    ends.count = Count::Failed;
    let tag = ends.tag.clone();
    settlement.transaction = ending::unstorable(&tag, &settlement.transaction, error);
    match commit(shared, std::slice::from_ref(&settlement.transaction)).await {
        Ok(mut outcomes) => finish(shared, settlement, outcomes.pop().unwrap_or(Outcome::Lost)),
        Err(error) => {
            tracing::error!(%error, %tag, "nor can its failure; the message stays until its lease has passed");
            shared.held.remove(&tag);
        }
    }
}

fn finish(shared: &Arc<Shared>, mut settlement: Settlement, outcome: Outcome) {
    if let Some(Ends { tag, task_id, count, took, told }) = &mut settlement.ends {
        shared.held.remove(tag);
        // Only what is written has happened: a run that lost its lease did not succeed, whatever it returned.
        let lost = outcome == Outcome::Lost;
        ending::count(&shared.counters, if lost { Count::Lost } else { *count });
        if lost {
            tracing::warn!(%tag, "the lease had passed, the end of this run is not stored");
        } else if let Some(told) = told.take() {
            shared.announcer.task(|| shared.app.clock().now(), || told);
        } else {
            shared.tell_end(task_id, &settlement.transaction, *count, *took);
        }
    }
    if let Outcome::Committed { ready, .. } = &outcome
        && !ready.is_empty()
    {
        let (shared, ready) = (Arc::clone(shared), ready.clone());
        let runs = shared.runs.clone();
        runs.spawn(async move { fire_chords(&shared.app, ready).await });
    }
    if let Some(answer) = settlement.answer {
        let _ = answer.send(outcome);
    }
}

/// Commits, and tries again while the store is away.
async fn commit(shared: &Shared, transactions: &[Transaction]) -> Result<Vec<Outcome>, Error> {
    let mut pause = RETRY_FIRST;
    let mut patience: Option<tokio::time::Instant> = None;
    loop {
        let error = match shared.app.store().transact.commit(transactions.to_vec()).await {
            Ok(outcomes) => return Ok(outcomes),
            // A user whose rights or password were changed may have them again; it says nothing of what is to be written.
            Err(error) if error.is_transient() || matches!(error, Error::Open { .. }) => error,
            Err(error) => return Err(error),
        };
        tracing::warn!(%error, ends = transactions.len(), "cannot store ends, trying again");
        if shared.stopping.is_cancelled() {
            let until = *patience.get_or_insert_with(|| tokio::time::Instant::now() + SHUTDOWN_PATIENCE);
            if tokio::time::Instant::now() >= until {
                return Err(error);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::protocol::RawMessage;

    /// While nothing is taken off, so many ends wait; who ends after them waits with his slot.
    #[tokio::test]
    async fn ends_that_wait_are_bounded() {
        let (settler, mut settlements) = channel();
        let delivery = Delivery {
            tag: DeliveryTag::from("tag"),
            task_id: TaskId::from("a"),
            queue: "q".into(),
            priority: 0,
            deliveries: 1,
            begun: false,
            revoked: false,
            message: RawMessage { head: "".into(), body: bytes::Bytes::new() },
        };
        let end = || settler.settle(&delivery, Transaction::default(), Count::Succeeded, None);
        for n in 0..BOUND {
            let queued = tokio::task::unconstrained(end()).now_or_never();
            assert!(queued.is_some(), "{n} wait, and there is room");
        }
        let late = tokio::task::unconstrained(end());
        tokio::pin!(late);
        assert!((&mut late).now_or_never().is_none(), "there is no room");
        assert!(settlements.recv().await.is_some());
        late.await;
    }
}
