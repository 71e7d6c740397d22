//! Queues made known: to this store's lists, and to Celery's clients by their bindings.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::RedisStore;
use super::keys::SEPARATOR;
use super::value::{self, seconds};
use crate::id::QueueName;
use crate::store::Result;

/// A queue in use is declared anew after so long, so that a sweep takes it for one in use.
const ANEW: Duration = Duration::from_secs(3600);
/// Past so many queues all are declared anew.
const REMEMBERED_MAX: usize = 10_000;

/// That a queue is consumed from is told anew after so long; who publishes believes it for some more.
const CONSUMED_ANEW: Duration = Duration::from_secs(30);
/// So many keys are looked through for Celery's bindings.
const SCANNED_MAX: usize = 100_000;

/// When this process declared which queue.
#[derive(Debug, Default)]
pub(super) struct Declared(Mutex<HashMap<QueueName, Instant>>);

impl Declared {
    fn is_fresh(&self, queue: &QueueName, anew: Duration) -> bool {
        let declared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        declared.get(queue).is_some_and(|at| at.elapsed() < anew)
    }

    fn note(&self, queue: &QueueName) {
        let mut declared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if declared.len() >= REMEMBERED_MAX {
            declared.clear();
        }
        declared.insert(queue.clone(), Instant::now());
    }
}

impl RedisStore {
    /// Makes a queue known as a durable one, bound as Celery binds it: to the exchange of its own name, by its own name.
    /// In both tables, since a Python sweep deletes what is only in the first.
    pub(super) async fn declare(&self, queue: &QueueName) -> Result<()> {
        if self.declared.is_fresh(queue, ANEW) {
            return Ok(());
        }
        let keys = self.link.keys();
        let member = format!("{queue}{SEPARATOR}{SEPARATOR}{queue}");
        let mut declare = redis::pipe();
        declare.atomic();
        for table in ["_kombu.binding", "_kombu.binding_permanent"] {
            declare.cmd("SADD").arg(format!("{}{table}.{queue}", keys.prefix())).arg(&member);
        }
        declare.cmd("ZADD").arg(keys.own("queues")).arg(seconds(self.now())).arg(queue.as_str());
        // Declared twice is declared once.
        self.link.read_all("declare a queue", &declare).await?;
        self.declared.note(queue);
        Ok(())
    }

    /// Says that a worker of ours consumes from a queue.
    pub(super) async fn consume(&self, queue: &QueueName) -> Result<()> {
        if self.consumed.is_fresh(queue, CONSUMED_ANEW) {
            return Ok(());
        }
        self.declare(queue).await?;
        let mut consume = redis::cmd("ZADD");
        consume.arg(self.link.keys().own("consumers")).arg(seconds(self.now())).arg(queue.as_str());
        self.link.read("declare a queue", &consume).await?;
        self.consumed.note(queue);
        Ok(())
    }

    /// Finds the queues that only Celery's clients have declared; says how many were new.
    pub(super) async fn find_queues(&self) -> Result<usize> {
        let keys = self.link.keys();
        let tables = format!("{}_kombu.binding.", keys.prefix());
        let mut pattern = String::new();
        for character in tables.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push('*');
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        for _ in 0..SCANNED_MAX / 1_000 {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1_000);
            let answer = self.link.read("find queues", &scan).await?;
            let [next, some] = value::items(&answer) else { return Err(self.link.unexpected("find queues")) };
            found.extend(value::items(some).iter().filter_map(value::text).map(str::to_owned));
            cursor = value::lossy(next).into_owned();
            if cursor == "0" {
                break;
            }
        }
        let mut look = redis::pipe();
        // Mailboxes and events are no queues of tasks.
        for table in found.iter().filter(|table| !table.ends_with("pidbox") && !table.ends_with("celeryev")) {
            look.cmd("SMEMBERS").arg(table);
        }
        if look.is_empty() {
            return Ok(0);
        }
        let mut note = redis::cmd("ZADD");
        note.arg(keys.own("queues")).arg("NX");
        let bound = self.link.read_all("find queues", &look).await?;
        for member in bound.iter().flat_map(value::items).filter_map(value::text) {
            if let Some((_, queue)) = member.rsplit_once(SEPARATOR) {
                note.arg(seconds(self.now())).arg(queue);
            }
        }
        let added = self.link.command("find queues", &note).await?;
        Ok(usize::try_from(value::integer(&added)).unwrap_or(0))
    }
}
