//! The slots of a worker: how many tasks run at once, which remote control may change while they do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// A worker grows to so many slots at most.
pub(crate) const SLOTS_MAX: usize = 100_000;

/// The slots.
///
/// Those that are to go while their tasks run are owed, and paid by the next who takes slots: as there is no other way to
/// take any, no more tasks start than there are to be slots.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    size: Mutex<Size>,
}

#[derive(Debug)]
struct Size {
    /// How many there are to be.
    wanted: usize,
    /// How many more, for tasks that are held before there is room for them to run: see `pace`.
    ahead: usize,
    /// How many there are beyond that.
    owed: usize,
}

impl Size {
    /// Adds slots; says how many are to be made.
    fn add(&mut self, by: usize) -> usize {
        let kept = by.min(self.owed);
        self.owed -= kept;
        by - kept
    }
}

impl Slots {
    pub(crate) fn new(size: usize) -> Self {
        let wanted = size.min(SLOTS_MAX);
        Self { free: Arc::new(Semaphore::new(wanted)), size: Mutex::new(Size { wanted, ahead: 0, owed: 0 }) }
    }

    /// How many there are to be.
    pub(crate) fn size(&self) -> usize {
        self.lock().wanted
    }

    /// Adds slots, at most up to [`SLOTS_MAX`]; returns how many there are then.
    pub(crate) fn grow(&self, by: usize) -> usize {
        let mut size = self.lock();
        let by = by.min(SLOTS_MAX - size.wanted);
        size.wanted += by;
        self.free.add_permits(size.add(by));
        size.wanted
    }

    /// Lets as many tasks be held beyond those that there are slots for as `tasks` says, given how many slots there are. It
    /// is asked under the lock, so that of two who change their minds the last one's word stands.
    pub(crate) fn look_ahead(&self, tasks: impl FnOnce(usize) -> usize) {
        let mut size = self.lock();
        let tasks = tasks(size.wanted);
        let before = std::mem::replace(&mut size.ahead, tasks);
        if tasks > before {
            self.free.add_permits(size.add(tasks - before));
        } else {
            size.owed += before - tasks - self.free.forget_permits(before - tasks);
        }
    }

    /// Half of the tasks that may be held: where no more are reserved at once, the others are at work meanwhile.
    pub(crate) fn half(&self) -> usize {
        let size = self.lock();
        (size.wanted + size.ahead).div_ceil(2)
    }

    /// Whether more tasks may be held now than there are slots for: ahead, or since there are fewer slots than there were.
    pub(crate) fn may_be_exceeded(&self) -> bool {
        let size = self.lock();
        size.ahead > 0 || size.owed > 0
    }

    /// Takes slots away, those in use as they come free, and leaves at least one; returns how many there are to be.
    pub(crate) fn shrink(&self, by: usize) -> usize {
        let mut size = self.lock();
        let by = by.min(size.wanted - 1);
        size.wanted -= by;
        size.owed += by - self.free.forget_permits(by);
        size.wanted
    }

