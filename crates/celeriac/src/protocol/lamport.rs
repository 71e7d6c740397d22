//! The logical clock that orders events of many machines.

use std::sync::atomic::{AtomicU64, Ordering};

/// A Lamport clock, as kombu's: events of one node come in the order of its counter, and whoever hears of another counter
/// goes past it. It says nothing of the time of day.
#[derive(Debug, Default)]
pub struct LamportClock(AtomicU64);

/// No clock gets here by counting. One that says so is broken, and must not take everybody else's to the end of the
/// numbers.
const COUNT_MAX: u64 = 1 << 53;

impl LamportClock {
    /// A clock at 0.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Where it stands.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts something that happened here, and tells its number.
    pub fn forward(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts something that happened elsewhere at `other`, and tells where the clock stands then: past both.
    pub fn adjust(&self, other: u64) -> u64 {
        let other = if other < COUNT_MAX { other } else { 0 };
        let past = |own: u64| own.max(other) + 1;
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |own| Some(past(own)));
        past(before.unwrap_or_else(|own| own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_past_what_it_hears() {
        let clock = LamportClock::new();
        assert_eq!((clock.forward(), clock.forward()), (1, 2));
        assert_eq!(clock.adjust(10), 11);
        assert_eq!(clock.adjust(3), 12, "an own event, or an old one, counts as one");
        assert_eq!(clock.adjust(u64::MAX), 13, "nobody has counted that far");
        assert_eq!((clock.forward(), clock.value()), (14, 14));
    }
}
