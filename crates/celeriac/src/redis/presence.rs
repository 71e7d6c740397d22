//! Which workers live: ours by their cards, Python's by their heartbeats and by what they answer.
//!
//! ```text
//!   subscribe to worker.* ──► ask Python's workers ──► heartbeat: keep, or ask who is new ─┐
//!                                   ▲  └── every half minute                                │
//!                                   └───────────────────────────────────────────────────────┘
//! ```
//!
//! Nobody watches until somebody has asked which workers there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::control::millis;
use super::pidbox::{Mailbox, is_ready};
use super::subscription::{Channel, Heard, Subscription};
use super::value::{self, items};
use crate::clock::{Timestamp, after, until};
use crate::control::{IDENT, Report, WorkerCard};
use crate::id::{QueueName, WorkerName};
use crate::protocol::event::{self, Event, EventKind, Heartbeat};
use crate::protocol::{Json, RawMessage, pidbox};
use crate::store::Result;

/// How long Redis keeps a card beyond its time.
const CARD_GRACE: Duration = Duration::from_secs(60);
/// How often Python's workers are asked anew how they stand.
const REFRESH: Duration = Duration::from_secs(30);
/// How long they may take to answer, as Celery's tools give them.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long the first to ask which workers there are waits until Python's have answered.
const FIRST_LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// So many workers of Python's are remembered.
const NODES_MAX: usize = 10_000;
/// As Celery: a worker counts as gone when two heartbeats were missed.
const MISSED: f64 = 2.0;

/// Python's workers, as far as this process knows.
#[derive(Default)]
pub(super) struct Presence(Mutex<HashMap<String, Node>>);

/// A worker of Python's.
#[derive(Debug, Clone)]
struct Node {
    pid: u32,
    beat: Timestamp,
    expires: Timestamp,
    version: Box<str>,
    running: u32,
    /// What it has answered; a worker that only beats is not shown: nobody knows what it consumes.
    details: Option<Details>,
}

#[derive(Debug, Clone, Default)]
struct Details {
    queues: Vec<QueueName>,
    tasks: Vec<Box<str>>,
    concurrency: u32,
    started: Timestamp,
}

impl Presence {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cards(&self, now: Timestamp) -> Vec<WorkerCard> {
        let mut nodes = self.lock();
        nodes.retain(|_, node| node.expires > now);
        nodes.iter().filter_map(|(name, node)| node.card(name)).collect()
    }

    /// Notes a heartbeat; `true` when it is of a worker that has to be asked what it is.
    fn beat(&self, event: &Event, beat: &Heartbeat, now: Timestamp) -> bool {
        let mut nodes = self.lock();
        if nodes.len() >= NODES_MAX && !nodes.contains_key(&event.hostname) {
            return false;
        }
        let lives = Duration::try_from_secs_f64(beat.freq * MISSED).unwrap_or(REFRESH).max(ANSWER_PATIENCE);
        let expires = after(now, lives);
        let version = format!("{} {}", beat.software.ident, beat.software.version);
        let node = nodes.entry(event.hostname.clone()).or_insert_with(|| Node::new(event.pid, now));
        if node.pid != event.pid {
            *node = Node::new(event.pid, now);
        }
        (node.beat, node.expires) = (now, expires);
        node.version = version.into();
        if let Some(load) = beat.load {
            node.running = u32::try_from(load.active).unwrap_or(u32::MAX);
        }
        node.details.is_none()
    }

    fn leave(&self, hostname: &str) {
        self.lock().remove(hostname);
    }

    /// Notes what workers have answered to `stats`, `active_queues`, `registered` and `active`, in this order.
    fn learn(&self, answers: &[Vec<pidbox::Reply>], now: Timestamp) {
        let [stats, queues, tasks, active] = answers else { return };
        let mut nodes = self.lock();
        for reply in stats {
            // Those of ours that did not know whose question it is have cards; a scheduler has no statistics.
            let Some(stats) = reply.content.to::<Stats>().ok().filter(|_| reply.worker.is_none()) else {
                continue;
            };
            if nodes.len() >= NODES_MAX && !nodes.contains_key(&reply.node) {
                continue;
            }
            let of = |replies: &[pidbox::Reply]| {
                replies.iter().find(|other| other.node == reply.node).map(|other| other.content.clone())
            };
            let node = nodes.entry(reply.node.clone()).or_insert_with(|| Node::new(stats.pid, now));
            if node.pid != stats.pid {
                *node = Node::new(stats.pid, now);
            }
            node.beat = now;
            // Should it send no heartbeats, it is asked again before this is over.
            node.expires = node.expires.max(after(now, REFRESH * 2));
            node.details = Some(Details {
                queues: of(queues).map(|queues| queue_names(&queues)).unwrap_or_default(),
                tasks: of(tasks).map(|tasks| task_names(&tasks)).unwrap_or_default(),
                concurrency: stats.pool.concurrency,
                started: now.checked_sub(jiff::SignedDuration::from_secs(stats.uptime)).unwrap_or(now),
            });
            if let Some(running) = of(active).and_then(|active| active.array_items().ok()) {
                node.running = u32::try_from(running.len()).unwrap_or(u32::MAX);
            }
        }
    }
}

