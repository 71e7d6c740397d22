//! Tells what the worker does, in Celery's events, to whoever listens: that it lives, and what becomes of tasks where
//! that is wanted.
//!
//! Nothing waits for it and nothing depends on it. What cannot be told in time is not told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ending::Count;
use super::{Shared, machine};
use crate::broker::Delivery;
use crate::clock::Timestamp;
use crate::id::TaskId;
use crate::protocol::event::{BATCH_MAX, Event, EventKind, Heartbeat, Load, Received, Software};
use crate::protocol::{Exception, Message, args_repr, kwargs_repr, python_repr};
use crate::state::State;
use crate::store::{Then, Transaction};

/// Events that may wait to be told.
const BOUND: usize = 8_192;

/// How long the end of the worker may take to be told of.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

/// The way to those who listen.
#[derive(Debug)]
pub(crate) struct Announcer {
    sender: mpsc::Sender<(Timestamp, EventKind)>,
    /// What becomes of tasks is told.
    tasks: AtomicBool,
    /// The worker was started to tell of tasks, and remote control does not change that.
    always: bool,
    /// So many events were not told.
    missed: AtomicU64,
}

/// What waits to be told.
pub(super) type Untold = mpsc::Receiver<(Timestamp, EventKind)>;

impl Announcer {
    /// One that tells of tasks from the start where `tasks` says so.
    pub(super) fn new(tasks: bool) -> (Self, Untold) {
        let (sender, receiver) = mpsc::channel(BOUND);
        let announcer =
            Self { sender, tasks: AtomicBool::new(tasks), always: tasks, missed: AtomicU64::new(0) };
        (announcer, receiver)
    }

    /// Begins to tell of tasks; `false` when that is no change.
    pub(super) fn enable(&self) -> bool {
        !self.always && !self.tasks.swap(true, Ordering::Relaxed)
    }

    /// Tells of tasks no longer; `false` when that is no change. As Celery, a worker that was started to tell of them
    /// goes on.
    pub(super) fn disable(&self) -> bool {
        !self.always && self.tasks.swap(false, Ordering::Relaxed)
    }

    /// Tells of a task, where that is wanted.
    pub(super) fn task(&self, now: impl FnOnce() -> Timestamp, kind: impl FnOnce() -> EventKind) {
        if self.tasks.load(Ordering::Relaxed) {
            self.tell(now(), kind());
        }
    }

