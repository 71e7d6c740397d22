//! The log of a task in Redis: one that is an end and nothing else stands in the task's record, any other in a list.

use celeriac::backend::{Backend, LogPage, LogRecord, Record};
use celeriac::broker::{Broker, Delivery};
use celeriac::protocol::{Json, ResultMeta};
use celeriac::redis::RedisStore;
use celeriac::store::{Then, Transact, Transaction};
use celeriac::{State, TaskId};

use crate::redis::{message, open, reserve};
use crate::redis_server::RedisServer;

async fn deliver(store: &RedisStore, id: &str) -> Delivery {
    store.publish(vec![message(id)]).await.unwrap();
    reserve(store).await.pop().expect("it was published")
}

fn line(id: &str, event: &str, data: &str) -> LogRecord {
    LogRecord { task_id: TaskId::from(id), event: event.into(), data: Json::parse(data).unwrap() }
}

fn end(delivery: &Delivery, before: Vec<LogRecord>) -> Transaction {
    let id = delivery.task_id.as_str();
    let meta = ResultMeta::new(delivery.task_id.clone(), State::Success, Json::parse("7").unwrap());
    let log = before.into_iter().chain([line(id, "end", r#"{"state": "SUCCESS", "result": 7}"#)]).collect();
    let record = Record { results: vec![meta], log, ..Record::default() };
    Transaction { record, ..Transaction::fenced(delivery.tag.clone(), Then::Ack) }
}

async fn commit(store: &RedisStore, transactions: Vec<Transaction>) {
    for outcome in store.commit(transactions).await.unwrap() {
        assert!(outcome.is_committed(), "{outcome:?}");
    }
}

async fn page(store: &RedisStore, id: &str, after: u64) -> LogPage {
    store.log(&TaskId::from(id), after, 100).await.unwrap().expect("it is known")
}

fn told(page: &LogPage) -> Vec<(u64, &str)> {
    page.entries.iter().map(|entry| (entry.position, &*entry.event)).collect()
}

async fn feed(store: &RedisStore) -> Vec<(String, u64)> {
    let records = store.feed(0, 100).await.unwrap();
    records.into_iter().map(|record| (record.task_id.to_string(), record.entry.position)).collect()
}

#[tokio::test]
async fn an_end_alone_needs_no_list() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let delivery = deliver(&store, "a").await;
    assert_eq!(told(&page(&store, "a", 0).await), []);
    commit(&store, vec![end(&delivery, Vec::new())]).await;
    assert_eq!(server.command(&["EXISTS", "celeriac:l:a"]), ":0\r\n");
    let whole = page(&store, "a", 0).await;
    assert_eq!(told(&whole), [(1, "end")]);
    assert_eq!((whole.first, whole.last, whole.ended), (1, 1, true));
    assert_eq!(whole.entries[0].data.as_str(), r#"{"state": "SUCCESS", "result": 7}"#);
    let rest = page(&store, "a", 1).await;
    assert_eq!((told(&rest), rest.last, rest.ended), (vec![], 1, true));
    assert_eq!(feed(&store).await, [("a".to_owned(), 1)]);
}

/// Another life of the task goes on in the same log, where its readers find it.
#[tokio::test]
async fn another_life_follows_the_end() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    for life in 1..=3 {
        let delivery = deliver(&store, "a").await;
        commit(&store, vec![end(&delivery, Vec::new())]).await;
        let expected: Vec<_> = (1..=life).map(|position| (position, "end")).collect();
        assert_eq!(told(&page(&store, "a", 0).await), expected);
        assert_eq!(told(&page(&store, "a", life - 1).await), [(life, "end")]);
    }
    assert_eq!(feed(&store).await, [("a".to_owned(), 1), ("a".to_owned(), 2), ("a".to_owned(), 3)]);
}

/// Records that go before the end keep their places, in a transaction of their own, in the same batch, in the same
/// transaction.
#[tokio::test]
async fn what_goes_before_the_end_stays_before_it() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let expected = [(1, "progress"), (2, "end")];
    for (id, batches) in [("own", 2), ("same batch", 1)] {
        let delivery = deliver(&store, id).await;
        let mut progress = Transaction::fenced(delivery.tag.clone(), Then::Keep);
        progress.record.log = vec![line(id, "progress", "{}")];
        let mut transactions = vec![progress, end(&delivery, Vec::new())];
        if batches == 2 {
            commit(&store, vec![transactions.remove(0)]).await;
        }
        commit(&store, transactions).await;
        assert_eq!(told(&page(&store, id, 0).await), expected, "{id}");
    }
    let delivery = deliver(&store, "one").await;
    commit(&store, vec![end(&delivery, vec![line("one", "progress", "{}")])]).await;
    assert_eq!(told(&page(&store, "one", 0).await), expected);
    let positions: Vec<u64> = feed(&store).await.into_iter().map(|(_, position)| position).collect();
    assert_eq!(positions, [1, 2, 1, 2, 1, 2]);
}

/// A task that ends and is sent again in one batch.
#[tokio::test]
async fn an_end_and_a_new_life_in_one_batch() {
    let server = RedisServer::start().await;
    let (store, _) = open(&server).await;
    let delivery = deliver(&store, "a").await;
    let mut again = Transaction::publish(vec![message("a")]);
    again.record.log = vec![line("a", "state", r#"{"state": "PENDING"}"#)];
    commit(&store, vec![end(&delivery, Vec::new()), again]).await;
    let page = page(&store, "a", 0).await;
    assert_eq!(told(&page), [(1, "end"), (2, "state")]);
    assert!(!page.ended, "it runs again");
    assert_eq!(feed(&store).await, [("a".to_owned(), 1), ("a".to_owned(), 2)]);
}
