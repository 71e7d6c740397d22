//! Chords and saved groups.

use rusqlite::Connection;

use super::fault::Fault;
use super::rows;
use super::sql;
use super::step::Step;
use crate::backend::{ChordPart, NewChord, ReadyChord};
use crate::id::{GroupId, TaskId};
use crate::protocol::Json;
use crate::state::State;

/// A complete chord that nobody has fired.
pub(super) fn find(connection: &Connection, group: &GroupId) -> Result<Option<ReadyChord>, Fault> {
    let found: Option<(i64, String)> =
        rows::first(connection, sql::CHORD_BODY, [group.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some((chord, body)) = found else { return Ok(None) };
    let parts: Vec<(String, Option<i64>, String, String)> =
        rows::all(connection, sql::CHORD_PARTS, [chord], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    let parts = parts
        .into_iter()
        .map(|(id, place, state, result)| {
            Ok(ChordPart {
                group_id: group.clone(),
                task_id: TaskId::from(id),
                index: place.and_then(|place| u32::try_from(place).ok()),
                state: State::from(state),
                result: rows::json(&result)?,
            })
        })
        .collect::<Result<_, Fault>>()?;
    Ok(Some(ReadyChord { group_id: group.clone(), body: rows::json(&body)?, parts }))
}

/// Complete chords that nobody has fired, the first completed first.
pub(super) fn ready(connection: &Connection, limit: usize) -> Result<Vec<GroupId>, Fault> {
    rows::all(connection, sql::CHORDS_READY, [rows::limit(limit)], |row| {
        Ok(GroupId::from(row.get::<_, String>(0)?))
    })
}

/// The shape of a saved group.
pub(super) fn group(connection: &Connection, id: &GroupId) -> Result<Option<Json>, Fault> {
    let shape: Option<String> = rows::first(connection, sql::GROUP_FIND, [id.as_str()], |row| row.get(0))?;
    shape.as_deref().map(rows::json).transpose()
}

impl Step<'_> {
    /// The number of a chord and whether it is complete.
    fn chord(&self, group: &GroupId) -> Result<Option<(i64, bool)>, Fault> {
        rows::first(self.connection, sql::CHORD_FIND, [group.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// The number of a chord that may be fired.
    pub(super) fn may_fire(&self, group: &GroupId) -> Result<Option<i64>, Fault> {
        Ok(self.chord(group)?.filter(|(_, complete)| *complete).map(|(chord, _)| chord))
    }

    /// Forgets a chord and its parts.
    pub(super) fn drop_chord(&mut self, chord: i64) -> Result<(), Fault> {
        rows::execute(self.connection, sql::CHORD_DROP, [chord])?;
        rows::execute(self.connection, sql::CHORD_PARTS_DROP, [chord])?;
        Ok(())
    }

    /// Opens a chord; says whether it is complete by that, as one without a header is.
    pub(super) fn open_chord(&mut self, new: &NewChord) -> Result<bool, Fault> {
        let values = (new.group_id.as_str(), i64::from(new.size), self.now, new.body.as_str());
        if rows::execute(self.connection, sql::CHORD_OPEN, values)? == 0 || new.size > 0 {
            return Ok(false);
        }
        self.count_chord(self.connection.last_insert_rowid(), 0)
    }

    /// Counts the end of a header task; says whether that completed the chord.
    pub(super) fn end_part(&mut self, part: &ChordPart) -> Result<bool, Fault> {
        let Some((chord, false)) = self.chord(&part.group_id)? else { return Ok(false) };
        let place = part.index.map(i64::from);
        let values = (chord, part.task_id.as_str(), place, part.state.as_str(), part.result.as_str());
        if rows::execute(self.connection, sql::CHORD_PART_PUT, values)? == 0 {
            return Ok(false);
        }
        self.count_chord(chord, 1)
    }

    fn count_chord(&mut self, chord: i64, more: i64) -> Result<bool, Fault> {
        let values = (chord, more, self.now);
        Ok(rows::first(self.connection, sql::CHORD_COUNT, values, |row| row.get(0))? == Some(true))
    }

    /// Keeps the shape of a group.
    pub(super) fn save_group(&mut self, id: &GroupId, shape: &Json) -> Result<(), Fault> {
        rows::execute(self.connection, sql::GROUP_SAVE, (id.as_str(), shape.as_str(), self.now))?;
        Ok(())
    }

    /// Forgets the shape of a group.
    pub(super) fn delete_group(&mut self, id: &GroupId) -> Result<(), Fault> {
        rows::execute(self.connection, sql::GROUP_DROP, [id.as_str()])?;
        Ok(())
    }
}
