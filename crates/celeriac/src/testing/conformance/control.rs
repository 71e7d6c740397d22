//! Cases about live workers, and what is said to them.

use futures_util::future::join_all;

use super::*;
use crate::clock::{Clock, Timestamp, after};
use crate::control::{
    COMMAND_BYTES_MAX, COMMANDS_KEPT_MAX, COMMANDS_MAX, Command, REPLY_BYTES_MAX, REPLY_KEPT, Reply, Report,
    WorkerCard,
};
use crate::store::Error;
use crate::testing::ManualClock;

/// A card that says the least, and holds for ten seconds.
fn card(name: &str, now: Timestamp) -> WorkerCard {
    WorkerCard {
        worker: worker(name),
        node: "node".into(),
        hostname: "host".into(),
        pid: 1,
        version: "celeriac 0".into(),
        queues: Vec::new(),
        tasks: Vec::new(),
        concurrency: 1,
        running: 0,
        started: now,
        beat: now,
        expires: after(now, SECOND * 10),
        stopping: false,
        totals: Report::default(),
    }
}

/// A command to all that is out of date after ten seconds.
fn command(method: &str, now: Timestamp) -> Command {
    Command {
        ticket: format!("ticket of {method}").into(),
        method: method.into(),
        arguments: json("{}"),
        destination: None,
        expires: after(now, SECOND * 10),
    }
}

fn reply(name: &str, content: &str) -> Reply {
    Reply { worker: worker(name), content: json(content) }
}

async fn workers(store: &Store) -> Vec<String> {
    let cards = store.control.workers().await.unwrap();
    cards.into_iter().map(|card| card.worker.as_str().to_owned()).collect()
}

/// The methods of the commands for a worker that came after a number, and the last of their numbers.
async fn commands(store: &Store, name: &str, after: u64) -> (Vec<String>, u64) {
    let found = store.control.commands(&worker(name), after, Duration::ZERO).await.unwrap();
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{found:?}");
    let last = found.last().map_or(after, |(number, _)| *number);
    (found.into_iter().map(|(_, command)| command.method.into_string()).collect(), last)
}

async fn replies(store: &Store, ticket: &str) -> Vec<Reply> {
    store.control.replies(ticket, usize::MAX, Duration::ZERO).await.unwrap()
}

/// Every field of a card is kept, and the newest card of a worker is the one that is told.
pub async fn a_card_comes_back_as_it_was(store: &Store, clock: &ManualClock) {
    let first = card("celeriac@host/1", clock.now());
    store.control.beat(&first).await.unwrap();
    assert_eq!(store.control.workers().await.unwrap(), [first]);
    clock.advance(SECOND);
    let full = WorkerCard {
        worker: worker("celeriac@host/1"),
        node: "celeriac@host 'ø'".into(),
        hostname: "ø".into(),
        pid: u32::MAX,
        version: "celeriac 0.1.0".into(),
        queues: vec![queue("q"), queue("Ω; --")],
        tasks: vec!["a.b".into(), "c \"d\"".into()],
        concurrency: 8,
        running: 3,
        started: clock.now() - SECOND,
        beat: clock.now(),
        expires: after(clock.now(), Duration::from_millis(7_500)),
        stopping: true,
        totals: Report { succeeded: 1, failed: 2, retried: 3, revoked: 4, handed_back: 5, lost: u64::MAX },
    };
    store.control.beat(&full).await.unwrap();
    assert_eq!(store.control.workers().await.unwrap(), [full]);
}

/// Workers are told by name, from their first card until it expires or they leave.
pub async fn workers_come_and_go(store: &Store, clock: &ManualClock) {
    assert!(workers(store).await.is_empty());
    for name in ["b", "a", "c"] {
        store.control.beat(&card(name, clock.now())).await.unwrap();
    }
    assert_eq!(workers(store).await, ["a", "b", "c"]);
    store.control.leave(&worker("b")).await.unwrap();
    store.control.leave(&worker("never there")).await.unwrap();
    assert_eq!(workers(store).await, ["a", "c"]);
    clock.advance(SECOND * 9);
    store.control.beat(&card("c", clock.now())).await.unwrap();
    assert_eq!(workers(store).await, ["a", "c"]);
    clock.advance(SECOND);
    assert_eq!(workers(store).await, ["c"], "a card holds until it expires, and no longer");
    store.control.beat(&card("a", clock.now())).await.unwrap();
    assert_eq!(workers(store).await, ["a", "c"], "it lives after all");
}

