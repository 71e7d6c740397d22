//! How fast tasks of another runtime come and go, and how many are held ahead for it.
//!
//! Between two tasks a process of Python's would wait for the next one to be fetched, and where a task is done sooner than
//! it is fetched, that is most of the time. While all tasks are that short the worker therefore holds some more than there
//! are processes. None of them waits for long: what has not begun after [`PATIENCE`] goes back to its queue, and with it
//! all holding ahead is over until tasks have been short again for a while.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A task is short that takes no longer than this.
const SHORT: Duration = Duration::from_millis(5);
/// One that takes longer than this ends the holding ahead.
const LONG: Duration = Duration::from_millis(20);
/// So many in a row are short before any is held ahead.
const IN_A_ROW: u32 = 32;
/// So many are held ahead for each process, and in all.
const AHEAD_EACH: usize = 8;
const AHEAD_MAX: usize = 256;
/// How long a task that is held ahead may wait. With [`SHORT`] times [`AHEAD_EACH`] it has its turn sooner.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// Tells short tasks from others.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// How many in a row were short, up to [`IN_A_ROW`].
    short: AtomicU32,
}

impl Pace {
    /// Whether tasks are held ahead.
    pub(crate) fn holds_ahead(&self) -> bool {
        self.short.load(Ordering::Relaxed) >= IN_A_ROW
    }

    /// Notes how long a task took; says whether holding ahead begins or ends by it.
    pub(crate) fn note(&self, took: Duration) -> bool {
        if took > LONG {
            return self.end();
        }
        if took > SHORT || self.holds_ahead() {
            return false;
        }
        self.short.fetch_add(1, Ordering::Relaxed) + 1 == IN_A_ROW
    }

    /// Ends the holding ahead; says whether there was any.
    pub(crate) fn end(&self) -> bool {
        self.short.swap(0, Ordering::Relaxed) >= IN_A_ROW
    }

    /// How many are held ahead for `slots` processes.
    pub(crate) fn ahead(&self, slots: usize) -> usize {
        if self.holds_ahead() { slots.saturating_mul(AHEAD_EACH).min(AHEAD_MAX) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Duration = Duration::ZERO;

    #[test]
    fn only_many_short_ones_in_a_row_begin_it_and_one_long_one_ends_it() {
        let pace = Pace::default();
        for _ in 1..IN_A_ROW {
            assert!(!pace.note(NOTHING));
        }
        assert!(!pace.note(LONG * 2));
        for _ in 1..IN_A_ROW {
            assert!(!pace.note(NOTHING));
        }
        assert!(!pace.note(SHORT * 2), "neither short nor long");
        assert!(!pace.holds_ahead());
        assert_eq!(pace.ahead(1), 0);
        assert!(pace.note(NOTHING));
        assert!(pace.holds_ahead());
        assert_eq!((pace.ahead(1), pace.ahead(100_000)), (AHEAD_EACH, AHEAD_MAX));
        assert!(!pace.note(NOTHING) && !pace.note(SHORT * 2));
        assert!(pace.note(LONG * 2));
        assert!(!pace.holds_ahead() && !pace.end());
    }

    #[test]
    fn who_is_held_ahead_has_its_turn_in_time() {
        assert!(SHORT * u32::try_from(AHEAD_EACH).unwrap() < PATIENCE);
    }
}
