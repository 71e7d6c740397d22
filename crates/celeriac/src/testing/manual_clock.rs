//! A clock that tests move by hand.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, SharedClock, Timestamp, after};

/// A clock that stands still until it is moved. Clones share their time.
///
/// It wakes nobody: who sleeps until a moment of this clock looks again when something else wakes him. Move it first,
/// then ask.
#[derive(Debug, Clone)]
pub struct ManualClock {
    time: Arc<Mutex<Time>>,
}

#[derive(Debug)]
struct Time {
    set: Timestamp,
    /// When it was let run; none while it stands.
    runs: Option<Instant>,
}

impl Time {
    fn now(&self) -> Timestamp {
        self.runs.map_or(self.set, |since| after(self.set, since.elapsed()))
    }
}

impl ManualClock {
    /// A clock that stands at a fixed moment, the same for every test.
    #[must_use]
    pub fn new() -> Self {
        // 2026-01-01T00:00:00Z: a whole second, so that stores of any precision keep it as it is.
        Self::at(Timestamp::constant(1_767_225_600, 0))
    }

    /// A clock that stands at `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { time: Arc::new(Mutex::new(Time { set: now, runs: None })) }
    }

    /// The clock, as stores take it.
    #[must_use]
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.change(|time| time.set = after(time.set, by));
    }

    /// Moves it to `now`, which may lie in the past: machines' clocks are set back too.
    pub fn set(&self, now: Timestamp) {
        self.change(|time| {
            time.set = now;
            time.runs = time.runs.map(|_| Instant::now());
        });
    }

    /// Lets it run with real time, from where it stands.
    pub fn run(&self) {
        self.change(|time| {
            time.set = time.now();
            time.runs = Some(Instant::now());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Time)) {
        change(&mut self.time.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.time.lock().unwrap_or_else(PoisonError::into_inner).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stands_until_moved() {
        let clock = ManualClock::new();
        let (start, other) = (clock.now(), clock.shared());
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(5));
        assert_eq!(other.now(), after(start, Duration::from_secs(5)));
        clock.set(start);
        assert_eq!(other.now(), start);
        clock.advance(Duration::MAX);
        assert_eq!(other.now(), Timestamp::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn runs_when_let() {
        let clock = ManualClock::new();
        let start = clock.now();
        clock.run();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now(), after(start, Duration::from_secs(3)));
    }
}
