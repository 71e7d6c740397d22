//! Elections among workers, as celery/worker/consumer/gossip.py: each worker that is asked to stands and says so, each
//! that hears of it says so too, and when enough have, all see the same winner: the one whose clock was the lowest.
//!
//! Nothing here begins one. A worker of Celery's ends when it is called to elect and nobody else stands, so ours stand at
//! once, in the loop that hears of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::{Timestamp, after};
use crate::control::Elected;
use crate::protocol::Json;
use crate::protocol::event::{Event, EventKind};
use crate::protocol::pidbox::Request;

/// So many elections are under way at most; when there are more the oldest are given up.
const OPEN_MAX: usize = 100;
/// So many stand in one election at most, and so many workers are known.
const WORKERS_MAX: usize = 10_000;
/// So many duties wait for a worker that was elected.
pub(super) const DUTIES_MAX: usize = 16;
/// As Celery: a worker counts as gone when two heartbeats were missed.
const MISSED: f64 = 2.0;

/// The elections under way, and who of this process stands in them.
#[derive(Debug, Default)]
pub(super) struct Elections(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    candidates: Vec<Candidate>,
    /// Every worker heard of, and until when it counts as alive.
    alive: HashMap<String, Timestamp>,
    open: VecDeque<Election>,
}

/// A worker of this process.
#[derive(Debug)]
struct Candidate {
    /// What its events have in common.
    model: Event,
    duties: mpsc::Sender<Elected>,
}

#[derive(Debug)]
struct Election {
    id: String,
    standing: Vec<Standing>,
    acknowledged: usize,
}

#[derive(Debug)]
struct Standing {
    clock: u64,
    /// Node name and process, as Celery writes it.
    process: String,
    topic: String,
    action: Json,
}

impl Elections {
    /// Lets a worker of this process stand from now on, until nobody takes what it is elected to.
    pub(super) fn stand(&self, model: Event, duties: mpsc::Sender<Elected>) {
        let mut state = self.lock();
        state.candidates.retain(|candidate| !candidate.duties.is_closed());
        state.candidates.push(Candidate { model, duties });
    }

    /// A call to elect: what is to be told in the name of those who stand.
    pub(super) fn called(&self, request: &Request, now: Timestamp) -> Vec<Event> {
        let (Some(id), Some(topic)) = (text(request, "id"), text(request, "topic")) else {
            return Vec::new();
        };
        let action = request.arguments.get("action").cloned().unwrap_or_default();
        let mut state = self.lock();
        state.candidates.retain(|candidate| !candidate.duties.is_closed());
        let meant = state.candidates.iter().filter(|candidate| request.is_for(&candidate.model.hostname));
        meant
            .map(|candidate| {
                let kind =
                    EventKind::WorkerElect { id: id.clone(), topic: topic.clone(), action: action.clone() };
                candidate.tells(kind, now)
            })
            .collect()
    }

