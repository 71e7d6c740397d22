//! Forgetting what is old, a slice at a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rows::{self, column_of};
use super::step::Step;
use super::writer::Durability;
use super::{SqliteStore, sql};
use crate::clock::Timestamp;
use crate::state::State;
use crate::store::Result;

/// Rows looked at in one call, for each that it may forget.
const LOOKED_AT_PER_FORGOTTEN: usize = 20;

/// At least so many are looked at, so that a small limit does not take days to get through a large file.
const LOOKED_AT_MIN: usize = 20_000;

/// Forgotten in one commit.
const FORGOTTEN_PER_COMMIT: usize = 500;

/// A result that is not final, of a task whose message is not here, is kept this much longer: its task may run for long,
/// but one that never reports again must not stay for ever.
const UNFINISHED_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl SqliteStore {
    /// One call of [`Backend::sweep`](crate::backend::Backend::sweep). Results are looked at in the order of their
    /// tasks, from where the last call stopped, and around once: the time of finishing has no index, which every settle
    /// would pay for.
    pub(super) async fn sweep_once(&self, done_before: Timestamp, limit: usize) -> Result<u64> {
        let before = column_of(done_before);
        self.write("sweep", Durability::Relaxed, 1, move |step| {
            step.expire_control()?;
            step.sweep_chords(before, rows::limit(limit))
        })
        .await?;
        let looked_at_max = limit.saturating_mul(LOOKED_AT_PER_FORGOTTEN).max(LOOKED_AT_MIN);
        let start = self.swept.load(Ordering::Relaxed);
        let (mut from, mut looked_at, mut wrapped) = (start, 0, false);
        let mut forgotten = 0;
        while looked_at < looked_at_max && forgotten < limit as u64 {
            let slice = FORGOTTEN_PER_COMMIT.min(looked_at_max - looked_at);
            let (seqs, found, last) = self.old_results(from, slice, before).await?;
            looked_at += found;
            if !seqs.is_empty() {
                let room = usize::try_from(limit as u64 - forgotten).unwrap_or(usize::MAX);
                let run = move |step: &mut Step<'_>| step.sweep_tasks(&seqs, before, room);
                forgotten += self.write("sweep", Durability::Relaxed, slice, run).await?;
            }
            from = last;
            if found < slice {
                if wrapped || start == 0 {
                    from = 0;
                    break;
                }
                (from, wrapped) = (0, true);
            } else if wrapped && from >= start {
                break;
            }
        }
        self.swept.store(from, Ordering::Relaxed);
        Ok(forgotten)
    }

    /// A slice of results: those old enough to be looked at closely, how many there were in all, and the last.
    async fn old_results(&self, after: i64, count: usize, before: i64) -> Result<(Vec<i64>, usize, i64)> {
        self.read("sweep", move |connection| {
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let found: Vec<(i64, i64)> =
                rows::all(connection, sql::RESULT_SLICE, (after, rows::limit(count)), read)?;
            let last = found.last().map_or(after, |(seq, _)| *seq);
            let old = found.iter().filter(|(_, at)| *at < before).map(|(seq, _)| *seq).collect();
            Ok((old, found.len(), last))
        })
        .await
    }
}

impl Step<'_> {
    /// Forgets those of `seqs` that are finished, old and not live, at most `room`.
    fn sweep_tasks(&mut self, seqs: &[i64], before: i64, room: usize) -> Result<u64, super::Fault> {
        let unfinished_before =
            before.saturating_sub(i64::try_from(UNFINISHED_KEPT.as_nanos()).unwrap_or(i64::MAX));
        let mut forgotten = 0;
        for &seq in seqs {
            if forgotten == room as u64 {
                break;
            }
            let Some((live, has_message)) = self.live(seq)? else { continue };
            // Looked at again within the commit: it may have been sent or written anew since the slice was read.
            let result: Option<(String, i64)> =
                rows::first(self.connection, sql::RESULT_AGE, [seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let Some((state, at)) = result else { continue };
            let finished = has_message || State::from(state).is_ready();
            if !live && at < if finished { before } else { unfinished_before } {
                self.erase(seq, live)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Forgets chords and groups in which nothing has moved since `before`.
    fn sweep_chords(&mut self, before: i64, limit: i64) -> Result<(), super::Fault> {
        for chord in rows::all(self.connection, sql::CHORDS_OLD, [before, limit], |row| row.get(0))? {
            self.drop_chord(chord)?;
        }
        rows::execute(self.connection, sql::GROUPS_DROP_OLD, [before, limit])?;
        Ok(())
    }
}
