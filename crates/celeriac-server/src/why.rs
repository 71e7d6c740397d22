//! Why a task does not run: a pure function over what the store knows.

use std::time::Duration;

use celeriac::broker::{Place, QueueStatus};
use celeriac::control::WorkerCard;
use celeriac::state::Phase;
use celeriac::{State, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a task does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Reason {
    /// The reason, for programs.
    pub(crate) code: Code,
    /// The reason, for people.
    pub(crate) text: String,
    /// Since when it holds, where that is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) since: Option<String>,
    /// Until when it holds, where that is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) until: Option<String>,
    /// How many messages are to be taken before it, where that was counted.
    pub(crate) ahead: Option<u64>,
}

/// Why a task does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// Its time has not come: eta, countdown.
    Eta,
    /// It failed, and waits to be tried again.
    Retry,
    /// A worker handed it back for later.
    HandedBack,
    /// Its queue is paused.
    QueuePaused,
    /// No live worker consumes from its queue.
    NoWorkerForQueue,
    /// Workers consume from its queue, and none knows the task.
    NoWorkerKnowsTask,
    /// Every slot of the workers of its queue is taken.
    WorkersBusy,
    /// Others are before it, or it is about to be taken.
    Position,
    /// The worker that holds it is gone; another takes it when the lease has passed.
    WorkerLost,
    /// It is a dead letter.
    Dead,
}

/// What the reason is found from.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) place: &'a Place,
    /// When it was reserved, for one that is held.
    pub(crate) started: Option<Timestamp>,
    /// How many messages are to be taken before it, when that was counted.
    pub(crate) ahead: Option<u64>,
    /// Its error, for one that is dead.
    pub(crate) error: Option<&'a str>,
    pub(crate) workers: &'a [WorkerCard],
    /// How its queue stands.
    pub(crate) queue: Option<&'a QueueStatus>,
    /// How long a lease lasts.
    pub(crate) lease: Duration,
}

/// Why the task does not run; `None` when it does, or is finished.
pub(crate) fn why(facts: &Facts<'_>) -> Option<Reason> {
    match facts.place.phase {
        Phase::Settled => None,
        Phase::Dead => Some(dead(facts)),
        Phase::Reserved => lost(facts),
        Phase::Delayed => Some(delayed(facts)),
        Phase::Queued => Some(queued(facts)),
    }
}

fn reason(code: Code, text: impl Into<String>) -> Reason {
    Reason { code, text: text.into(), since: None, until: None, ahead: None }
}

fn dead(facts: &Facts<'_>) -> Reason {
    let why = facts.error.unwrap_or("its dead letter says why");
    reason(Code::Dead, format!("it was put aside as a dead letter: {why}; retry it, or drop it"))
}

fn lost(facts: &Facts<'_>) -> Option<Reason> {
    let worker = facts.place.worker.as_ref()?;
    if facts.workers.iter().any(|card| card.worker == *worker) {
        return None;
    }
    let text = format!(
        "{worker} holds it, and has not been heard of lately; if it is gone, another worker starts the task when the \
         lease has passed, {} s after it was last renewed",
        facts.lease.as_secs_f64()
    );
    Some(Reason { since: facts.started.map(|at| at.to_string()), ..reason(Code::WorkerLost, text) })
}

fn delayed(facts: &Facts<'_>) -> Reason {
    let place = facts.place;
    let until = place.due.map(|due| due.to_string());
    let when = until.as_deref().unwrap_or("a time unknown");
    let mut found = if place.state == State::Retry {
        reason(Code::Retry, format!("it failed, and is tried again at {when}"))
    } else if place.deliveries > 0 {
        match consumers_problem(facts) {
            Some(found) => found,
            None => reason(Code::HandedBack, format!("a worker handed it back, to be tried again at {when}")),
        }
    } else {
        reason(Code::Eta, format!("it was sent to run at {when}, not before"))
    };
    found.until = until;
    found
}

fn queued(facts: &Facts<'_>) -> Reason {
    let queue = &facts.place.queue;
    if facts.queue.is_some_and(|status| status.paused) {
        let text = format!("queue {queue} is paused; resume it");
        return Reason { ahead: facts.ahead, ..reason(Code::QueuePaused, text) };
    }
    if let Some(found) = consumers_problem(facts) {
        return Reason { ahead: facts.ahead, ..found };
    }
    let (running, slots) = able(facts).fold((0, 0), |(running, slots), card| {
        (running + u64::from(card.running.min(card.concurrency)), slots + u64::from(card.concurrency))
    });
    let before = match facts.ahead {
        Some(0) => "it is next".to_owned(),
        Some(1) => "1 task is before it".to_owned(),
        Some(ahead) => format!("{ahead} tasks are before it"),
        None => "it waits for its turn".to_owned(),
    };
    let found = if slots > 0 && running >= slots {
        reason(Code::WorkersBusy, format!("{running} of {slots} slots of its workers are taken; {before}"))
    } else {
        reason(Code::Position, before)
    };
    Reason { ahead: facts.ahead, ..found }
}

/// What is wrong with the workers of the queue, if anything is.
fn consumers_problem(facts: &Facts<'_>) -> Option<Reason> {
    let Place { queue, task, .. } = facts.place;
    let mut consumers = consumers(facts).peekable();
    if consumers.peek().is_none() {
        let text = format!("no live worker consumes from queue {queue}; start one with -Q {queue}");
        return Some(reason(Code::NoWorkerForQueue, text));
    }
    if able(facts).next().is_none() {
        let count = consumers.count();
        let text =
            format!("of the workers of queue {queue} ({count}) none knows task {task}; start one that does");
        return Some(reason(Code::NoWorkerKnowsTask, text));
    }
    None
}