/// A worker reads what came after the number it has got to, in order.
pub async fn commands_come_in_order(store: &Store, clock: &ManualClock) {
    assert_eq!(store.control.commands_end().await.unwrap(), 0);
    let full = Command {
        ticket: "a \"ticket\"".into(),
        method: "rate_limit".into(),
        arguments: json(r#"{"task_name": "ø", "rate_limit": null}"#),
        destination: Some(vec!["other".into(), "w".into()]),
        expires: after(clock.now(), Duration::from_millis(1_500)),
    };
    store.control.send(&full).await.unwrap();
    let first = store.control.commands_end().await.unwrap();
    assert!(first > 0);
    let found = store.control.commands(&worker("w"), 0, FOREVER).await.unwrap();
    assert_eq!(found, [(first, full)]);
    for method in ["one", "two", "three"] {
        store.control.send(&command(method, clock.now())).await.unwrap();
    }
    let (found, last) = commands(store, "w", first).await;
    assert_eq!(found, ["one", "two", "three"]);
    assert_eq!(store.control.commands_end().await.unwrap(), last);
    assert_eq!(commands(store, "another", first).await.0, ["one", "two", "three"], "it is a broadcast");
    assert_eq!(commands(store, "w", last - 1).await.0, ["three"]);
    assert!(commands(store, "w", last).await.0.is_empty());
}

/// A command with a destination is for those it names, by node or incarnation.
pub async fn commands_reach_those_they_name(store: &Store, clock: &ManualClock) {
    for (method, destination) in
        [("none", vec![]), ("node", vec!["n@h"]), ("incarnation", vec!["x", "n@h/1"]), ("other", vec!["n"])]
    {
        let destination = Some(destination.into_iter().map(Box::from).collect());
        store.control.send(&Command { destination, ..command(method, clock.now()) }).await.unwrap();
    }
    assert_eq!(commands(store, "n@h/1", 0).await.0, ["node", "incarnation"]);
    assert_eq!(commands(store, "n@h/2", 0).await.0, ["node"]);
    assert!(commands(store, "m@h/1", 0).await.0.is_empty());
}

/// What is out of date is not done any more, and its number does not come back.
pub async fn commands_expire(store: &Store, clock: &ManualClock) {
    store.control.send(&command("early", clock.now())).await.unwrap();
    clock.advance(SECOND * 5);
    store.control.send(&command("late", clock.now())).await.unwrap();
    let end = store.control.commands_end().await.unwrap();
    clock.advance(SECOND * 5);
    assert_eq!(commands(store, "w", 0).await.0, ["late"]);
    clock.advance(SECOND * 5);
    assert!(commands(store, "w", 0).await.0.is_empty());
    assert_eq!(store.control.commands_end().await.unwrap(), end);
    store.control.send(&command("next", clock.now())).await.unwrap();
    let (found, number) = commands(store, "w", 0).await;
    assert_eq!(found, ["next"]);
    assert!(number > end, "{number} comes after {end}");
}

/// A worker that waits is woken by a command for it, and waits on when there is only one for another.
pub async fn commands_wake(store: &Store, clock: &ManualClock) {
    let waiting = worker("w");
    let to = |name: &str| Command { destination: Some(vec![name.into()]), ..command(name, clock.now()) };
    let send = async {
        store.control.send(&to("other")).await.unwrap();
        store.control.send(&to("w")).await.unwrap();
    };
    let found = meanwhile(store.control.commands(&waiting, 0, FOREVER), send).await.unwrap();
    assert_eq!(found.iter().map(|(_, command)| &*command.method).collect::<Vec<_>>(), ["w"]);
    let brief = Duration::from_millis(5);
    let after = found[0].0;
    let send = async { store.control.send(&to("other")).await.unwrap() };
    assert!(meanwhile(store.control.commands(&waiting, after, brief), send).await.unwrap().is_empty());
}

/// One call gives no more than it may, and of more than are kept the oldest go.
pub async fn commands_are_bounded(store: &Store, clock: &ManualClock) {
    let extra = COMMANDS_MAX as u64 / 2;
    let all: Vec<Command> =
        (0..COMMANDS_KEPT_MAX + extra).map(|n| command(&n.to_string(), clock.now())).collect();
    for sent in join_all(all.iter().map(|command| store.control.send(command))).await {
        sent.unwrap();
    }
    let (mut all_found, mut after) = (0, 0);
    loop {
        let (found, last) = commands(store, "w", after).await;
        assert!(found.len() <= COMMANDS_MAX);
        if found.is_empty() {
            break;
        }
        (all_found, after) = (all_found + found.len() as u64, last);
    }
    assert_eq!(all_found, COMMANDS_KEPT_MAX);
    assert_eq!(after, COMMANDS_KEPT_MAX + extra);
}

/// Answers are gathered under their ticket, one for each worker.
pub async fn replies_are_gathered(store: &Store, _: &ManualClock) {
    assert!(replies(store, "t").await.is_empty());
    let (b, a) = (reply("b", r#"{"ok": "pong"}"#), reply("a", r#"["ø", null]"#));
    store.control.reply("t", &b).await.unwrap();
    store.control.reply("t", &a).await.unwrap();
    store.control.reply("t", &reply("b", "2")).await.unwrap();
    store.control.reply("other", &reply("c", "3")).await.unwrap();
    assert_eq!(replies(store, "t").await, [a.clone(), b.clone()], "the first of a worker counts");
    assert_eq!(replies(store, "other").await, [reply("c", "3")]);
    let enough = woken(store.control.replies("t", 2, FOREVER)).await.unwrap();
    assert_eq!(enough, [a, b]);
    assert!(woken(store.control.replies("none", 0, FOREVER)).await.unwrap().is_empty(), "none is enough");
}

/// Who asked is woken when there are enough answers, and no sooner.
pub async fn replies_wake(store: &Store, _: &ManualClock) {
    let answer = async {
        for name in ["a", "b", "c"] {
            store.control.reply("t", &reply(name, "1")).await.unwrap();
        }
    };
    let found = meanwhile(store.control.replies("t", 3, FOREVER), answer).await.unwrap();
    assert_eq!(found.len(), 3);
    let brief = Duration::from_millis(5);
    assert_eq!(woken(store.control.replies("t", 4, brief)).await.unwrap().len(), 3, "all there are");
}

/// Nobody asks for an answer much later.
pub async fn replies_expire(store: &Store, clock: &ManualClock) {
    store.control.reply("t", &reply("a", "1")).await.unwrap();
    clock.advance(REPLY_KEPT / 2);
    store.control.reply("t", &reply("b", "2")).await.unwrap();
    clock.advance(REPLY_KEPT / 2);
    assert_eq!(replies(store, "t").await, [reply("b", "2")]);
    clock.advance(REPLY_KEPT / 2);
    assert!(replies(store, "t").await.is_empty());
}

/// What is too large is refused whole; up to the bound it is kept.
pub async fn too_much_is_refused(store: &Store, clock: &ManualClock) {
    let text = |bytes: usize| Json::string(&"x".repeat(bytes - 2));
    let sized = |bytes| Command { arguments: text(bytes), ..command("c", clock.now()) };
    let refused = store.control.send(&sized(COMMAND_BYTES_MAX + 1)).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
    store.control.send(&sized(COMMAND_BYTES_MAX)).await.unwrap();
    assert_eq!(commands(store, "w", 0).await.0, ["c"]);
    let sized = |bytes| Reply { worker: worker("w"), content: text(bytes) };
    let refused = store.control.reply("t", &sized(REPLY_BYTES_MAX + 1)).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
    store.control.reply("t", &sized(REPLY_BYTES_MAX)).await.unwrap();
    assert_eq!(replies(store, "t").await, [sized(REPLY_BYTES_MAX)]);
}
