//! Reservations: the fence, and everything that may happen to a held message.

use rusqlite::Connection;

use super::attempts::Run;
use super::fault::Fault;
use super::messages::{Settled, Spot, find, spot_at};
use super::rows::{self, Tag, column_of};
use super::sql;
use super::step::Step;
use crate::broker::{Delivery, Interrupt, Revocation};
use crate::catalog::AttemptOutcome;
use crate::clock::Timestamp;
use crate::id::{DeliveryTag, TaskId, WorkerName};
use crate::signal::ProcessSignal;
use crate::state::Phase;
use crate::store::Then;

/// What passing the fence did.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// The task whose message is done with; `None` while it is held, waits again or lies dead.
    pub(super) settled: Option<Settled>,
    /// The run that is over for good; what was only taken to be revoked was none.
    pub(super) run: Option<Run>,
}

/// A message as it was held.
struct Held {
    spot: Spot,
    run: Option<Run>,
}

/// Leases returned to their queues in one call; a caller who gets as many asks again.
const RESTORED_MAX: i64 = 10_000;

/// Whether any lease has passed; looking takes no lock.
pub(super) fn any_expired(connection: &Connection, now: i64) -> Result<bool, Fault> {
    Ok(rows::first(connection, sql::LEASE_ANY_EXPIRED, [now], |row| row.get(0))? == Some(true))
}

/// How a reservation is marked as revoked: 1, 2 where it is to be stopped, and past that the number of the signal.
pub(super) fn mark(terminate: bool, signal: Option<ProcessSignal>) -> i64 {
    if terminate { 2 + signal.map_or(0, |signal| i64::from(signal.number())) } else { 1 }
}

fn signal_of(mark: i64) -> Option<ProcessSignal> {
    u8::try_from(mark - 2).ok().and_then(ProcessSignal::from_number)
}

/// The revoked reservations of a worker.
pub(super) fn interrupts(connection: &Connection, worker: &WorkerName) -> Result<Vec<Interrupt>, Fault> {
    rows::all(connection, sql::LEASE_REVOKED, [worker.as_str()], |row| {
        let tag = Tag { seq: row.get(0)?, token: row.get(1)? };
        let mark: i64 = row.get(2)?;
        Ok(Interrupt { tag: tag.into(), terminate: mark > 1, signal: signal_of(mark) })
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
                // Most ends send nothing and come from where the reservation was made: they need not ask what it was,
                // which costs more than all the rest of it.
                if !sends && let Some((worker, since)) = self.memory.reservation(token) {
                    let held = rows::execute(self.connection, sql::LEASE_END, (seq, token))? == 1;
                    let settled = Some(Settled { seq, revoked: 0 });
                    return Ok(held.then_some(Passed { settled, run: Some(Run { seq, worker, since }) }));
                }
                let held = self.take_held(Tag { seq, token })?;
                return Ok(held.map(|Held { spot, run }| {
                    let settled = Some(Settled { seq, revoked: spot.revoked });
                    Passed { settled, run }
                }));
            }
            Then::Requeue { due, counted } => self.requeue(Tag { seq, token }, *due, *counted)?,
            Then::Bury { reason } => {
                let held = self.take_held(Tag { seq, token })?;
                let Some(Held { spot, run }) = held else { return Ok(None) };
                self.bury(&spot, reason, run.as_ref())?;
                return Ok(Some(Passed { settled: None, run }));
            }
        };
        Ok(held.then(Passed::default))
    }

    /// Gives back what nobody received: as if it had never been reserved.
    pub(super) fn give_back(&mut self, tag: &DeliveryTag) -> Result<(), Fault> {
        let Some(tag) = Tag::parse(tag) else { return Ok(()) };
        if let Some(Held { spot, .. }) = self.take_held(tag)? {
            self.put_back(spot, None, false)?;
        }
        Ok(())
    }

    fn requeue(&mut self, tag: Tag, due: Option<Timestamp>, counted: bool) -> Result<bool, Fault> {
        let Some(Held { spot, run }) = self.take_held(tag)? else { return Ok(false) };
        // What is put off without being counted was not run.
        if let Some(run) = run.filter(|_| counted || due.is_none()) {
            self.note_attempt(&run, self.now, AttemptOutcome::HandedBack, None)?;
        }
        self.put_back(spot, due, counted)?;
        Ok(true)
    }

    fn put_back(&mut self, mut spot: Spot, due: Option<Timestamp>, counted: bool) -> Result<(), Fault> {
        if !counted {
            spot.deliveries = (spot.deliveries - 1).max(0);
        }
        self.put(&spot, due.map(column_of))
    }

    fn bury(&mut self, spot: &Spot, reason: &str, run: Option<&Run>) -> Result<(), Fault> {
        // Places in line are numbers that only grow, which is all that paging needs.
        let number = self.next_position()?;
        let values = (number, spot.seq, reason, self.now, spot.deliveries, spot.revoked);
        rows::execute(self.connection, sql::DEAD_PUT, values)?;
        // Who ended it stands with the result, and a result may not come.
        self.note_settled(spot.seq, run)
    }

    /// Ends a reservation and says where its message came from. Who hands a message back has not lost it, so that its own
    /// mark of having begun goes; that of another who was lost stays, and so does a revocation.
    fn take_held(&self, tag: Tag) -> Result<Option<Held>, Fault> {
        rows::first(self.connection, sql::LEASE_TAKE, (tag.seq, tag.token), |row| {
            let spot = Spot {
                seq: tag.seq,
                queue: row.get(0)?,
                priority: row.get(1)?,
                position: row.get(2)?,
                deliveries: row.get(3)?,
                begun: row.get(4)?,
                revoked: row.get(5)?,
            };
            Ok(Held { spot, run: Run::at(row, tag.seq, 6)? })
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
        let expired = rows::all(self.connection, sql::LEASE_EXPIRED, [self.now, RESTORED_MAX], |row| {
            let spot = spot_at(row, 0)?;
            Ok((spot, Run::at(row, spot.seq, 7)?, row.get(9)?))
        })?;
        for (spot, run, expires) in &expired {
            rows::execute(self.connection, sql::LEASE_DROP, [spot.seq])?;
            if let Some(run) = run {
                self.note_attempt(run, *expires, AttemptOutcome::Lost, None)?;
            }
            self.put(spot, None)?;
        }
        Ok(expired.len() as u64)
    }

    /// Revokes one task, by a [`mark`]. What waits is leased to `worker` until `expires`.
    pub(super) fn revoke(
        &mut self,
        id: &TaskId,
        mark: i64,
        worker: &WorkerName,
        expires: i64,
    ) -> Result<Revocation, Fault> {
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
