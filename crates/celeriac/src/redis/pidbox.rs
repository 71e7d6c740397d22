//! kombu's pidbox: what Python's tools and workers say to workers and hear from them.
//!
//! ```text
//!   Python's tools ── PUBLISH /0.celery.pidbox ──► listener ──► log of commands ──► our workers
//!        ▲                    ▲                                      ▲
//!        │ LPUSH to the       └── send (our tools) ──────────────────┘
//!        │ queue bound to it
//!   answers of ours, where reply_to says so
//! ```
//!
//! Every process with a worker listens, and all bring what they hear into the log; the first of them succeeds, by the
//! delivery tag of the message. So a command is done once by each worker, and one that lost its connection for a moment
//! finds it all the same.

use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::control::millis;
use super::election::{DUTIES_MAX, Elections};
use super::keys::{Keys, SEPARATOR};
use super::link::Link;
use super::logged::{LoggedCommand, node_of};
use super::presence::Presence;
use super::script::Script;
use super::subscription::{Channel, Heard, Subscription};
use super::value::{self, items};
use crate::clock::{SharedClock, Timestamp, after};
use crate::control::{Announce, COMMAND_BYTES_MAX, COMMANDS_KEPT_MAX, Candidacy, Command, Reply};
use crate::protocol::event::{self, Event};
use crate::protocol::pidbox::{self, ReplyTo, Request};
use crate::protocol::{Json, JsonMap, LamportClock, RawMessage};
use crate::store::{Error, Result};

/// How long the log of commands is kept after the last one, and each one is known: longer than any of them counts.
const LOG_TTL: Duration = Duration::from_secs(3_600);
/// How long a command of Python's counts. Its own expiry is by a clock that may be wrong, and Python's workers do not look
/// at it.
const FOREIGN_COUNTS: Duration = Duration::from_secs(30);
/// How long a queue for answers is bound at most, beyond the command's own time. Longer than Python's own ten seconds.
const BOUND_FOR: Duration = Duration::from_secs(60);
/// How long an answer lies in a queue whose owner may be gone.
const ANSWER_TTL: Duration = Duration::from_secs(60);
/// Old bindings taken away at once.
const REAPED_MAX: usize = 100;
/// As kombu: a table of bindings that expire is not swept sooner.
const BINDING_DEADLINE: Duration = Duration::from_secs(3_600);
/// How long one waits to be subscribed.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

static COMMAND: LazyLock<Script> =
    LazyLock::new(|| Script::plain("send a command", include_str!("lua/command.lua")));

/// Remote control, presence and events of one database.
pub(super) struct Mailbox {
    link: Arc<Link>,
    clock: SharedClock,
    /// Orders events. Requests and answers have a counter of their own, as kombu's.
    lamport: LamportClock,
    messages: LamportClock,
    pub(super) presence: Presence,
    pub(super) elections: Elections,
    /// This mailbox, for the loops it starts.
    own: Weak<Self>,
    listener: Background,
    pub(super) watcher: Background,
}

/// A loop that is started when it is needed, and ends with its owner.
#[derive(Default)]
pub(super) struct Background(Mutex<Option<(AbortHandle, watch::Receiver<bool>)>>);

