//! The newest records of one log, shared by all who follow it. Pure: no store, no waiting.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Event, portion};

/// A batch has at most so many records, so that one watcher does not keep a thread for long.
const BATCH_MAX: usize = 256;

/// A ring has at most so many records.
const RECORDS_MAX: usize = 4_096;

/// What a ring has for a watcher.
#[derive(Debug)]
pub(super) enum Taken {
    /// Records after its position, as many as it is handed at once.
    Batch(Vec<Arc<Event>>),
    /// Its next record is no longer here: it is in the store.
    Behind,
    /// It has everything.
    Nothing,
    /// It has everything, and nothing will follow.
    Ended,
    /// Nobody fills the ring any more; the store knows why.
    Abandoned,
}

/// A run of records without gaps that ends with the newest known.
#[derive(Debug)]
pub(super) struct Ring {
    /// The position before that of the first record here.
    start: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    closed: Option<Taken>,
}

impl Ring {
    /// An empty one, whose first record will be the one after `start`.
    pub(super) fn new(start: u64) -> Self {
        Self { start, events: VecDeque::new(), bytes: 0, closed: None }
    }

    /// The newest position known.
    pub(super) fn last(&self) -> u64 {
        self.start + self.events.len() as u64
    }

    /// The newest record, if it is here.
    pub(super) fn newest(&self) -> Option<&Arc<Event>> {
        self.events.back()
    }

    /// Appends a record; one that does not follow the newest makes the ring begin with it. `bytes_max` bounds what is
    /// kept, the record itself included: who misses it here finds it in the store. An end is kept whatever its size, as
    /// it holds a result: each of those who wait for it would else read one of its own, all at the same time.
    pub(super) fn push(&mut self, event: Arc<Event>, bytes_max: usize) {
        if event.position() != self.last() + 1 {
            self.skip_to(event.position() - 1);
        }
        let keep = usize::from(event.is_end());
        self.bytes += event.bytes();
        self.events.push_back(event);
        self.give_up(bytes_max, keep);
    }

