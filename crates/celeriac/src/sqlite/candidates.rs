//! Where a list finds its tasks: the numbers of those that may match, newest first, by the one condition of a query that is
//! likely to leave the fewest, and that an index answers in this order.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::fault::Fault;
use super::{rows, sql};
use crate::catalog::TaskQuery;
use crate::state::{Phase, State};

/// Numbers fetched in one go, shared out among the streams.
const FETCHED: usize = 512;

/// At least so many a stream.
const FETCHED_MIN: usize = 8;

/// So many names of tasks, or of workers, are merged; a query that fits more is answered by looking at task after task.
const STREAMS_MAX: usize = 500;

/// So many distinct names of tasks are looked through for a text.
const NAMES_MAX: usize = 5_000;

/// So many tasks found in another order are put in order; more than that are met soon enough by looking at task after task.
const SORTED_MAX: usize = 10_000;

/// One more, to see whether there are more.
const SORTED_ASKED: i64 = SORTED_MAX as i64 + 1;

/// The candidates of one page.
#[derive(Debug)]
pub(super) struct Candidates {
    streams: Vec<Stream>,
    /// So many numbers a stream fetches at a time.
    fetched: usize,
}

/// Task numbers from newest to oldest.
#[derive(Debug)]
struct Stream {
    source: Source,
    /// Fetched and not given out.
    ready: VecDeque<i64>,
    /// What comes next is older than this one.
    before: i64,
    /// Nothing is left to fetch.
    ended: bool,
}