impl Background {
    /// Starts the loop unless it runs; the answer becomes true when it is ready.
    pub(super) fn start(
        &self,
        start: impl FnOnce(watch::Sender<bool>) -> AbortHandle,
    ) -> watch::Receiver<bool> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, ready) = running.get_or_insert_with(|| {
            let (tell, ready) = watch::channel(false);
            (start(tell), ready)
        });
        ready.clone()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let running = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((running, _)) = running.take() {
            running.abort();
        }
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(super) fn new(link: Arc<Link>, clock: SharedClock) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            link,
            clock,
            lamport: LamportClock::new(),
            messages: LamportClock::new(),
            presence: Presence::default(),
            elections: Elections::default(),
            own: own.clone(),
            listener: Background::default(),
            watcher: Background::default(),
        })
    }

    /// This mailbox, for a loop that must not keep it alive.
    pub(super) fn own(&self) -> Weak<Self> {
        self.own.clone()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn keys(&self) -> &Keys {
        self.link.keys()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The log of commands.
    pub(super) fn log_key(&self) -> String {
        self.keys().own("commands")
    }

    /// The number of the newest command.
    pub(super) fn counter_key(&self) -> String {
        self.keys().own("commands:last")
    }

    /// The answers of workers of ours.
    pub(super) fn replies_key(&self, ticket: &str) -> String {
        self.keys().own(&format!("replies:{ticket}"))
    }

    /// The answers of Python's workers: the queue that is bound for a ticket.
    pub(super) fn python_replies_key(&self, ticket: &str) -> String {
        self.keys().list(&ReplyTo::queue_name(ticket), 0)
    }

    /// What says that a command is in the log.
    fn known_key(&self, tag: &str) -> String {
        self.keys().own(&format!("command:{tag}"))
    }

    fn reply_to_key(&self, ticket: &str) -> String {
        self.keys().own(&format!("reply-to:{ticket}"))
    }

    fn bindings_key(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.keys().prefix())
    }

    fn bound_key(&self) -> String {
        self.keys().own("reply-queues")
    }

    /// Sends a command to all workers that are meant, ours and Python's.
    pub(super) async fn send(&self, command: &Command) -> Result<()> {
        let to_python = command.destination.as_ref().is_none_or(|names| !names.is_empty());
        if to_python {
            self.bind(&command.ticket, command.expires).await?;
        }
        let tag = fresh();
        let envelope = envelope(&self.request(command).encode(&tag))?;
        let channel = if to_python { self.pidbox_channel() } else { String::new() };
        self.log(&tag, &LoggedCommand::of(command), None, &channel, &envelope).await?;
        Ok(())
    }

    fn request(&self, command: &Command) -> Request {
        Request {
            method: command.method.to_string(),
            arguments: command.arguments.entries().unwrap_or_else(|_| JsonMap::new()),
            destination: command
                .destination
                .as_ref()
                .map(|names| names.iter().map(ToString::to_string).collect()),
            pattern: None,
            ticket: Some(command.ticket.to_string()),
            reply_to: Some(ReplyTo {
                exchange: pidbox::REPLY_EXCHANGE.to_owned(),
                routing_key: command.ticket.to_string(),
            }),
            clock: self.messages.forward(),
            expires: Some(command.expires),
        }
    }

    /// Puts a command into the log unless it is there, and publishes it where a channel is named.
    async fn log(
        &self,
        tag: &str,
        command: &LoggedCommand,
        reply_to: Option<&ReplyTo>,
        channel: &str,
        envelope: &str,
    ) -> Result<bool> {
        let reply_to_key = reply_to.map(|_| self.reply_to_key(&command.ticket)).unwrap_or_default();
        let reply_to = reply_to.map(|to| format!("{}\n{}", to.exchange, to.routing_key)).unwrap_or_default();
        let args = [
            self.known_key(tag),
            self.counter_key(),
            self.log_key(),
            command.to_text(),
            COMMANDS_KEPT_MAX.to_string(),
            millis(LOG_TTL).to_string(),
            reply_to_key,
            reply_to,
            channel.to_owned(),
            envelope.to_owned(),
        ];
        Ok(value::count(&self.link.run(&COMMAND, &args).await?) > 0)
    }

    /// Binds a queue for the answers of Python's workers to a ticket, and takes old bindings away.
    async fn bind(&self, ticket: &str, expires: Timestamp) -> Result<()> {
        self.reap().await?;
        let now = self.now();
        let gone = after(expires.max(now), BOUND_FOR);
        let mut bind = redis::pipe();
        bind.cmd("ZADD").arg(self.bound_key()).arg(value::micros(gone)).arg(ticket);
        bind.cmd("SADD")
            .arg(self.bindings_key(pidbox::REPLY_EXCHANGE))
            .arg(ReplyTo::binding(ticket, SEPARATOR));
        // As kombu for a queue that expires, so that its sweep knows when all of them are gone.
        bind.cmd("ZADD")
            .arg(format!("{}_kombu.binding_deadlines", self.keys().prefix()))
            .arg("GT")
            .arg(after(now, BINDING_DEADLINE).as_millisecond())
            .arg(pidbox::REPLY_EXCHANGE);
        self.link.pipeline("bind a queue for answers", &bind).await?;
        Ok(())
    }

    /// Takes a binding away: answers that come later are dropped by who sends them. One that is on its way may still
    /// make the queue, which goes when its time is over.
    pub(super) async fn unbind(&self, ticket: &str) -> Result<()> {
        let mut unbind = redis::cmd("SREM");
        unbind.arg(self.bindings_key(pidbox::REPLY_EXCHANGE)).arg(ReplyTo::binding(ticket, SEPARATOR));
        self.link.command("unbind a queue for answers", &unbind).await?;
        Ok(())
    }

    /// Takes away bindings and queues for answers whose owners are gone.
    pub(super) async fn reap(&self) -> Result<()> {
        let mut old = redis::cmd("ZRANGEBYSCORE");
        old.arg(self.bound_key()).arg("-inf").arg(value::micros(self.now()));
        old.arg("LIMIT").arg(0).arg(REAPED_MAX);
        let answer = self.link.read("old queues for answers", &old).await?;
        let tickets: Vec<&str> = items(&answer).iter().filter_map(value::text).collect();
        if tickets.is_empty() {
            return Ok(());
        }
        let mut reap = redis::pipe();
        for ticket in tickets {
            reap.cmd("SREM")
                .arg(self.bindings_key(pidbox::REPLY_EXCHANGE))
                .arg(ReplyTo::binding(ticket, SEPARATOR));
            reap.cmd("DEL").arg(self.python_replies_key(ticket));
            reap.cmd("ZREM").arg(self.bound_key()).arg(ticket);
        }
        self.link.pipeline("take old queues for answers away", &reap).await?;
        Ok(())
    }

    /// What Python's workers have answered so far.
    pub(super) async fn python_replies(&self, ticket: &str) -> Result<Vec<pidbox::Reply>> {
        let mut range = redis::cmd("LRANGE");
        // The first to answer lies at the end.
        range.arg(self.python_replies_key(ticket)).arg(0).arg(-1);
        let answer = self.link.read("answers", &range).await?;
        let mut replies = Vec::new();
        for envelope in items(&answer).iter().rev().filter_map(value::bytes) {
            match RawMessage::from_envelope(envelope).and_then(|raw| pidbox::Reply::decode(&raw)) {
                Ok(read) => {
                    for reply in read {
                        self.messages.adjust(reply.clock);
                        replies.push(reply);
                    }
                }
                Err(error) => tracing::warn!(%error, "an answer of a Python worker cannot be read, left out"),
            }
        }
        Ok(replies)
    }

    /// Answers where Python asked; `false` when it was not Python that asked.
    pub(super) async fn reply_to_python(&self, ticket: &str, reply: &Reply) -> Result<bool> {
        let mut get = redis::cmd("GET");
        get.arg(self.reply_to_key(ticket));
        let answer = self.link.read("where answers go", &get).await?;
        let Some((exchange, routing_key)) = value::text(&answer).and_then(|to| to.split_once('\n')) else {
            return Ok(false);
        };
        let to = ReplyTo { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() };
        let mut members = redis::cmd("SMEMBERS");
        members.arg(self.bindings_key(&to.exchange));
        let answer = self.link.read("bindings", &members).await?;
        let bound = items(&answer).iter().filter_map(value::text);
        let queues: Vec<&str> = bound.filter_map(|member| to.queue_of(member, SEPARATOR)).collect();
        if queues.is_empty() {
            // Whoever asked has stopped waiting.
            return Ok(true);
        }
        let answer = pidbox::Reply {
            node: node_of(&reply.worker).to_owned(),
            worker: Some(reply.worker.as_str().to_owned()),
            content: reply.content.clone(),
            ticket: ticket.to_owned(),
            clock: self.messages.forward(),
        };
        let envelope = envelope(&answer.encode(&to))?;
        let mut push = redis::pipe();
        for queue in queues {
            let list = self.keys().list(queue, 0);
            push.cmd("LPUSH").arg(&list).arg(&envelope);
            // Its owner takes it within a second, or is gone.
            push.cmd("PEXPIRE").arg(&list).arg(millis(ANSWER_TTL));
        }
        self.link.pipeline("answer Python", &push).await?;
        Ok(true)
    }

    /// Listens to what is broadcast, from the first call on and for as long as the store lives.
    pub(super) async fn listen(&self) -> Result<()> {
        let start = |ready| {
            let heard = self
                .link
                .subscribe(vec![Channel::Named(self.pidbox_channel()), Channel::Named(self.own_channel())]);
            self.link.runtime().spawn(listen(self.own(), heard, ready)).abort_handle()
        };
        match is_ready(self.listener.start(start), SUBSCRIBE_PATIENCE).await {
            true => Ok(()),
            false => Err(Error::unavailable("listen for commands", "the subscription is not there yet")),
        }
    }

    async fn hear(&self, payload: &[u8]) {
        let heard = RawMessage::from_envelope(payload).and_then(|raw| Request::decode(&raw));
        let (request, tag) = match heard {
            Ok(heard) => heard,
            Err(error) => {
                tracing::warn!(%error, "a command cannot be read, left out");
                return;
            }
        };
        self.messages.adjust(request.clock);
        // As kombu's workers, which count what they are told as something that happened.
        self.lamport.forward();
        if request.method == "election" {
            self.tell(self.elections.called(&request, self.now())).await;
        }
        if request.arguments.to_json().as_str().len() > COMMAND_BYTES_MAX {
            tracing::warn!(method = request.method, "a command has too many arguments, left out");
            return;
        }
        // One without a tag cannot be told from another, but by its ticket.
        let Some(tag) = tag.or_else(|| request.ticket.clone()) else {
            tracing::warn!(method = request.method, "a command has no delivery tag, left out");
            return;
        };
        let reply_to = request.reply_to.clone().filter(|_| request.ticket.is_some());
        let command = LoggedCommand::of_foreign(request, after(self.now(), FOREIGN_COUNTS));
        if let Err(error) = self.log(&tag, &command, reply_to.as_ref(), "", "").await {
            tracing::warn!(method = %command.method, %error, "a command is lost");
        }
    }

    /// Tells events that nothing depends on.
    pub(super) async fn tell(&self, events: Vec<Event>) {
        if let Err(error) = self.announce(events).await {
            tracing::warn!(%error, "cannot tell of an election");
        }
    }

    /// Asks Python's workers alone, and waits for as many answers as there are of them.
    pub(super) async fn ask_python(
        &self,
        methods: &[&str],
        wait: Duration,
    ) -> Result<Vec<Vec<pidbox::Reply>>> {
        let expires = after(self.now(), wait);
        let mut asked = Vec::with_capacity(methods.len());
        for method in methods {
            let ticket = fresh();
            self.bind(&ticket, expires).await?;
            asked.push((ticket, *method));
        }
        // Ours hear it as well, and know it for one that is none of theirs.
        let mut publish = redis::pipe();
        for (ticket, method) in &asked {
            let command = Command {
                ticket: ticket.as_str().into(),
                method: (*method).into(),
                arguments: Json::parse("{}").unwrap_or_default(),
                destination: None,
                expires,
            };
            let tag = fresh();
            publish.cmd("SET").arg(self.known_key(&tag)).arg("").arg("PX").arg(millis(LOG_TTL));
            let message = self.request(&command).encode(&tag);
            publish.cmd("PUBLISH").arg(self.pidbox_channel()).arg(envelope(&message)?);
        }
        publish.cmd("PUBSUB").arg("NUMSUB").arg(self.own_channel());
        let answers = self.link.pipeline("ask Python's workers", &publish).await?;
        let heard = answers.get(1).map_or(0, value::count);
        let own = answers.last().map_or(0, |answer| items(answer).get(1).map_or(0, value::count));
        let expected = usize::try_from(heard.saturating_sub(own)).unwrap_or_default();
        let deadline = tokio::time::Instant::now() + wait;
        let mut replies = Vec::with_capacity(asked.len());
        for (ticket, _) in asked {
            let mut bell = self.link.doorbell().bell(vec![self.python_replies_key(&ticket)]);
            let found = loop {
                if expected == 0 {
                    break Vec::new();
                }
                bell.arm().await?;
                let found = self.python_replies(&ticket).await?;
                if found.len() >= expected || tokio::time::Instant::now() >= deadline {
                    break found;
                }
                bell.wait(deadline).await;
            };
            self.unbind(&ticket).await?;
            replies.push(found);
        }
        Ok(replies)
    }

    /// Where commands are broadcast.
    fn pidbox_channel(&self) -> String {
        self.channel(pidbox::EXCHANGE)
    }

    /// Where nothing is said: who subscribes to it beside the pidbox is one of ours, and can be counted.
    fn own_channel(&self) -> String {
        self.keys().own("listeners")
    }

    /// Hears of another node's clock.
    pub(super) fn hear_clock(&self, other: u64) {
        self.lamport.adjust(other);
    }

    /// The channel of a fanout exchange; a routing key follows after a slash.
    pub(super) fn channel(&self, exchange: &str) -> String {
        format!("{}/{}.{exchange}", self.keys().prefix(), self.link.db())
    }
}

