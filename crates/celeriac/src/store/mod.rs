//! What a store of tasks must do, beyond its two halves: write to both in one atomic step.
//!
//! [`Broker`] moves messages, [`Backend`] keeps what became of them. A task's end touches both: its result, its
//! acknowledgement, its last log record, its chord's countdown and the messages that follow from it belong together.
//! [`Transact`] is that one step. Where broker and backend are one store it is a transaction; where they are two,
//! [`Split`] orders the writes so that a crash between them repeats work rather than losing it.

mod error;
mod split;
mod split_catalog;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use error::{Error, Result};
pub use split::Split;

use crate::backend::{Backend, Record};
use crate::broker::{Broker, Place, Routed};
use crate::catalog::Catalog;
use crate::clock::Timestamp;
use crate::control::Control;
use crate::id::{DeliveryTag, GroupId, TaskId};

/// A broker, a backend and the atomic step over both, with what people ask of them; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// Moves messages.
    pub broker: Arc<dyn Broker>,
    /// Keeps results, logs, steps and chords.
    pub backend: Arc<dyn Backend>,
    /// Writes to both at once.
    pub transact: Arc<dyn Transact>,
    /// Lists tasks.
    pub catalog: Arc<dyn Catalog>,
    /// Knows the workers, and carries commands to them.
    pub control: Arc<dyn Control>,
}

impl Store {
    /// A store that is broker and backend in one.
    #[must_use]
    pub fn of<S: Broker + Backend + Transact + Catalog + Control>(store: Arc<S>) -> Self {
        Self {
            broker: store.clone(),
            backend: store.clone(),
            transact: store.clone(),
            catalog: store.clone(),
            control: store,
        }
    }

    /// Where the message of a task stands that somebody asks for. Other than [`Broker::locate`] it finds what others sent
    /// that nobody here has had in hand, which costs more: see [`Catalog::task`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn find(&self, task_id: &TaskId) -> Result<Option<Place>> {
        match self.broker.locate(std::slice::from_ref(task_id)).await?.pop().flatten() {
            None => Ok(self.catalog.task(task_id).await?.map(|record| record.listed.place)),
            place => Ok(place),
        }
    }
}

/// Writes to broker and backend in one atomic step.
#[async_trait]
pub trait Transact: fmt::Debug + Send + Sync + 'static {
    /// Carries out each of `transactions`, each wholly or not at all, and independently of its neighbours; the answer
    /// has one outcome for each, in order. All of them share one commit where the store can, and `Ok` means that they
    /// are as durable as the store is set to be.
    ///
    /// # Errors
    /// After [`Error::Unavailable`] the work may or may not have happened: the reply may be what was lost. Repeating is
    /// safe for a fenced transaction (the second answer is then [`Outcome::Lost`], and `locate`/`fetch` tell what
    /// happened) and for one whose messages carry ids of their own.
    async fn commit(&self, transactions: Vec<Transaction>) -> Result<Vec<Outcome>>;

    /// Whether a transaction is one step even when the process dies in the midst of it, and whether the two halves
    /// know of each other. [`Split`] says what is weaker where they do not.
    fn is_atomic(&self) -> bool {
        true
    }
}

/// What belongs together in one atomic step.
///
/// The order of effects within it: conditions (`fence`, `record.fire`) first, and when one fails nothing is written;
/// then what becomes of the delivery, then results, messages, chords, parts and steps, and at last log records. A
/// message may carry the id that the fence settles: that is a retry.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The reservation under which this is written. Without one the write is unconditional: a publish.
    pub fence: Option<Fence>,
    /// Messages to send: the body of a fired chord, the next step of a chain, the next attempt.
    pub publish: Vec<Routed>,
    /// What goes to the backend's half.
    pub record: Record,
}

impl Transaction {
    /// A transaction that only publishes.
    #[must_use]
    pub fn publish(messages: Vec<Routed>) -> Self {
        Self { publish: messages, ..Self::default() }
    }

    /// A transaction under the reservation `tag`.
    #[must_use]
    pub fn fenced(tag: DeliveryTag, then: Then) -> Self {
        Self { fence: Some(Fence { tag, then }), ..Self::default() }
    }
}

/// The condition that a reservation is still held, and what becomes of it.
#[derive(Debug, Clone)]
pub struct Fence {
    /// The reservation.
    pub tag: DeliveryTag,
    /// What becomes of the message.
    pub then: Then,
}

/// What becomes of a reserved message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// It stays reserved: this is a write in the midst of a run.
    Keep,
    /// It stays reserved, and from now on it has begun under early acknowledgement: should its worker die, the next
    /// delivery says so ([`Delivery::begun`](crate::broker::Delivery::begun)).
    Begin,
    /// It is done with.
    Ack,
    /// It goes back to its queue, ahead of what was published after it.
    Requeue {
        /// Not before this time; `None`: at once.
        due: Option<Timestamp>,
        /// Whether this delivery counts towards the poison cap. A hand-back that is not the task's fault does not.
        counted: bool,
    },
    /// It joins the dead letters, bytes and all.
    Bury {
        /// Why, for the operator.
        reason: String,
    },
}

/// What became of one [`Transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is written.
    Committed {
        /// Chords that a part of this transaction completed. Whoever is told should fire them soon; should it die
        /// first, [`Backend::ready_chords`] still lists them.
        ready: Vec<GroupId>,
        /// Messages not sent, since their task waits or runs already, or was marked `unique` and is known.
        duplicates: Vec<TaskId>,
    },
    /// Nothing is written: the reservation is no longer held.
    Lost,
    /// Nothing is written: the chord is not complete, or was fired already.
    NotReady,
}

impl Outcome {
    /// Whether the transaction was written.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }
}