    /// Tells of the worker itself.
    pub(super) fn tell(&self, now: Timestamp, kind: EventKind) {
        if self.sender.try_send((now, kind)).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// Tells that a message has come.
    pub(super) fn tell_received(&self, message: &Message) {
        self.announcer.task(
            || self.app.clock().now(),
            || {
                let headers = &message.headers;
                let text = |text: &str, of: &dyn Fn() -> String| {
                    if text.is_empty() { of() } else { text.to_owned() }
                };
                EventKind::TaskReceived(Box::new(Received {
                    uuid: headers.id.clone(),
                    name: headers.shadow.clone().unwrap_or_else(|| headers.task.clone()),
                    args: text(&headers.argsrepr, &|| args_repr(&message.body.args)),
                    kwargs: text(&headers.kwargsrepr, &|| kwargs_repr(&message.body.kwargs)),
                    root_id: headers.root_id.clone(),
                    parent_id: headers.parent_id.clone(),
                    retries: headers.retries,
                    eta: headers.eta,
                    expires: headers.expires,
                }))
            },
        );
    }

    /// Tells that a run begins.
    pub(super) fn tell_started(&self, delivery: &Delivery) {
        let uuid = || delivery.task_id.as_str().to_owned();
        self.announcer.task(|| self.app.clock().now(), || EventKind::TaskStarted { uuid: uuid() });
    }

    /// Tells what was written at the end of a reservation.
    pub(super) fn tell_end(
        &self,
        task_id: &TaskId,
        transaction: &Transaction,
        count: Count,
        took: Option<Duration>,
    ) {
        if self.announcer.tasks.load(Ordering::Relaxed)
            && let Some(kind) = end(task_id, transaction, count, took)
        {
            self.announcer.tell(self.app.clock().now(), kind);
        }
    }

    /// How the worker stands, as its heartbeats tell it.
    pub(super) fn heartbeat(&self) -> Heartbeat {
        let started = self.counters.started.values();
        Heartbeat {
            freq: self.app.config().worker_heartbeat_interval.as_secs_f64(),
            load: Some(Load {
                active: self.held.running() as u64,
                processed: started.map(|count| count.load(Ordering::Relaxed)).sum(),
                loadavg: machine::load_averages(),
            }),
            software: Software {
                ident: crate::control::IDENT.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                // As Python's `platform.system()`.
                system: match std::env::consts::OS {
                    "linux" => "Linux".to_owned(),
                    "macos" => "Darwin".to_owned(),
                    other => other.to_owned(),
                },
            },
        }
    }

    /// What the events of this worker have in common.
    pub(super) fn model_event(&self) -> Event {
        self.event(self.app.clock().now(), EventKind::WorkerOnline(self.heartbeat()))
    }

    fn event(&self, at: Timestamp, kind: EventKind) -> Event {
        Event {
            hostname: self.node.to_string(),
            utcoffset: machine::hours_west(at),
            pid: std::process::id(),
            // Counted when it is told.
            clock: 0,
            timestamp: at,
            kind,
        }
    }
}

/// The event of an end, as celery/worker/request.py sends it; none for what Celery is silent about.
fn end(
    task_id: &TaskId,
    transaction: &Transaction,
    count: Count,
    took: Option<Duration>,
) -> Option<EventKind> {
    let uuid = task_id.as_str().to_owned();
    let meta = transaction.record.results.iter().find(|meta| meta.task_id == *task_id);
    Some(match (count, meta) {
        (Count::Succeeded, Some(meta)) if meta.state == State::Success => EventKind::TaskSucceeded {
            uuid,
            result: python_repr(&meta.result),
            runtime: took.map(|took| took.as_secs_f64()),
        },
        (Count::Failed, Some(meta)) => EventKind::TaskFailed {
            uuid,
            exception: Exception::decode_lossy(&meta.result).python_repr(),
            // Those found by the worker have none, and monitors look for one.
            traceback: Some(meta.traceback.clone().unwrap_or_default()),
        },
        (Count::Retried, Some(meta)) => EventKind::TaskRetried {
            uuid,
            exception: Exception::decode_lossy(&meta.result).python_repr(),
            traceback: meta.traceback.clone(),
        },
        (Count::Revoked, Some(meta)) => {
            let why = Exception::decode_lossy(&meta.result).message().unwrap_or_default();
            // What the signal would have been; a run in Rust is told to stop.
            let terminated = why == "terminated";
            let signum = terminated.then_some(SIGTERM);
            EventKind::TaskRevoked { uuid, terminated, signum, expired: why == "expired" }
        }
        (Count::HandedBack, _) => match &transaction.fence.as_ref()?.then {
            // Counted: it was the task that gave it back.
            Then::Requeue { counted: true, .. } => EventKind::TaskRejected { uuid, requeue: true },
            _ => return None,
        },
        _ => return None,
    })
}

const SIGTERM: i32 = 15;

/// Tells what waits, many at once, until it is over.
pub(super) async fn run(shared: &Shared, mut untold: Untold, done: &CancellationToken) {
    let Some(announcer) = shared.app.store().control.announcer() else { return };
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            _ = untold.recv_many(&mut batch, BATCH_MAX) => {}
            () = done.cancelled() => {
                // The farewell comes at the very end.
                let last = tokio::time::timeout(FAREWELL_PATIENCE, untold.recv_many(&mut batch, BATCH_MAX));
                if last.await.is_err() {
                    return;
                }
            }
        }
        let over = batch.iter().any(|(_, kind)| matches!(kind, EventKind::WorkerOffline(_)));
        let events = batch.drain(..).map(|(at, kind)| shared.event(at, kind)).collect();
        match announcer.announce(events).await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "cannot tell what happens; what is not told is lost to those who listen");
            }
            Err(_) => {}
        }
        if over {
            return;
        }
        let missed = shared.announcer.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            tracing::warn!(missed, "more happens than can be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Json, ResultMeta};

    fn transaction(state: State, result: &str, traceback: Option<&str>) -> Transaction {
        let mut transaction = Transaction::fenced("tag".into(), Then::Ack);
        let result = Json::parse(result).unwrap();
        let traceback = traceback.map(str::to_owned);
        transaction.record.results = vec![
            ResultMeta::new("next", State::Failure, Json::null()),
            ResultMeta { traceback, ..ResultMeta::new("t", state, result) },
        ];
        transaction
    }

    fn told(transaction: &Transaction, count: Count) -> Option<EventKind> {
        end(&TaskId::from("t"), transaction, count, Some(Duration::from_millis(1500)))
    }

    #[test]
    fn ends_are_told_as_celery_tells_them() {
        let uuid = || "t".to_owned();
        let success = transaction(State::Success, r#"["a", null]"#, None);
        assert_eq!(
            told(&success, Count::Succeeded),
            Some(EventKind::TaskSucceeded {
                uuid: uuid(),
                result: "['a', None]".to_owned(),
                runtime: Some(1.5)
            })
        );
        let error = Exception::builtin("ValueError", "boom").encode();
        let failed = transaction(State::Failure, error.as_str(), Some("trace"));
        let exception = || "ValueError('boom')".to_owned();
        let traceback = || Some("trace".to_owned());
        assert_eq!(
            told(&failed, Count::Failed),
            Some(EventKind::TaskFailed { uuid: uuid(), exception: exception(), traceback: traceback() })
        );
        assert_eq!(
            told(&failed, Count::Retried),
            Some(EventKind::TaskRetried { uuid: uuid(), exception: exception(), traceback: traceback() })
        );
        for (exception, terminated, signum, expired) in [
            (Exception::revoked(), false, None, false),
            (Exception::terminated(), true, Some(15), false),
            (Exception::expired(), false, None, true),
        ] {
            let revoked = transaction(State::Revoked, exception.encode().as_str(), None);
            let expected = EventKind::TaskRevoked { uuid: uuid(), terminated, signum, expired };
            assert_eq!(told(&revoked, Count::Revoked), Some(expected));
        }
    }

    #[test]
    fn what_celery_is_silent_about_is_not_told() {
        let requeue = |counted| Transaction::fenced("tag".into(), Then::Requeue { due: None, counted });
        assert_eq!(
            told(&requeue(true), Count::HandedBack),
            Some(EventKind::TaskRejected { uuid: "t".to_owned(), requeue: true })
        );
        assert_eq!(told(&requeue(false), Count::HandedBack), None);
        let ignored = Transaction::fenced("tag".into(), Then::Ack);
        assert_eq!(told(&ignored, Count::Succeeded), None);
        assert_eq!(told(&ignored, Count::Lost), None);
    }

    #[tokio::test]
    async fn tasks_are_told_of_where_that_is_wanted() {
        let (announcer, mut untold) = Announcer::new(false);
        let tell = |announcer: &Announcer| {
            announcer.task(|| Timestamp::UNIX_EPOCH, || EventKind::TaskStarted { uuid: "t".to_owned() });
        };
        tell(&announcer);
        assert!(!announcer.disable(), "it is so");
        assert!(announcer.enable() && !announcer.enable());
        tell(&announcer);
        assert!(announcer.disable());
        tell(&announcer);
        assert!(untold.try_recv().is_ok() && untold.try_recv().is_err(), "one of three");

        let (always, mut untold) = Announcer::new(true);
        assert!(!always.enable() && !always.disable());
        for _ in 0..BOUND + 3 {
            tell(&always);
        }
        assert_eq!(always.missed.load(Ordering::Relaxed), 3);
        assert!(untold.try_recv().is_ok());
    }
}
