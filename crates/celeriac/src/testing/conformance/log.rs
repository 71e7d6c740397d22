//! Cases about task logs and the feed.

use super::*;
use crate::backend::{LogPage, Watch};
use crate::clock::Clock;
use crate::testing::ManualClock;

/// Makes a task known to the backend, whose log can then be written.
async fn introduce(store: &Store, task_ids: &[&str]) {
    let results = task_ids.iter().map(|task_id| meta(task_id, State::Started)).collect();
    record(store, Record { results, ..Record::default() }).await;
}

async fn append(store: &Store, lines: Vec<LogRecord>) {
    assert_eq!(record(store, Record { log: lines, ..Record::default() }).await, written());
}

async fn page(store: &Store, task_id: &str, after: u64, limit: usize) -> LogPage {
    store.backend.log(&id(task_id), after, limit).await.unwrap().expect("the task is known")
}

/// Positions are 1, 2, 3 … in each log, whoever appends at the same time.
pub async fn positions_have_no_gaps(store: &Store, _: &ManualClock) {
    introduce(store, &["a", "b"]).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..15 {
                let data = format!("[{writer}, {n}]");
                let lines =
                    vec![line("a", "token", &data), line("b", "token", &data), line("a", "more", &data)];
                append(&store, lines).await;
            }
        });
    }
    woken(writers.join_all()).await;
    let (a, b) = (log_of(store, "a").await.unwrap(), log_of(store, "b").await.unwrap());
    assert_eq!((a.len(), b.len()), (120, 60));
    for writer in 0..4 {
        let of_writer = |log: &[String]| -> Vec<String> {
            log.iter().filter(|entry| entry.contains(&format!("[{writer}, "))).cloned().collect()
        };
        let expected = |events: &[&str]| -> Vec<String> {
            (0..15).flat_map(|n| events.iter().map(move |e| format!("{e} [{writer}, {n}]"))).collect()
        };
        assert_eq!(of_writer(&a), expected(&["token", "more"]), "each writer's order holds");
        assert_eq!(of_writer(&b), expected(&["token"]));
    }
}

