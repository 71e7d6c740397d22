//! What became of tasks: states, logs, steps, chords and groups.

use std::collections::{HashMap, HashSet};

use super::contents::{Contents, Task};
use crate::backend::{
    ChordPart, FeedRecord, LogEntry, LogPage, LogRecord, NewChord, ReadyChord, Record, Watch,
};
use crate::clock::Timestamp;
use crate::id::{GroupId, TaskId};
use crate::protocol::{Json, ResultMeta};

/// What is not kept with one task.
#[derive(Debug, Default)]
pub(super) struct Results {
    feed: Vec<FeedRecord>,
    feed_end: u64,
    steps: HashMap<TaskId, Steps>,
    chords: HashMap<GroupId, Chord>,
    /// How many chords were ever completed: the order in which they wait to be fired.
    completed: u64,
    groups: HashMap<GroupId, (Timestamp, Json)>,
}

impl Results {
    fn open(&mut self, new: NewChord, now: Timestamp) {
        let NewChord { group_id, size, body } = new;
        let chord = Chord { opened: now, completed: None, size, body, parts: Vec::new() };
        self.chords.entry(group_id).or_insert(chord);
    }

    /// Counts the end of a header task; the chord, when that completes it.
    fn count(&mut self, part: ChordPart) -> Option<GroupId> {
        let chord = self.chords.get_mut(&part.group_id)?;
        if chord.completed.is_some() || chord.parts.iter().any(|counted| counted.task_id == part.task_id) {
            return None;
        }
        let group_id = part.group_id.clone();
        chord.parts.push(part);
        if chord.parts.len() < chord.size as usize {
            return None;
        }
        self.completed += 1;
        chord.completed = Some(self.completed);
        Some(group_id)
    }
}

/// Durable steps of one task, and when the newest was written.
#[derive(Debug)]
struct Steps {
    written: Timestamp,
    values: HashMap<Box<str>, Json>,
}

#[derive(Debug)]
struct Chord {
    opened: Timestamp,
    /// Its number among the chords completed.
    completed: Option<u64>,
    size: u32,
    body: Json,
    parts: Vec<ChordPart>,
}

impl Contents {
    /// Stores a state unless the one that is there stays.
    pub(super) fn store(&mut self, meta: ResultMeta, now: Timestamp) {
        let task = self.tasks.entry(meta.task_id.clone()).or_insert_with(Task::unknown);
        if task.meta.as_ref().is_some_and(|old| !old.state.may_become(&meta.state)) {
            return;
        }
        if meta.state.is_ready() {
            task.done.get_or_insert(meta.date_done.unwrap_or(now));
        }
        if let Some(extended) = &meta.extended
            && task.name.is_empty()
        {
            task.name = extended.name.as_str().into();
        }
        task.meta = Some(meta);
    }

    /// Those of the tasks of `records` that are finished already.
    pub(super) fn ended(&self, records: &[LogRecord]) -> HashSet<TaskId> {
        records.iter().map(|record| &record.task_id).filter(|id| self.is_finished(id)).cloned().collect()
    }

    fn is_finished(&self, id: &TaskId) -> bool {
        self.tasks.get(id).is_some_and(Task::is_finished)
    }

    /// Writes the rest of a record, its condition and its results being dealt with; returns the chords completed.
    /// `ended` are the tasks that were finished before it.
    pub(super) fn record(&mut self, record: Record, ended: &HashSet<TaskId>, now: Timestamp) -> Vec<GroupId> {
        let Record { fire: _, results: _, chords, parts, steps, log } = record;
        for chord in chords {
            self.results.open(chord, now);
        }
        let ready = parts.into_iter().filter_map(|part| self.results.count(part)).collect();
        for step in steps {
            let fresh = || Steps { written: now, values: HashMap::new() };
            let steps = self.results.steps.entry(step.task_id).or_insert_with(fresh);
            steps.written = now;
            steps.values.entry(step.name).or_insert(step.value);
        }
        for line in log {
            // Readers were told that nothing follows the end, unless this very record sent the task again.
            if !(ended.contains(&line.task_id) && self.is_finished(&line.task_id)) {
                self.append(line, now);
            }
        }
        ready
    }

    fn append(&mut self, record: LogRecord, now: Timestamp) {
        let LogRecord { task_id, event, data } = record;
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        let entry = LogEntry { position: task.log.len() as u64 + 1, event, data, at: now };
        task.log.push(entry.clone());
        self.results.feed_end += 1;
        let number = self.results.feed_end;
        self.results.feed.push(FeedRecord { number, task_id, task: task.name.clone(), entry });
    }