async fn listen(mailbox: Weak<Mailbox>, mut heard: Subscription, ready: watch::Sender<bool>) {
    while let Some(heard) = heard.next().await {
        let Some(mailbox) = mailbox.upgrade() else { return };
        match heard {
            Heard::Subscribed => {
                let _ = ready.send(true);
            }
            Heard::Message { payload, .. } => mailbox.hear(&payload).await,
        }
    }
}

#[async_trait]
impl Announce for Mailbox {
    async fn announce(&self, mut events: Vec<Event>) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        for event in &mut events {
            event.clock = self.lamport.forward();
        }
        let mut publish = redis::pipe();
        for message in event::encode(&events) {
            let channel = format!("{}/{}", self.channel(event::EXCHANGE), message.routing_key);
            publish.cmd("PUBLISH").arg(channel).arg(envelope(&message.message)?);
        }
        self.link.pipeline("announce", &publish).await?;
        Ok(())
    }

    fn clock(&self) -> &LamportClock {
        &self.lamport
    }

    fn stand(&self, model: Event) -> Candidacy {
        let (duties, elected) = mpsc::channel(DUTIES_MAX);
        self.elections.stand(model, duties);
        self.watch();
        Candidacy::new(elected)
    }
}

/// Waits until a loop is ready, but not for ever.
pub(super) async fn is_ready(mut ready: watch::Receiver<bool>, patience: Duration) -> bool {
    let waited = tokio::time::timeout(patience, ready.wait_for(|ready| *ready)).await;
    matches!(waited, Ok(Ok(_)))
}

/// What tells a message or a ticket from any other.
fn fresh() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

fn envelope(message: &RawMessage) -> Result<String> {
    message.to_envelope().map_err(|error| unwritable(&error))
}

fn unwritable(error: &crate::protocol::DecodeError) -> Error {
    Error::Corrupt { what: "a message of remote control".to_owned(), why: error.to_string() }
}