impl Node {
    fn new(pid: u32, now: Timestamp) -> Self {
        Self { pid, beat: now, expires: now, version: PYTHON.into(), running: 0, details: None }
    }

    fn card(&self, name: &str) -> Option<WorkerCard> {
        let Details { queues, tasks, concurrency, started } = self.details.clone()?;
        Some(WorkerCard {
            worker: WorkerName::from(name),
            node: name.into(),
            hostname: name.split_once('@').map_or(name, |(_, host)| host).into(),
            pid: self.pid,
            version: self.version.clone(),
            queues,
            tasks,
            concurrency,
            running: self.running,
            started,
            beat: self.beat,
            expires: self.expires,
            stopping: false,
            // Python's workers count what began, and not how it ended.
            totals: Report::default(),
        })
    }
}

/// What a worker is called that has told nothing else.
const PYTHON: &str = "py-celery";

/// What is read of the answer to `stats`.
#[derive(Deserialize)]
struct Stats {
    pid: u32,
    #[serde(default)]
    uptime: i64,
    #[serde(default)]
    pool: Pool,
}

#[derive(Default, Deserialize)]
struct Pool {
    #[serde(default, rename = "max-concurrency")]
    concurrency: u32,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
}

fn queue_names(answer: &Json) -> Vec<QueueName> {
    let queues = answer.to::<Vec<Queue>>().unwrap_or_default();
    queues.into_iter().map(|queue| QueueName::from(queue.name)).collect()
}

/// The names, which a rate limit may follow in brackets.
fn task_names(answer: &Json) -> Vec<Box<str>> {
    let tasks = answer.to::<Vec<String>>().unwrap_or_default();
    tasks.iter().map(|task| task.split(" [").next().unwrap_or(task).into()).collect()
}

impl Mailbox {
    fn card_key(&self, worker: &str) -> String {
        self.keys().own(&format!("worker:{worker}"))
    }

    fn cards_key(&self) -> String {
        self.keys().own("workers")
    }

    /// Says that a worker lives.
    pub(super) async fn beat(&self, card: &WorkerCard) -> Result<()> {
        let now = self.now();
        let ttl = until(now, card.expires) + CARD_GRACE;
        let worker = card.worker.as_str();
        let mut beat = redis::pipe();
        beat.cmd("SET").arg(self.card_key(worker)).arg(CardText::of(card)).arg("PX").arg(millis(ttl));
        beat.cmd("ZADD").arg(self.cards_key()).arg(value::micros(card.expires)).arg(worker);
        beat.cmd("ZREMRANGEBYSCORE").arg(self.cards_key()).arg("-inf").arg(value::micros(now));
        self.link().pipeline("heartbeat", &beat).await?;
        self.reap().await
    }

    /// Says that a worker is gone.
    pub(super) async fn leave(&self, worker: &WorkerName) -> Result<()> {
        let mut leave = redis::pipe();
        leave.cmd("DEL").arg(self.card_key(worker.as_str()));
        leave.cmd("ZREM").arg(self.cards_key()).arg(worker.as_str());
        self.link().pipeline("leave", &leave).await?;
        Ok(())
    }

    /// The cards of our workers that live.
    pub(super) async fn cards(&self) -> Result<Vec<WorkerCard>> {
        let mut names = redis::cmd("ZRANGEBYSCORE");
        names.arg(self.cards_key()).arg(format!("({}", value::micros(self.now()))).arg("+inf");
        let answer = self.link().read("workers", &names).await?;
        let names: Vec<&str> = items(&answer).iter().filter_map(value::text).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut get = redis::cmd("MGET");
        for name in &names {
            get.arg(self.card_key(name));
        }
        let answer = self.link().read("cards of workers", &get).await?;
        let cards = names.iter().zip(items(&answer));
        Ok(cards.filter_map(|(name, card)| CardText::read(name, value::text(card)?)).collect())
    }

    /// Python's workers. The first call in a process asks them; later ones know, from their heartbeats.
    pub(super) async fn python_workers(&self) -> Vec<WorkerCard> {
        // Where Redis is away ours are not known either, and the caller hears of that.
        is_ready(self.watch(), FIRST_LOOK_PATIENCE).await;
        self.presence.cards(self.now())
    }