fn consumers<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a WorkerCard> {
    let queue = &facts.place.queue;
    facts.workers.iter().filter(move |card| !card.stopping && card.queues.contains(queue))
}

/// The workers of its queue that know the task.
fn able<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a WorkerCard> {
    let task = &facts.place.task;
    consumers(facts).filter(move |card| is_built_in(task) || card.tasks.contains(task))
}

/// Tasks that every worker knows, and none lists.
pub(crate) fn is_built_in(task: &str) -> bool {
    matches!(task, "celery.map" | "celery.starmap" | "celery.accumulate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use celeriac::QueueName;
    use celeriac::id::WorkerName;

    fn place(phase: Phase) -> Place {
        Place {
            phase,
            task: "app.digest".into(),
            queue: QueueName::from("images"),
            state: State::Pending,
            published: Timestamp::UNIX_EPOCH,
            due: None,
            worker: None,
            deliveries: 0,
            revoked: false,
        }
    }

    fn card(name: &str, queue: &str, task: &str, running: u32) -> WorkerCard {
        WorkerCard {
            worker: WorkerName::from(format!("{name}/1")),
            node: name.into(),
            hostname: "host".into(),
            pid: 1,
            version: "1".into(),
            queues: vec![QueueName::from(queue)],
            tasks: vec![task.into()],
            concurrency: 2,
            running,
            started: Timestamp::UNIX_EPOCH,
            beat: Timestamp::UNIX_EPOCH,
            expires: Timestamp::MAX,
            stopping: false,
            totals: celeriac::control::Report::default(),
        }
    }

    fn paused(paused: bool) -> QueueStatus {
        let queue = QueueName::from("images");
        QueueStatus { queue, ready: 1, delayed: 0, reserved: 0, oldest: None, paused }
    }

    fn check(place: &Place, workers: &[WorkerCard], queue: &QueueStatus, expected: Option<(Code, &str)>) {
        let facts = Facts {
            place,
            started: Some(Timestamp::UNIX_EPOCH),
            ahead: Some(3),
            error: Some("WorkerLostError: three times"),
            workers,
            queue: Some(queue),
            lease: Duration::from_secs(20),
        };
        let found = why(&facts);
        let shown = found.as_ref().map(|reason| (reason.code, &*reason.text));
        match (shown, expected) {
            (None, None) => {}
            (Some((code, text)), Some((wanted, part))) => {
                assert_eq!(code, wanted, "{text}");
                assert!(text.contains(part), "{text}");
            }
            _ => panic!("{shown:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn waiting_for_a_time() {
        let due = Some(Timestamp::UNIX_EPOCH);
        let ready = [card("a@host", "images", "app.digest", 0)];
        let eta = Place { due, ..place(Phase::Delayed) };
        check(&eta, &ready, &paused(false), Some((Code::Eta, "1970-01-01T00:00:00Z")));
        // A pause does not explain what would not run without it.
        check(&eta, &ready, &paused(true), Some((Code::Eta, "not before")));
        let retry = Place { state: State::Retry, deliveries: 1, ..eta.clone() };
        check(&retry, &ready, &paused(false), Some((Code::Retry, "tried again at 1970")));
        let back = Place { deliveries: 1, ..eta };
        check(&back, &ready, &paused(false), Some((Code::HandedBack, "1970")));
        let others = [card("a@host", "images", "app.other", 0)];
        check(&back, &others, &paused(false), Some((Code::NoWorkerKnowsTask, "app.digest")));
    }

    #[test]
    fn waiting_for_a_worker() {
        let place = place(Phase::Queued);
        let open = paused(false);
        let able = card("a@host", "images", "app.digest", 0);
        let busy = card("b@host", "images", "app.digest", 2);
        check(&place, std::slice::from_ref(&able), &paused(true), Some((Code::QueuePaused, "resume")));
        check(&place, &[], &open, Some((Code::NoWorkerForQueue, "-Q images")));
        let elsewhere = card("a@host", "mail", "app.digest", 0);
        check(&place, &[elsewhere], &open, Some((Code::NoWorkerForQueue, "images")));
        let stopping = WorkerCard { stopping: true, ..able.clone() };
        check(&place, &[stopping], &open, Some((Code::NoWorkerForQueue, "images")));
        let ignorant = card("a@host", "images", "app.other", 0);
        check(&place, std::slice::from_ref(&ignorant), &open, Some((Code::NoWorkerKnowsTask, "app.digest")));
        check(&place, &[busy.clone(), ignorant], &open, Some((Code::WorkersBusy, "2 of 2 slots")));
        check(&place, std::slice::from_ref(&busy), &open, Some((Code::WorkersBusy, "3 tasks are before it")));
        check(&place, &[busy, able], &open, Some((Code::Position, "3 tasks are before it")));
        let built_in = Place { task: "celery.map".into(), ..place };
        let any = [card("a@host", "images", "app.other", 0)];
        check(&built_in, &any, &open, Some((Code::Position, "before it")));
    }

    #[test]
    fn held_dead_and_finished() {
        let worker = Some(WorkerName::from("a@host/1"));
        let held = Place { worker, ..place(Phase::Reserved) };
        let open = paused(false);
        check(&held, &[card("a@host", "images", "app.digest", 1)], &open, None);
        check(&held, &[card("b@host", "images", "app.digest", 1)], &open, Some((Code::WorkerLost, "20 s")));
        check(&place(Phase::Dead), &[], &open, Some((Code::Dead, "WorkerLostError: three times")));
        check(&place(Phase::Settled), &[], &open, None);
    }
}
