//! The store for more than one machine: broker and result backend in one Redis, on Celery's own layout.
//!
//! Python's producers and workers share the queues with us and need to know nothing of it: messages wait on Celery's
//! lists, what is held lies in Celery's `unacked`, results stand where Celery looks for them. What Celery has no place for
//! (leases, delayed messages, dead letters, logs, lists of tasks) stands beside it under keys of our own; `keys` has all
//! of them, with who bounds each.
//!
//! Every move is one Lua script, and one script may carry out many moves: the rules are in `lua/prelude.lua`, once, and
//! the scripts around it take their orders as a flat list of arguments. The modules here write those lists and read the
//! answers. What most tasks are, sent once, taken once and ended well, has three short scripts that do without the rules:
//! `usual`. Messages that are sent at once and are alike are pushed by the command for that, and share a record until each is
//! taken: `batch`. `link` is the way to the server, `line` keeps a connection up, `doorbell` wakes those who wait.
//!
//! **Invariant:** an envelope is on a list, in `unacked` or in `celeriac:messages`; moving it is one script, and
//! pushing a batch one transaction.
//! **Invariant:** nothing that was taken off a list exists only in an answer: reserving writes `unacked` and the lease.
//! **Invariant:** what is known of a task is derived from the message where a Python producer wrote it.
//! **Absent on purpose:** blocking pops, transactions with WATCH, Redis's own idea of the time, and key expiry where a
//! record of ours still points to the key.

mod address;
mod backend;
mod batch;
mod broker;
mod catalog;
mod connect;
mod control;
mod declare;
mod doorbell;
mod election;
mod fault;
mod keys;
mod known;
mod line;
mod link;
mod logged;
mod observer;
mod pack;
mod pidbox;
mod presence;
mod rights;
mod script;
mod seek;
mod subscription;
mod transact;
mod unheard;
mod usual;
mod value;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Value;

use self::broker::Turns;
use self::declare::Declared;
use self::link::{Link, LinkOptions};
use self::pack::Pack;
use self::pidbox::Mailbox;
use self::script::Script;
use self::seek::Sought;
use self::unheard::Unheard;
use crate::clock::{SharedClock, Timestamp};
use crate::store::Result;

/// How a [`RedisStore`] is set.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Celery's `global_keyprefix` of `broker_transport_options`, verbatim. In a cluster it must have a hash tag, as
    /// `{celery}:`. Default: none.
    pub global_keyprefix: String,
    /// Celery's `global_keyprefix` of `result_backend_transport_options`; `_` is appended unless it ends in one of
    /// `: _ - .`, as Celery does. Default: none.
    pub result_keyprefix: String,
    /// How long results and chords are kept by Redis; `None` for ever. Celery's `result_expires`. Default: one day.
    pub result_expires: Option<Duration>,
    /// Records kept in the log of each task; older ones are trimmed. At least 1. Default: 100,000.
    pub log_bound: u64,
    /// Batches of records kept in the feed of all tasks; older ones are trimmed. At least 1. Default: 100,000.
    pub feed_bound: u64,
    /// How long a connection may take to be made. Default: 3 s.
    pub connect_timeout: Duration,
    /// How long an answer may take. Default: 10 s.
    pub response_timeout: Duration,
    /// How long a call waits for a server that is away before it fails as unavailable. Default: 2 s.
    pub patience: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        let LinkOptions { connect_timeout, response_timeout, patience, .. } = LinkOptions::default();
        Self {
            global_keyprefix: String::new(),
            result_keyprefix: String::new(),
            result_expires: Some(Duration::from_secs(24 * 3600)),
            log_bound: 100_000,
            feed_bound: 100_000,
            connect_timeout,
            response_timeout,
            patience,
        }
    }
}

/// A store in Redis: broker, result backend, and the atomic step over both.
pub struct RedisStore {
    /// For work that goes on elsewhere.
    me: Weak<Self>,
    link: Arc<Link>,
    options: RedisOptions,
    clock: SharedClock,
    turns: Turns,
    /// The last reservation left nothing, as far as it tells: it found one message or none.
    emptied: AtomicBool,
    /// So many reservations more go by all the rules at once.
    by_rules: AtomicU32,
    /// So many reservations are under way.
    reserving: AtomicU32,
    declared: Declared,
    consumed: Declared,
    unheard: Unheard,
    sought: Sought,
    mailbox: Arc<Mailbox>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("link", &self.link)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// The schemes of URLs that name a Redis.
    pub const SCHEMES: [&'static str; 9] =
        ["redis", "rediss", "valkey", "valkeys", "redis+socket", "redis+unix", "unix", "socket", "sentinel"];

    /// Connects to the Redis at `url`: `redis://[user:password@]host:port/db`, `rediss://…` for TLS,
    /// `redis+socket:///path`, or `sentinel://host:port,host:port/service`.
    ///
    /// # Errors
    /// [`Error::Open`](crate::store::Error::Open) for a URL, a server or credentials that will not do, with the remedy; [`Error::Unavailable`](crate::store::Error::Unavailable)
    /// when nobody answers.
    pub async fn connect(url: &str, options: RedisOptions, clock: SharedClock) -> Result<Arc<Self>> {
        let link = Link::connect(url, Self::link_options(&options)).await?;
        let mailbox = Mailbox::new(link.clone(), clock.clone());
        let (turns, declared, consumed) = (Turns::default(), Declared::default(), Declared::default());
        let (unheard, sought) = (Unheard::default(), Sought::default());
        let (emptied, by_rules, reserving) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        Ok(Arc::new_cyclic(|me| {
            let me = me.clone();
            Self {
                me,
                link,
                options,
                clock,
                turns,
                emptied,
                by_rules,
                reserving,
                declared,
                consumed,
                unheard,
                sought,
                mailbox,
            }
        }))
    }

    fn link_options(options: &RedisOptions) -> LinkOptions {
        let mut result_prefix = options.result_keyprefix.clone();
        if !result_prefix.is_empty() && !result_prefix.ends_with([':', '_', '-', '.']) {
            result_prefix.push('_');
        }
        LinkOptions {
            prefix: options.global_keyprefix.clone(),
            result_prefix,
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            patience: options.patience,
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What every script is told first.
    fn preamble(&self, now: Timestamp) -> Vec<Vec<u8>> {
        let keys = self.link.keys();
        vec![
            keys.prefix().as_bytes().to_vec(),
            keys.result_prefix().as_bytes().to_vec(),
            value::micros(now).to_string().into_bytes(),
        ]
    }

    /// Has a script carry out one order.
    async fn order(&self, script: &Script, now: Timestamp, order: Pack) -> Result<Value> {
        let mut args = self.preamble(now);
        args.push(order.into_bytes());
        self.link.run(script, &args).await
    }

    /// How the store is set.
    #[must_use]
    pub fn options(&self) -> &RedisOptions {
        &self.options
    }
}