    /// Watches the workers, from the first call on and for as long as the store lives.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.watcher.start(|ready| {
            let pattern = format!("{}/worker.*", self.channel(event::EXCHANGE));
            let heard = self.link().subscribe(vec![Channel::Pattern(pattern)]);
            self.link().runtime().spawn(watch_workers(self.own(), heard, ready)).abort_handle()
        })
    }

    /// Asks Python's workers how they stand.
    async fn look(&self) {
        match self.ask_python(&["stats", "active_queues", "registered", "active"], ANSWER_PATIENCE).await {
            Ok(answers) => self.presence.learn(&answers, self.now()),
            Err(error) => tracing::debug!(%error, "cannot ask Python's workers"),
        }
    }

    /// Hears an event of a worker; `true` when Python's workers are to be asked what they are.
    async fn hear_event(&self, payload: &[u8]) -> bool {
        let events = match RawMessage::from_envelope(payload).and_then(|raw| event::decode(&raw)) {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(%error, "an event cannot be read, left out");
                return false;
            }
        };
        let now = self.now();
        let mut is_new = false;
        for event in events.into_iter().flatten() {
            self.hear_clock(event.clock);
            let answers = self.elections.hear(&event, now);
            if !answers.is_empty() {
                self.tell(answers).await;
            }
            match &event.kind {
                EventKind::WorkerOnline(beat) | EventKind::WorkerHeartbeat(beat)
                    if beat.software.ident != IDENT =>
                {
                    is_new |= self.presence.beat(&event, beat, now);
                }
                EventKind::WorkerOffline(beat) if beat.software.ident != IDENT => {
                    self.presence.leave(&event.hostname);
                }
                _ => {}
            }
        }
        is_new
    }
}

async fn watch_workers(mailbox: Weak<Mailbox>, mut heard: Subscription, ready: watch::Sender<bool>) {
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looking: Option<tokio::task::JoinHandle<()>> = None;
    let ready = Arc::new(ready);
    loop {
        let heard = tokio::select! {
            heard = heard.next() => match heard {
                Some(heard) => Some(heard),
                None => return,
            },
            _ = refresh.tick(), if looking.is_some() => None,
        };
        let Some(mailbox) = mailbox.upgrade() else { return };
        let look = match heard {
            Some(Heard::Subscribed) => true,
            Some(Heard::Message { payload, .. }) => mailbox.hear_event(&payload).await,
            None => true,
        };
        // Beside the loop, which must hear of elections at once. Who came meanwhile beats again.
        if look && looking.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            refresh.reset();
            let ready = ready.clone();
            looking = Some(tokio::spawn(async move {
                mailbox.look().await;
                let _ = ready.send(true);
            }));
        }
    }
}

/// A card as Redis keeps it. Times are microseconds since 1970.
#[derive(Serialize, Deserialize)]
struct CardText {
    node: Box<str>,
    hostname: Box<str>,
    pid: u32,
    version: Box<str>,
    queues: Vec<QueueName>,
    tasks: Vec<Box<str>>,
    concurrency: u32,
    running: u32,
    started: i64,
    beat: i64,
    expires: i64,
    stopping: bool,
    /// Succeeded, failed, retried, revoked, handed back, lost.
    totals: [u64; 6],
}

impl CardText {
    fn of(card: &WorkerCard) -> String {
        let WorkerCard {
            worker: _,
            node,
            hostname,
            pid,
            version,
            queues,
            tasks,
            concurrency,
            running,
            started,
            beat,
            expires,
            stopping,
            totals,
        } = card.clone();
        let Report { succeeded, failed, retried, revoked, handed_back, lost } = totals;
        let text = Self {
            node,
            hostname,
            pid,
            version,
            queues,
            tasks,
            concurrency,
            running,
            started: value::micros(started),
            beat: value::micros(beat),
            expires: value::micros(expires),
            stopping,
            totals: [succeeded, failed, retried, revoked, handed_back, lost],
        };
        // Of texts and numbers.
        Json::from_value(&text).unwrap_or_default().as_str().to_owned()
    }

    fn read(worker: &str, text: &str) -> Option<WorkerCard> {
        let read = Json::parse(text).and_then(|json| json.to::<Self>());
        let card = match read {
            Ok(card) => card,
            Err(why) => {
                // Another version wrote it. It is gone when that worker is, and must not hide the others meanwhile.
                tracing::warn!(worker, %why, "what this worker says of itself cannot be read");
                return None;
            }
        };
        let [succeeded, failed, retried, revoked, handed_back, lost] = card.totals;
        let time = |micros| Timestamp::from_microsecond(micros).ok();
        Some(WorkerCard {
            worker: WorkerName::from(worker),
            node: card.node,
            hostname: card.hostname,
            pid: card.pid,
            version: card.version,
            queues: card.queues,
            tasks: card.tasks,
            concurrency: card.concurrency,
            running: card.running,
            started: time(card.started)?,
            beat: time(card.beat)?,
            expires: time(card.expires)?,
            stopping: card.stopping,
            totals: Report { succeeded, failed, retried, revoked, handed_back, lost },
        })
    }
}
