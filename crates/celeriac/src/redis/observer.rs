//! Tasks that others run: what Python's workers tell of them, written beside what ours do.
//!
//! ```text
//!   subscribe to task.* ──► have Python's workers tell ──► events ──► all there are, in one script ─┐
//!                                  ▲  └── every half minute ▲──────────────────────────────────────┘
//!                                  └── a worker came ───────┘
//! ```
//!
//! Python's workers tell of tasks when they were started with `-E`, or are asked to, as Flower asks them. What is missed
//! is missed: results stand in Redis all the same.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::pack::Pack;
use super::subscription::{Channel, Heard, Subscription};
use super::{RedisStore, script, value};
use crate::protocol::event::{self, Event, EventKind};
use crate::protocol::{Json, RawMessage};
use crate::store::Result;

/// How often workers are asked to tell, one of whom may have come unheard.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long they may take to answer that they will.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// So many messages are noted at a time.
const GATHERED_MAX: usize = 100;

impl RedisStore {
    /// Notes what others tell, until `stop`.
    pub(super) async fn observe_until(&self, stop: &CancellationToken) {
        let channel = self.mailbox.channel(event::EXCHANGE);
        let mut heard = self.link.subscribe(vec![
            Channel::Pattern(format!("{channel}/task.*")),
            Channel::Named(format!("{channel}/worker.online")),
        ]);
        let mut ask = tokio::time::interval(ASK_AGAIN);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut subscribed = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ask.tick(), if subscribed => self.have_them_tell().await,
                first = heard.next() => {
                    let Some(first) = first else { return };
                    let (events, again) = gather(first, &mut heard);
                    subscribed |= again;
                    if again || events.iter().any(|event| matches!(event.kind, EventKind::WorkerOnline(_))) {
                        ask.reset_immediately();
                    }
                    if let Err(error) = self.note(&events).await {
                        tracing::debug!(%error, "what others tell of their tasks cannot be written, left out");
                    }
                }
            }
        }
    }

    async fn have_them_tell(&self) {
        if let Err(error) = self.mailbox.ask_python(&["enable_events"], ANSWER_PATIENCE).await {
            tracing::debug!(%error, "cannot ask Python's workers to tell of their tasks");
        }
    }

    async fn note(&self, events: &[Event]) -> Result<()> {
        let mut args = self.preamble(self.now());
        args.push(self.settings());
        let before = args.len();
        args.extend(events.iter().filter_map(order_of));
        if args.len() > before {
            self.link.run(&script::OBSERVE, &args).await?;
        }
        Ok(())
    }
}

/// The events in a message and in those that are there besides, and whether the subscription was made anew.
fn gather(first: Heard, heard: &mut Subscription) -> (Vec<Event>, bool) {
    let (mut events, mut again) = (Vec::new(), false);
    let mut next = Some(first);
    for _ in 0..GATHERED_MAX {
        match next {
            Some(Heard::Subscribed) => again = true,
            Some(Heard::Message { payload, .. }) => {
                match RawMessage::from_envelope(&payload).and_then(|raw| event::decode(&raw)) {
                    Ok(read) => events.extend(read.into_iter().flatten()),
                    Err(error) => tracing::debug!(%error, "an event cannot be read, left out"),
                }
            }
            None => break,
        }
        next = heard.try_next();
    }
    (events, again)
}

/// What the script is told of an event; `None` of one that says nothing of where a task stands.
fn order_of(event: &Event) -> Option<Vec<u8>> {
    let (id, what, name, queue, state) = match &event.kind {
        EventKind::TaskSent(sent) => (&sent.uuid, "sent", &*sent.name, &*sent.queue, None),
        EventKind::TaskReceived(received) => (&received.uuid, "received", &*received.name, "", None),
        EventKind::TaskStarted { uuid } => (uuid, "started", "", "", Some("STARTED")),
        EventKind::TaskRetried { uuid, .. } => (uuid, "retried", "", "", Some("RETRY")),
        EventKind::TaskRejected { uuid, requeue: true } => (uuid, "retried", "", "", None),
        EventKind::TaskSucceeded { uuid, .. }
        | EventKind::TaskFailed { uuid, .. }
        | EventKind::TaskRejected { uuid, requeue: false }
        | EventKind::TaskRevoked { uuid, .. } => (uuid, "ended", "", "", None),
        _ => return None,
    };
    let data = state.map(|state| {
        let (state, worker) = (Json::string(state), Json::string(&event.hostname));
        format!("{{\"state\": {state}, \"worker\": {worker}}}")
    });
    let mut order = Pack::array(7);
    order.text(id).text(what).text(value::micros(event.timestamp).to_string()).text(&event.hostname);
    order.text(name).text(queue).text(data.as_deref().unwrap_or_default());
    Some(order.into_bytes())
}