/// Where the numbers of a stream come from.
#[derive(Debug)]
enum Source {
    /// A statement that takes (older than, how many).
    Every(&'static str),
    /// One that takes a text before them.
    Of(&'static str, Box<str>),
    /// One that takes the number of a queue before them.
    OfQueue(i64),
    /// Numbers at hand, largest first.
    Known(VecDeque<i64>),
}

impl Candidates {
    /// Those for `query` that are older than `before`.
    pub(super) fn choose(connection: &Connection, query: &TaskQuery, before: i64) -> Result<Self, Fault> {
        let sources = sources(connection, query)?;
        let fetched = (FETCHED / sources.len().max(1)).max(FETCHED_MIN);
        let stream = |source| Stream { source, ready: VecDeque::new(), before, ended: false };
        Ok(Self { streams: sources.into_iter().map(stream).collect(), fetched })
    }

    /// The next one.
    pub(super) fn next(&mut self, connection: &Connection) -> Result<Option<i64>, Fault> {
        let mut newest = None;
        for stream in &mut self.streams {
            newest = newest.max(stream.peek(connection, self.fetched)?);
        }
        // More than one stream may have it.
        for stream in &mut self.streams {
            while newest.is_some() && stream.ready.front().copied() == newest {
                stream.ready.pop_front();
            }
        }
        Ok(newest)
    }
}

impl Stream {
    fn peek(&mut self, connection: &Connection, count: usize) -> Result<Option<i64>, Fault> {
        if self.ready.is_empty() && !self.ended {
            let (before, limit) = (self.before, rows::limit(count));
            let found: Vec<i64> = match &mut self.source {
                Source::Every(sql) => rows::all(connection, sql, (before, limit), |row| row.get(0))?,
                Source::Of(sql, text) => {
                    rows::all(connection, sql, (&**text, before, limit), |row| row.get(0))?
                }
                Source::OfQueue(queue) => {
                    rows::all(connection, sql::LIST_QUEUE, (*queue, before, limit), |row| row.get(0))?
                }
                Source::Known(seqs) => {
                    self.ended = true;
                    seqs.drain(..).filter(|seq| *seq < before).collect()
                }
            };
            self.ended |= found.len() < count;
            self.before = found.last().copied().unwrap_or(before);
            self.ready = found.into();
        }
        Ok(self.ready.front().copied())
    }
}

/// The streams that together have every task that matches.
fn sources(connection: &Connection, query: &TaskQuery) -> Result<Vec<Source>, Fault> {
    if let Some(tag) = &query.tag {
        return Ok(vec![Source::Of(sql::LIST_TAG, tag.clone())]);
    }
    if let Some(sources) = by_phase(connection, &query.phases)? {
        return Ok(sources);
    }
    if let Some(sources) = by_state(&query.states) {
        return Ok(sources);
    }
    if let Some(worker) = &query.worker
        && let Some(sources) = by_worker(connection, worker)?
    {
        return Ok(sources);
    }
    if let Some(name) = &query.task {
        return Ok(vec![Source::Of(sql::LIST_NAME, name.clone())]);
    }
    if let Some(text) = query.text.as_ref().filter(|text| !text.is_empty())
        && let Some(sources) = by_text(connection, text)?
    {
        return Ok(sources);
    }
    if let Some(queue) = &query.queue {
        let known = rows::first(connection, sql::QUEUE_FIND, [queue.as_str()], |row| row.get(0))?;
        return Ok(known.map(Source::OfQueue).into_iter().collect());
    }
    Ok(vec![Source::Every(sql::LIST_ALL)])
}

/// Where messages stand, unless nearly all of them may.
fn by_phase(connection: &Connection, phases: &[Phase]) -> Result<Option<Vec<Source>>, Fault> {
    if phases.is_empty() || phases.contains(&Phase::Settled) {
        return Ok(None);
    }
    let mut sources = Vec::new();
    for phase in phases {
        match phase {
            Phase::Reserved => sources.push(Source::Every(sql::LIST_LEASED)),
            Phase::Dead => sources.push(Source::Every(sql::LIST_DEAD)),
            Phase::Delayed => sources.push(Source::Every(sql::LIST_DELAYED)),
            Phase::Queued => {
                // The lines are in another order.
                let Some(ready) = sorted(connection, sql::LIST_READY, [SORTED_ASKED])? else {
                    return Ok(None);
                };
                // What has come due lies with the delayed until somebody reserves.
                sources.extend([ready, Source::Every(sql::LIST_DELAYED)]);
            }
            Phase::Settled => return Ok(None),
        }
    }
    Ok(Some(sources))
}

/// States that few tasks have.
fn by_state(states: &[State]) -> Option<Vec<Source>> {
    let common = |state: &State| matches!(state, State::Success | State::Pending);
    if states.is_empty() || states.iter().any(common) {
        return None;
    }
    let stored = states.iter().map(|state| Source::Of(sql::LIST_STATE, state.as_str().into()));
    // What is held has started, whatever is stored.
    let held = states.contains(&State::Started).then_some(Source::Every(sql::LIST_LEASED));
    Some(stored.chain(held).collect())
}

/// What a worker holds or ended, in any of its incarnations.
fn by_worker(connection: &Connection, worker: &str) -> Result<Option<Vec<Source>>, Fault> {
    let ended = |worker: &str| Source::Of(sql::LIST_WORKER, worker.into());
    let mut sources = vec![Source::Every(sql::LIST_LEASED), ended(worker)];
    // Incarnations are named node/…; 0 follows / in the order of characters.
    let (mut after, end) = (format!("{worker}/"), format!("{worker}0"));
    while let Some(found) = next_text(connection, sql::NEXT_WORKER, (&after, &end))? {
        if sources.len() == STREAMS_MAX {
            return Ok(None);
        }
        sources.push(ended(&found));
        after = found;
    }
    Ok(Some(sources))
}

/// Tasks whose name contains a text, or whose id begins with it.
fn by_text(connection: &Connection, text: &str) -> Result<Option<Vec<Source>>, Fault> {
    let end = format!("{text}{}", char::MAX);
    let Some(ids) = sorted(connection, sql::LIST_IDS, (text, &end, SORTED_ASKED))? else { return Ok(None) };
    let mut sources = vec![ids];
    let (mut after, mut names) = (String::new(), 0);
    // Each step is a search of its own in the index, which skips all the tasks of one name.
    while let Some(name) = next_text(connection, sql::NEXT_NAME, [&after])? {
        names += 1;
        if names > NAMES_MAX || sources.len() == STREAMS_MAX {
            return Ok(None);
        }
        if name.contains(text) {
            sources.push(Source::Of(sql::LIST_NAME, name.as_str().into()));
        }
        after = name;
    }
    Ok(Some(sources))
}

/// Puts the numbers that a statement finds in order; `None` when they are too many.
fn sorted(
    connection: &Connection,
    sql: &'static str,
    params: impl rusqlite::Params,
) -> Result<Option<Source>, Fault> {
    let mut seqs: Vec<i64> = rows::all(connection, sql, params, |row| row.get(0))?;
    seqs.sort_unstable_by(|one, other| other.cmp(one));
    Ok((seqs.len() <= SORTED_MAX).then(|| Source::Known(seqs.into())))
}

fn next_text(
    connection: &Connection,
    sql: &'static str,
    params: impl rusqlite::Params,
) -> Result<Option<String>, Fault> {
    rows::first(connection, sql, params, |row| row.get(0))
}