    /// Waits until as many slots are free as are worth a call, one unless tasks are held ahead, and takes all that are
    /// free, at most `most`; `None` when `stop` ends the wait. Who asks first is served first.
    pub(crate) async fn take(&self, most: usize, stop: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        loop {
            // Half of what is held ahead is fetched while the other half runs.
            let least = (self.lock().ahead / 2).clamp(1, most);
            let permits = u32::try_from(least).unwrap_or(1);
            let mut taken = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                permit = Arc::clone(&self.free).acquire_many_owned(permits) => permit.ok()?,
            };
            let more = self.free.available_permits().min(most.saturating_sub(least));
            if more > 0
                && let Ok(rest) =
                    Arc::clone(&self.free).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
            {
                taken.merge(rest);
            }
            let mut size = self.lock();
            let paid = size.owed.min(taken.num_permits());
            if let Some(paid) = taken.split(paid) {
                size.owed -= paid.num_permits();
                paid.forget();
            }
            if taken.num_permits() > 0 {
                return Some(taken);
            }
        }
    }

    /// Takes all slots that are free, at most `most`; `None` where those are fewer than `least`.
    pub(crate) fn take_at_once(&self, least: usize, most: usize) -> Option<OwnedSemaphorePermit> {
        let size = self.lock();
        let free = self.free.available_permits().min(most);
        if free < least || size.owed > 0 {
            return None;
        }
        Arc::clone(&self.free).try_acquire_many_owned(u32::try_from(free).unwrap_or(u32::MAX)).ok()
    }

    /// Waits in line for one slot, for a task that was reserved before and had to wait.
    pub(crate) async fn one(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            // Unconstrained: a poll that yields for the sake of others would not have joined the line.
            let permit = tokio::task::unconstrained(Arc::clone(&self.free).acquire_owned()).await.ok()?;
            let mut size = self.lock();
            if size.owed == 0 {
                return Some(permit);
            }
            size.owed -= 1;
            permit.forget();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(slots: &Slots) -> usize {
        let mut taken = slots.take(100, &CancellationToken::new()).await.expect("nothing stops it");
        let all = taken.num_permits();
        taken.split(all).expect("as many as there are").forget();
        all
    }

    #[tokio::test]
    async fn free_slots_come_and_go_at_once() {
        let slots = Slots::new(2);
        assert_eq!(slots.grow(3), 5);
        assert_eq!(slots.shrink(1), 4);
        assert_eq!(take(&slots).await, 4);
    }

    #[tokio::test]
    async fn slots_in_use_go_when_they_come_free() {
        let slots = Slots::new(4);
        let stopping = CancellationToken::new();
        let mut used = slots.take(100, &stopping).await.unwrap();
        let second = used.split(1);
        assert_eq!(slots.shrink(3), 1);
        drop(second);
        drop(used.split(1));
        let waits = slots.take(100, &stopping);
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending(), "two came free, and are paid");
        drop(used.split(1));
        assert!(futures_util::poll!(&mut waits).is_pending(), "so is the third");
        drop(used);
        assert_eq!(waits.await.unwrap().num_permits(), 1);
    }

    #[tokio::test]
    async fn to_grow_is_to_owe_less() {
        let slots = Slots::new(3);
        let stopping = CancellationToken::new();
        let used = slots.take(100, &stopping).await.unwrap();
        assert_eq!(slots.shrink(100), 1, "one is left");
        assert_eq!(slots.grow(1), 2);
        assert_eq!(slots.grow(usize::MAX), SLOTS_MAX);
        assert_eq!(slots.shrink(SLOTS_MAX - 2), 2);
        drop(used);
        assert_eq!(take(&slots).await, 2);
    }

    #[tokio::test]
    async fn what_is_held_ahead_is_fetched_in_halves() {
        let slots = Slots::new(1);
        let stopping = CancellationToken::new();
        assert!(!slots.may_be_exceeded());
        slots.look_ahead(|slots| 4 * slots);
        assert!(slots.size() == 1 && slots.may_be_exceeded());
        let mut used = slots.take(100, &stopping).await.unwrap();
        assert_eq!(used.num_permits(), 5);
        let waits = slots.take(100, &stopping);
        tokio::pin!(waits);
        drop(used.split(1));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(used.split(1));
        drop(waits.await.unwrap());
        slots.look_ahead(|_| 0);
        assert!(slots.may_be_exceeded(), "three are in use");
        drop(used);
        assert_eq!(take(&slots).await, 1);
        assert!(!slots.may_be_exceeded(), "those are paid");
    }

    #[tokio::test]
    async fn what_is_free_at_once_is_taken_where_it_is_enough() {
        let slots = Slots::new(8);
        assert!(slots.take_at_once(9, 100).is_none());
        let some = slots.take_at_once(3, 5).unwrap();
        assert_eq!(some.num_permits(), 5);
        assert!(slots.take_at_once(4, 100).is_none(), "three are left");
        assert_eq!(slots.take_at_once(3, 100).unwrap().num_permits(), 3);
        // What is owed is paid by those who wait for slots.
        assert_eq!(slots.shrink(6), 2);
        drop(some);
        assert!(slots.take_at_once(1, 100).is_none(), "five are free, and three of them owed");
        assert_eq!(take(&slots).await, 2);
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_stop() {
        let slots = Slots::new(1);
        let stopping = CancellationToken::new();
        let _used = slots.take(1, &stopping).await.unwrap();
        stopping.cancel();
        assert!(slots.take(1, &stopping).await.is_none());
    }
}