    /// An event of a worker, ours or not: what is to be told because of it.
    pub(super) fn hear(&self, event: &Event, now: Timestamp) -> Vec<Event> {
        let mut state = self.lock();
        match &event.kind {
            EventKind::WorkerOnline(beat) | EventKind::WorkerHeartbeat(beat) => {
                if state.alive.len() < WORKERS_MAX || state.alive.contains_key(&event.hostname) {
                    let lives = Duration::try_from_secs_f64(beat.freq * MISSED).unwrap_or_default();
                    state.alive.insert(event.hostname.clone(), after(now, lives));
                }
                Vec::new()
            }
            EventKind::WorkerOffline(_) => {
                state.alive.remove(&event.hostname);
                Vec::new()
            }
            EventKind::WorkerElect { id, topic, action } => {
                if state.candidates.is_empty() {
                    return Vec::new();
                }
                state.note(
                    id,
                    Standing {
                        clock: event.clock,
                        process: format!("{}.{}", event.hostname, event.pid),
                        topic: topic.clone(),
                        action: action.clone(),
                    },
                );
                let ack = EventKind::WorkerElectAck { id: id.clone() };
                state.candidates.iter().map(|candidate| candidate.tells(ack.clone(), now)).collect()
            }
            EventKind::WorkerElectAck { id } => {
                state.acknowledge(id, now);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Candidate {
    fn tells(&self, kind: EventKind, now: Timestamp) -> Event {
        Event { timestamp: now, kind, ..self.model.clone() }
    }

    fn process(&self) -> String {
        format!("{}.{}", self.model.hostname, self.model.pid)
    }
}

impl State {
    fn note(&mut self, id: &str, standing: Standing) {
        match self.open.iter_mut().find(|election| election.id == id) {
            Some(election) if election.standing.len() < WORKERS_MAX => election.standing.push(standing),
            Some(_) => {}
            None => {
                if self.open.len() >= OPEN_MAX {
                    self.open.pop_front();
                }
                let standing = vec![standing];
                self.open.push_back(Election { id: id.to_owned(), standing, acknowledged: 0 });
            }
        }
    }

    /// Counts an acknowledgement; when there are as many as workers beside one of ours, the election is over.
    fn acknowledge(&mut self, id: &str, now: Timestamp) {
        self.alive.retain(|_, until| *until > now);
        let Some(place) = self.open.iter().position(|election| election.id == id) else { return };
        self.open[place].acknowledged += 1;
        let own = |node: &str| self.candidates.iter().any(|candidate| candidate.model.hostname == node);
        let others = self.alive.keys().filter(|node| !own(node)).count();
        let election = &self.open[place];
        // One who stands alone where there are others has not been heard by them yet.
        if election.acknowledged < others || election.standing.len() < 2.min(others + 1) {
            return;
        }
        let Some(election) = self.open.remove(place) else { return };
        let lowest = election
            .standing
            .into_iter()
            .min_by(|one, other| (one.clock, &one.process).cmp(&(other.clock, &other.process)));
        let Some(winner) = lowest else { return };
        let candidate = self.candidates.iter().find(|candidate| candidate.process() == winner.process);
        match candidate {
            Some(candidate) => {
                tracing::info!(election = id, node = candidate.model.hostname, "elected");
                let duty = Elected { topic: winner.topic, action: winner.action };
                if candidate.duties.try_send(duty).is_err() {
                    tracing::warn!(
                        election = id,
                        "the worker that is elected does not take what it is to do"
                    );
                }
            }
            None => tracing::info!(election = id, winner = winner.process, "somebody else is elected"),
        }
    }
}

fn text(request: &Request, name: &str) -> Option<String> {
    request.arguments.get(name)?.as_string().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::JsonMap;
    use crate::protocol::event::{Heartbeat, Software};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn event(node: &str, clock: u64, kind: EventKind) -> Event {
        Event { hostname: node.to_owned(), utcoffset: 0.0, pid: 7, clock, timestamp: NOW, kind }
    }

    fn beat(node: &str) -> Event {
        let software = Software::default();
        event(node, 0, EventKind::WorkerHeartbeat(Heartbeat { freq: 2.0, load: None, software }))
    }

    fn elect(node: &str, clock: u64) -> Event {
        let kind = EventKind::WorkerElect {
            id: "e".to_owned(),
            topic: "task".to_owned(),
            action: Json::string(node),
        };
        event(node, clock, kind)
    }

    fn ack(node: &str) -> Event {
        event(node, 0, EventKind::WorkerElectAck { id: "e".to_owned() })
    }

    fn elections(node: &str) -> (Elections, mpsc::Receiver<Elected>) {
        let elections = Elections::default();
        let (duties, elected) = mpsc::channel(DUTIES_MAX);
        elections.stand(beat(node), duties);
        (elections, elected)
    }

    fn call(destination: Option<&str>) -> Request {
        Request {
            method: "election".to_owned(),
            arguments: JsonMap::from([("id", Json::string("e")), ("topic", Json::string("task"))]),
            destination: destination.map(|name| vec![name.to_owned()]),
            ..Request::default()
        }
    }

    #[test]
    fn who_is_called_stands_and_who_hears_of_it_says_so() {
        let (elections, _elected) = elections("rust@h");
        let told = elections.called(&call(None), NOW);
        assert_eq!(told.len(), 1);
        assert!(matches!(&told[0].kind, EventKind::WorkerElect { id, .. } if id == "e"));
        assert_eq!((&*told[0].hostname, told[0].pid), ("rust@h", 7));
        assert!(elections.called(&call(Some("py@h")), NOW).is_empty());
        let told = elections.hear(&elect("py@h", 3), NOW);
        assert!(matches!(&told[..], [Event { kind: EventKind::WorkerElectAck { id }, .. }] if id == "e"));
        assert!(elections.hear(&beat("py@h"), NOW).is_empty());
    }

    #[test]
    fn the_lowest_clock_wins_when_enough_have_heard() {
        for (own, python, won) in [(3, 4, true), (4, 3, false), (3, 3, false)] {
            let (elections, mut elected) = elections("rust@h");
            elections.hear(&beat("py@h"), NOW);
            elections.hear(&beat("rust@h"), NOW);
            elections.hear(&elect("rust@h", own), NOW);
            elections.hear(&ack("rust@h"), NOW);
            assert!(elected.try_recv().is_err(), "nobody else has been heard");
            elections.hear(&elect("py@h", python), NOW);
            elections.hear(&ack("py@h"), NOW);
            match elected.try_recv() {
                Ok(duty) => assert_eq!((won, duty.action), (true, Json::string("rust@h"))),
                Err(_) => assert!(!won, "{own} {python}"),
            }
            // It is over.
            elections.hear(&ack("py@h"), NOW);
            assert!(elected.try_recv().is_err());
        }
    }

    #[test]
    fn a_worker_alone_elects_itself() {
        let (elections, mut elected) = elections("rust@h");
        elections.hear(&beat("rust@h"), NOW);
        // One that is gone does not count.
        elections.hear(&beat("py@h"), NOW);
        let later = after(NOW, Duration::from_secs(5));
        elections.hear(&elect("rust@h", 1), later);
        elections.hear(&ack("rust@h"), later);
        assert_eq!(elected.try_recv().unwrap().topic, "task");
    }

    #[test]
    fn elections_are_bounded_and_end_with_their_worker() {
        let (elections, elected) = elections("rust@h");
        for n in 0..OPEN_MAX + 5 {
            let kind =
                EventKind::WorkerElect { id: n.to_string(), topic: String::new(), action: Json::null() };
            elections.hear(&event("py@h", 1, kind), NOW);
        }
        assert_eq!(elections.lock().open.len(), OPEN_MAX);
        drop(elected);
        assert!(elections.called(&call(None), NOW).is_empty());
    }
}