    pub(super) fn meta(&self, id: &TaskId) -> Option<ResultMeta> {
        self.tasks.get(id)?.meta.clone()
    }

    pub(super) fn has_news(&self, watch: &Watch) -> bool {
        match watch {
            Watch::Result(id) => self.is_finished(id),
            Watch::Log { task_id, after } => {
                self.tasks.get(task_id).is_some_and(|task| task.log.len() as u64 > *after)
            }
            Watch::Feed { after } => self.results.feed_end > *after,
        }
    }

    pub(super) fn forget(&mut self, ids: &[TaskId]) {
        let mut forgotten = HashSet::new();
        for id in ids {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            if !task.is_finished() && !task.is_settled() {
                continue;
            }
            forgotten.insert(id);
            if task.is_live() {
                // The result came ahead of the acknowledgement: the message has still to be dealt with.
                (task.meta, task.done) = (None, None);
                task.log.clear();
            } else if let Some(task) = self.tasks.remove(id)
                && let Some((number, _)) = task.accepted
            {
                self.accepted.remove(&number);
            }
            self.results.steps.remove(id);
        }
        self.results.feed.retain(|record| !forgotten.contains(&record.task_id));
    }

    pub(super) fn sweep(&mut self, done_before: Timestamp, limit: usize) -> u64 {
        let old = |task: &Task| !task.is_live() && task.done.is_some_and(|done| done < done_before);
        let ids = self.tasks.iter().filter(|(_, task)| old(task)).map(|(id, _)| id.clone()).take(limit);
        let ids: Vec<TaskId> = ids.collect();
        self.forget(&ids);
        let Results { steps, chords, groups, .. } = &mut self.results;
        steps.retain(|id, steps| self.tasks.contains_key(id) || steps.written >= done_before);
        chords.retain(|_, chord| chord.opened >= done_before);
        groups.retain(|_, (saved, _)| *saved >= done_before);
        ids.len() as u64
    }

    pub(super) fn log(&self, id: &TaskId, after: u64, limit: usize) -> Option<LogPage> {
        let task = self.tasks.get(id)?;
        let later = task.log.iter().filter(|entry| entry.position > after);
        Some(LogPage {
            entries: later.take(limit).cloned().collect(),
            first: 1,
            last: task.log.len() as u64,
            // A settled message ends the log even where no result is kept.
            ended: task.is_finished() || task.is_settled(),
        })
    }

    pub(super) fn feed(&self, after: u64, limit: usize) -> Vec<FeedRecord> {
        self.results.feed.iter().filter(|record| record.number > after).take(limit).cloned().collect()
    }

    pub(super) fn feed_end(&self) -> u64 {
        self.results.feed_end
    }

    pub(super) fn step(&self, id: &TaskId, name: &str) -> Option<Json> {
        self.results.steps.get(id)?.values.get(name).cloned()
    }

    /// Fires a chord: whether it was there to be fired.
    pub(super) fn fire(&mut self, group_id: &GroupId) -> bool {
        let complete = self.results.chords.get(group_id).is_some_and(|chord| chord.completed.is_some());
        complete && self.results.chords.remove(group_id).is_some()
    }

    pub(super) fn ready_chord(&self, group_id: &GroupId) -> Option<ReadyChord> {
        let chord = self.results.chords.get(group_id).filter(|chord| chord.completed.is_some())?;
        let mut parts = chord.parts.clone();
        parts.sort_by_key(|part| part.index.map_or(u64::MAX, u64::from));
        Some(ReadyChord { group_id: group_id.clone(), body: chord.body.clone(), parts })
    }

    pub(super) fn ready_chords(&self, limit: usize) -> Vec<GroupId> {
        let complete = |(id, chord): (&GroupId, &Chord)| Some((chord.completed?, id.clone()));
        let mut ready: Vec<(u64, GroupId)> = self.results.chords.iter().filter_map(complete).collect();
        ready.sort();
        ready.into_iter().map(|(_, id)| id).take(limit).collect()
    }

    pub(super) fn save_group(&mut self, group_id: &GroupId, tuple: &Json, now: Timestamp) {
        self.results.groups.insert(group_id.clone(), (now, tuple.clone()));
    }

    pub(super) fn delete_group(&mut self, group_id: &GroupId) {
        self.results.groups.remove(group_id);
    }

    pub(super) fn group(&self, group_id: &GroupId) -> Option<Json> {
        self.results.groups.get(group_id).map(|(_, tuple)| tuple.clone())
    }
}