    /// Gives up the oldest records until the rest fits.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        self.give_up(bytes_max, 0);
    }

    /// Gives up the oldest records until the rest fits, but for the newest `keep`.
    fn give_up(&mut self, bytes_max: usize, keep: usize) {
        while (self.bytes > bytes_max || self.events.len() > RECORDS_MAX)
            && self.events.len() > keep
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.start += 1;
        }
        if self.events.is_empty() {
            self.events.shrink_to_fit();
        }
    }

    /// Goes on after `position`, with nothing kept: what is before was trimmed.
    pub(super) fn skip_to(&mut self, position: u64) {
        self.events.clear();
        self.bytes = 0;
        self.start = position;
    }

    /// Notes that nothing will follow.
    pub(super) fn end(&mut self) {
        self.closed = Some(Taken::Ended);
    }

    /// Notes that nobody fills the ring any more.
    pub(super) fn abandon(&mut self) {
        self.closed.get_or_insert(Taken::Abandoned);
    }

    /// Whether records may still come.
    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Whether a watcher at `position` needs nothing but the ring.
    pub(super) fn covers(&self, position: u64) -> bool {
        self.is_open() && position >= self.start
    }

    /// What there is after `position`.
    pub(super) fn take(&self, position: u64) -> Taken {
        if position >= self.last() {
            return match self.closed {
                None => Taken::Nothing,
                Some(Taken::Ended) => Taken::Ended,
                Some(_) => Taken::Abandoned,
            };
        }
        let Some(skipped) = position.checked_sub(self.start) else { return Taken::Behind };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let count = portion(self.events.iter().skip(skipped).take(BATCH_MAX));
        Taken::Batch(self.events.range(skipped..skipped + count).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::LogEntry;
    use crate::clock::Timestamp;
    use crate::event::HELD_BYTES_MAX;
    use crate::protocol::Json;

    fn event(position: u64, name: &str) -> Arc<Event> {
        let data = Json::string(&"x".repeat(100));
        Arc::new(Event::new(LogEntry { position, event: name.into(), data, at: Timestamp::UNIX_EPOCH }))
    }

    fn positions(taken: Taken) -> Vec<u64> {
        match taken {
            Taken::Batch(batch) => batch.iter().map(|event| event.position()).collect(),
            other => panic!("no batch: {other:?}"),
        }
    }

    #[test]
    fn a_watcher_takes_what_is_after_its_position() {
        let mut ring = Ring::new(4);
        assert!(matches!(ring.take(4), Taken::Nothing));
        assert!(matches!(ring.take(9), Taken::Nothing));
        (5..=7).for_each(|position| ring.push(event(position, "token"), usize::MAX));
        assert_eq!(positions(ring.take(4)), [5, 6, 7]);
        assert_eq!(positions(ring.take(6)), [7]);
        assert!(matches!(ring.take(3), Taken::Behind));
        assert!(matches!(ring.take(7), Taken::Nothing));
        ring.end();
        assert_eq!(positions(ring.take(6)), [7]);
        assert!(matches!(ring.take(7), Taken::Ended));
    }

    #[test]
    fn bytes_and_records_are_bounded() {
        let one = event(1, "token").bytes();
        let mut ring = Ring::new(0);
        (1..=10).for_each(|position| ring.push(event(position, "token"), 3 * one));
        assert_eq!(positions(ring.take(7)), [8, 9, 10]);
        assert!(matches!(ring.take(6), Taken::Behind));
        ring.push(event(11, "token"), one - 1);
        assert_eq!((ring.last(), ring.bytes), (11, 0), "one that is too large is not kept");
        assert!(matches!(ring.take(10), Taken::Behind));
        let mut ring = Ring::new(0);
        (1..=10_000).for_each(|position| ring.push(event(position, "token"), usize::MAX));
        assert_eq!(ring.events.len(), RECORDS_MAX);
        assert_eq!(positions(ring.take(10_000 - RECORDS_MAX as u64))[0], 10_001 - RECORDS_MAX as u64);
        assert!(matches!(ring.take(9_999 - RECORDS_MAX as u64), Taken::Behind));
    }

    /// Whoever is slow to pass a batch on keeps all of it from being freed.
    #[test]
    fn a_batch_is_bounded() {
        let sized = |position, bytes| {
            let data = Json::string(&"x".repeat(bytes));
            Arc::new(Event::new(LogEntry { position, event: "x".into(), data, at: Timestamp::UNIX_EPOCH }))
        };
        let of_size = |bytes| {
            let mut ring = Ring::new(0);
            (1..=300).for_each(|position| ring.push(sized(position, bytes), usize::MAX));
            positions(ring.take(0)).len()
        };
        assert_eq!(of_size(0), BATCH_MAX);
        assert_eq!(of_size(1_000), HELD_BYTES_MAX / sized(1, 1_000).bytes());
        assert_eq!(of_size(HELD_BYTES_MAX), 1, "one that is larger by itself goes alone");
    }

    #[test]
    fn an_end_is_kept_until_something_follows() {
        let one = event(1, "token").bytes();
        let mut ring = Ring::new(0);
        ring.push(event(1, "token"), 2 * one);
        ring.push(event(2, "end"), one / 2);
        assert_eq!((positions(ring.take(1)), ring.events.len()), (vec![2], 1));
        ring.push(event(3, "state"), one / 2);
        assert_eq!((ring.last(), ring.bytes), (3, 0));
        ring.push(event(4, "end"), one / 2);
        ring.shrink(one / 2);
        assert_eq!((ring.last(), ring.bytes), (4, 0), "it is not kept for ever");
    }

    #[test]
    fn a_batch_stops_at_the_end_of_a_life() {
        let mut ring = Ring::new(0);
        for (position, name) in [(1, "token"), (2, "end"), (3, "state"), (4, "end")] {
            ring.push(event(position, name), usize::MAX);
        }
        assert_eq!(positions(ring.take(0)), [1, 2]);
        assert_eq!(positions(ring.take(2)), [3, 4]);
    }

    #[test]
    fn a_gap_starts_the_ring_over() {
        let mut ring = Ring::new(0);
        ring.push(event(1, "token"), usize::MAX);
        ring.push(event(9, "token"), usize::MAX);
        assert!(matches!(ring.take(1), Taken::Behind));
        assert_eq!(positions(ring.take(8)), [9]);
        ring.abandon();
        assert!(matches!(ring.take(9), Taken::Abandoned));
        assert!(!ring.covers(9));
    }
}
