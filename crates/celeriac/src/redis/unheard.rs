//! Reservations whose answers were lost with a connection.
//!
//! What they took off the lists stands in `unacked`, under leases that nobody will renew. The leases bring it back in time;
//! but who knows that a call of his may have been carried out need not wait for that: he hands back what it took before he
//! reserves more.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::pack::Pack;
use super::transact::lease_end;
use super::{RedisStore, script, value};
use crate::broker::Reserve;
use crate::clock::Timestamp;
use crate::store::Result;

/// So many calls are remembered; what older ones took waits for its leases.
const UNHEARD_MAX: usize = 64;

/// A call whose answer was lost: who called, when, and when its leases end.
type Call = [String; 3];

/// The calls whose answers were lost.
#[derive(Debug, Default)]
pub(super) struct Unheard(Mutex<Vec<Call>>);

impl Unheard {
    /// Remembers a call made at `now`.
    pub(super) fn note(&self, request: &Reserve, now: Timestamp) {
        let made = value::micros(now).to_string();
        self.add([request.worker.as_str().to_owned(), made, lease_end(now, request.lease)]);
    }

    fn add(&self, call: Call) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() < UNHEARD_MAX && !calls.contains(&call) {
            calls.push(call);
        }
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A call that reserves, among those under way.
pub(super) struct UnderWay<'a> {
    all: &'a AtomicU32,
    before: u32,
}

impl<'a> UnderWay<'a> {
    pub(super) fn enter(all: &'a AtomicU32) -> Self {
        Self { before: all.fetch_add(1, Ordering::Relaxed), all }
    }

    /// With another end of its leases than those that are under way have, which may have been made in the very same
    /// microsecond: should its answer be lost, only what it took is to be handed back. Each has two ends.
    pub(super) fn apart<'r>(&self, request: &'r Reserve) -> Cow<'r, Reserve> {
        match self.before {
            0 => Cow::Borrowed(request),
            before => {
                let lease = request.lease.saturating_sub(Duration::from_micros(2 * u64::from(before)));
                Cow::Owned(Reserve { lease, ..request.clone() })
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RedisStore {
    /// Hands back what the calls took whose answers were lost.
    pub(super) async fn hand_back_unheard(&self) -> Result<()> {
        let calls = self.unheard.take();
        if calls.is_empty() {
            return Ok(());
        }
        let mut order = Pack::array(calls.len() * 3);
        for text in calls.iter().flatten() {
            order.text(text);
        }
        match self.order(&script::UNHEARD, self.now(), order).await {
            Ok(answer) => {
                let messages = value::count(&answer);
                if messages > 0 {
                    tracing::info!(messages, "handed back what was reserved by a call whose answer was lost");
                }
                Ok(())
            }
            Err(error) => {
                calls.into_iter().for_each(|call| self.unheard.add(call));
                Err(error)
            }
        }
    }
}