/// A page begins after a position, ends at a limit, and says where the log stands.
pub async fn pages_are_bounded(store: &Store, clock: &ManualClock) {
    introduce(store, &["a"]).await;
    let empty = page(store, "a", 0, 10).await;
    assert_eq!((empty.entries.len(), empty.first, empty.last, empty.ended), (0, 1, 0, false));
    append(store, (1..=5).map(|n| line("a", "token", &n.to_string())).collect()).await;
    clock.advance(SECOND);
    append(store, vec![line("a", "progress", r#"{"done": 1.0}"#)]).await;
    let positions = |page: &LogPage| page.entries.iter().map(|entry| entry.position).collect::<Vec<_>>();
    assert_eq!(positions(&page(store, "a", 0, 2).await), [1, 2]);
    assert_eq!(positions(&page(store, "a", 2, 10).await), [3, 4, 5, 6]);
    assert_eq!(positions(&page(store, "a", 6, 10).await), [0_u64; 0]);
    assert_eq!(positions(&page(store, "a", 99, 10).await), [0_u64; 0]);
    let last = page(store, "a", 5, 10).await;
    assert_eq!((last.first, last.last, last.ended), (1, 6, false));
    let entry = &last.entries[0];
    assert_eq!((&*entry.event, &entry.data, entry.at), ("progress", &json(r#"{"done": 1.0}"#), clock.now()));
}

/// An id never heard of has no log, and gets none by being written about.
pub async fn an_unknown_task_has_no_log(store: &Store, _: &ManualClock) {
    introduce(store, &["a"]).await;
    append(store, vec![line("never", "token", "1"), line("a", "token", "1")]).await;
    assert_eq!(log_of(store, "never").await, None);
    assert_eq!(log_of(store, "a").await.unwrap(), ["token 1"], "its neighbour is written");
    assert_eq!(store.backend.feed(0, 10).await.unwrap().len(), 1);
    assert_eq!(fetch(store, "never").await, None);
}

/// A log ends with its task: the record that finishes it may still say so, and nothing follows.
pub async fn an_ended_log_takes_no_more(store: &Store, _: &ManualClock) {
    introduce(store, &["a"]).await;
    append(store, vec![line("a", "token", "1")]).await;
    let end = Record { log: vec![line("a", "end", "2")], ..result("a", State::Success) };
    assert_eq!(record(store, end.clone()).await, written());
    assert_eq!(record(store, end).await, written(), "a settlement repeated after its reply was lost");
    append(store, vec![line("a", "token", "3")]).await;
    let page = page(store, "a", 0, 10).await;
    assert_eq!((page.last, page.ended), (2, true));
    assert_eq!(log_of(store, "a").await.unwrap(), ["token 1", "end 2"]);
}

/// A record wakes who waits for it; one that is there ends the wait at once.
pub async fn waiting_for_a_record_to_come(store: &Store, _: &ManualClock) {
    introduce(store, &["a", "b"]).await;
    let watch = |after| Watch::Log { task_id: id("a"), after };
    for known in 0..3 {
        let write = append(store, vec![line("b", "token", "0"), line("a", "token", "1")]);
        let (at_known, past_it) = (watch(known), watch(known));
        assert!(meanwhile(store.backend.wait(&at_known, FOREVER), write).await.unwrap());
        assert!(store.backend.wait(&past_it, Duration::ZERO).await.unwrap());
    }
    assert!(!woken(store.backend.wait(&watch(3), Duration::from_millis(5))).await.unwrap());
}

/// A record of any task moves the feed.
pub async fn waiting_for_the_feed_to_move(store: &Store, _: &ManualClock) {
    introduce(store, &["a"]).await;
    for _ in 0..3 {
        let watch = Watch::Feed { after: store.backend.feed_end().await.unwrap() };
        let write = append(store, vec![line("a", "token", "1")]);
        assert!(meanwhile(store.backend.wait(&watch, FOREVER), write).await.unwrap());
    }
    let watch = Watch::Feed { after: store.backend.feed_end().await.unwrap() };
    assert!(!woken(store.backend.wait(&watch, Duration::from_millis(5))).await.unwrap());
}

/// The feed has the records of all logs, numbered in the order of their writing.
pub async fn the_feed_has_every_record_in_order(store: &Store, _: &ManualClock) {
    assert_eq!(store.backend.feed_end().await.unwrap(), 0);
    publish(store, &["a", "b"]).await;
    introduce(store, &["a", "b"]).await;
    append(store, vec![line("a", "token", "1"), line("b", "token", "2")]).await;
    append(store, vec![line("a", "log", "3")]).await;
    let feed = store.backend.feed(0, 10).await.unwrap();
    let seen: Vec<String> = feed
        .iter()
        .map(|r| format!("{} {} {} {}", r.task_id, r.entry.position, r.entry.event, r.entry.data))
        .collect();
    assert_eq!(seen, ["a 1 token 1", "b 1 token 2", "a 2 log 3"]);
    assert!(feed.windows(2).all(|pair| pair[0].number < pair[1].number), "{feed:?}");
    assert_eq!(store.backend.feed_end().await.unwrap(), feed[2].number);
    if store.transact.is_atomic() {
        assert_eq!(&*feed[0].task, "t");
    }
    assert_eq!(store.backend.feed(feed[0].number, 1).await.unwrap(), feed[1..2]);
    assert!(store.backend.feed(feed[2].number, 10).await.unwrap().is_empty());
    // Numbers are not used again, even when the newest records go.
    record(store, result("a", State::Success)).await;
    store.backend.forget(&ids(&["a"])).await.unwrap();
    append(store, vec![line("b", "token", "4")]).await;
    let newest = store.backend.feed(feed[1].number, 10).await.unwrap();
    assert_eq!(newest.len(), 1);
    assert!(newest[0].number > feed[2].number);
}
