//! Reservations: the fence, and everything that may happen to a held message.

use rusqlite::Connection;

use super::fault::Fault;
use super::messages::{Settled, Spot, find, spot_at};
use super::rows::{self, Tag, column_of};
use super::sql;
use super::step::Step;
use crate::broker::{Delivery, Interrupt, Revocation};
use crate::clock::Timestamp;
use crate::id::{DeliveryTag, TaskId, WorkerName};
use crate::state::Phase;
use crate::store::Then;

/// What passing the fence did to the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// It is still held, or waits again, or lies dead.
    Lives,
    /// It is done with.
    Settled(Settled),
}

/// Leases returned to their queues in one call; a caller who gets as many asks again.
const RESTORED_MAX: i64 = 10_000;

/// Whether any lease has passed; looking takes no lock.
pub(super) fn any_expired(connection: &Connection, now: i64) -> Result<bool, Fault> {
    Ok(rows::first(connection, sql::LEASE_ANY_EXPIRED, [now], |row| row.get(0))? == Some(true))
}

/// The revoked reservations of a worker.
pub(super) fn interrupts(connection: &Connection, worker: &WorkerName) -> Result<Vec<Interrupt>, Fault> {
    rows::all(connection, sql::LEASE_REVOKED, [worker.as_str()], |row| {
        let tag = Tag { seq: row.get(0)?, token: row.get(1)? };
        Ok(Interrupt { tag: tag.into(), terminate: row.get::<_, i64>(2)? > 1 })
    })
}

impl Step<'_> {
    /// Whether a reservation is held.
    pub(super) fn holds(&self, tag: &DeliveryTag) -> Result<bool, Fault> {
        let Some(tag) = Tag::parse(tag) else { return Ok(false) };
        Ok(rows::first(self.connection, sql::LEASE_HELD, (tag.seq, tag.token), |_| Ok(()))?.is_some())
    }

    /// Does to a held message what `then` says; `None` and nothing written when it is not held any more. `sends` says
    /// whether messages follow, which may be a retry.
    pub(super) fn pass_fence(
        &mut self,
        tag: &DeliveryTag,
        then: &Then,
        sends: bool,
    ) -> Result<Option<Passed>, Fault> {
        let Some(Tag { seq, token }) = Tag::parse(tag) else { return Ok(None) };
        let held = match then {
            Then::Keep => self.holds(tag)?,
            Then::Begin => rows::execute(self.connection, sql::LEASE_BEGIN, (seq, token))? == 1,
            Then::Ack => {
                // Most ends send nothing, and need not ask what the reservation was.
                let settled = if sends {
                    let taken = self.take_held(Tag { seq, token })?;
                    taken.map(|spot| Settled { seq, revoked: spot.revoked })
                } else {
                    let held = rows::execute(self.connection, sql::LEASE_END, (seq, token))? == 1;
                    held.then_some(Settled { seq, revoked: 0 })
                };
                return Ok(settled.map(Passed::Settled));
            }
            Then::Requeue { due, counted } => self.requeue(Tag { seq, token }, *due, *counted)?,
            Then::Bury { reason } => self.bury(Tag { seq, token }, reason)?,
        };
        Ok(held.then_some(Passed::Lives))
    }

    fn requeue(&mut self, tag: Tag, due: Option<Timestamp>, counted: bool) -> Result<bool, Fault> {
        let Some(mut spot) = self.take_held(tag)? else { return Ok(false) };
        if !counted {
            spot.deliveries = (spot.deliveries - 1).max(0);
        }
        self.put(&spot, due.map(column_of))?;
        Ok(true)
    }

    fn bury(&mut self, tag: Tag, reason: &str) -> Result<bool, Fault> {
        let Some(spot) = self.take_held(tag)? else { return Ok(false) };
        // Places in line are numbers that only grow, which is all that paging needs.
        let number = self.next_position()?;
        let values = (number, spot.seq, reason, self.now, spot.deliveries, spot.revoked);
        rows::execute(self.connection, sql::DEAD_PUT, values)?;
        Ok(true)
    }

    /// Ends a reservation and says where its message came from. Who hands a message back has not lost it, so that its own
    /// mark of having begun goes; that of another who was lost stays, and so does a revocation.
    fn take_held(&self, tag: Tag) -> Result<Option<Spot>, Fault> {
        rows::first(self.connection, sql::LEASE_TAKE, (tag.seq, tag.token), |row| {
            Ok(Spot {
                seq: tag.seq,
                queue: row.get(0)?,
                priority: row.get(1)?,
                position: row.get(2)?,
                deliveries: row.get(3)?,
                begun: row.get(4)?,
                revoked: row.get(5)?,
            })
        })
    }

    /// Starts leases over; returns the tags that are not held.
    pub(super) fn extend(&mut self, tags: &[DeliveryTag], expires: i64) -> Result<Vec<DeliveryTag>, Fault> {
        let mut lost = Vec::new();
        for tag in tags {
            let held = match Tag::parse(tag) {
                Some(Tag { seq, token }) => {
                    rows::execute(self.connection, sql::LEASE_EXTEND, (seq, token, expires))? == 1
                }
                None => false,
            };
            if !held {
                lost.push(tag.clone());
            }
        }
        Ok(lost)
    }

    /// Returns to their lines the messages whose lease has passed.
    pub(super) fn restore(&mut self) -> Result<u64, Fault> {
        let expired =
            rows::all(self.connection, sql::LEASE_EXPIRED, [self.now, RESTORED_MAX], |row| spot_at(row, 0))?;
        for spot in &expired {
            rows::execute(self.connection, sql::LEASE_DROP, [spot.seq])?;
            self.put(spot, None)?;
        }
        Ok(expired.len() as u64)
    }

    /// Revokes one task. What waits is leased to `worker` until `expires`.
    pub(super) fn revoke(
        &mut self,
        id: &TaskId,
        terminate: bool,
        worker: &WorkerName,
        expires: i64,
    ) -> Result<Revocation, Fault> {
        let mark = if terminate { 2 } else { 1 };
        let Some(known) = find(self.connection, id, self.now)? else { return Ok(Revocation::Unknown) };
        if !known.has_message && !known.place.state.is_ready() {
            // Only a part of its results went by here; its message is in another broker, if anywhere.
            return Ok(Revocation::Unknown);
        }
        match known.place.phase {
            phase @ (Phase::Queued | Phase::Delayed) => {
                let mut spot = known.spot;
                self.take_waiting(&spot, known.in_delayed)?;
                spot.revoked = spot.revoked.max(mark);
                let delivery = self.lease(&spot, worker, expires, &known.place.queue)?;
                Ok(Revocation::Taken { phase, delivery: Box::new(delivery) })
            }
            Phase::Reserved => {
                rows::execute(self.connection, sql::LEASE_REVOKE, (known.seq, mark))?;
                self.events.revoked = true;
                let worker = known.place.worker.unwrap_or_else(|| WorkerName::from(""));
                Ok(Revocation::Held { worker })
            }
            Phase::Settled | Phase::Dead => Ok(Revocation::Finished),
        }
    }

    fn lease(
        &mut self,
        spot: &Spot,
        worker: &WorkerName,
        expires: i64,
        queue: &crate::id::QueueName,
    ) -> Result<Delivery, Fault> {
        let token = self.next_token()?;
        let Spot { seq, queue: line, priority, position, deliveries, begun, revoked } = *spot;
        let values =
            (seq, token, worker.as_str(), expires, line, priority, position, deliveries + 1, begun, revoked);
        rows::execute(self.connection, sql::LEASE_PUT, values)?;
        self.delivery(spot, token, queue)
    }
}
