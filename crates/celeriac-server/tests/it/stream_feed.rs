//! The stream of all tasks, over real sockets.

use std::collections::BTreeMap;

use celeriac::TaskId;
use celeriac::testing::{FaultPlan, Faulty};
use serde_json::{Value, json};

use crate::stream_support::*;

/// The status, and what is wrong by place.
async fn refused(stage: &Stage, query: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let answer = stage.get(&format!("/events{query}"), headers).await;
    assert_eq!(answer.status, 422, "{query}: {}", answer.head);
    let problem = answer.json().await;
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| error["at"].as_str().unwrap().to_owned()).collect()
}

async fn three_tasks() -> (Stage, [TaskId; 3]) {
    let stage = Stage::memory(config()).await;
    let tasks = ["a", "b", "c"].map(TaskId::from);
    for id in &tasks {
        introduce(stage.store(), id).await;
    }
    (stage, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_is_the_records_of_all_tasks_in_the_order_of_their_writing() {
    let (stage, [a, b, _]) = three_tasks().await;
    let feed = async |id: &TaskId, data: &str| append(stage.store(), vec![record(id, "x\ny", data)]).await;
    feed(&a, "1").await;
    // Without a position only what is to come.
    let mut from_now = stage.feed("").await;
    assert_eq!(from_now.begins_after().await, 1);
    feed(&b, r#"{"n": NaN, "big": 123456789012345678901234567890}"#).await;
    feed(&a, "\"one\\ntwo\"").await;
    let mut from_start = stage.feed("?after=0").await;
    assert_eq!(from_start.begins_after().await, 0);
    let about = |id: &str, position: u64, data: Value| json!({ "task_id": id, "task": "", "position": position, "data": data });
    let expected = [about("a", 1, json!(1)), about("b", 1, Value::Null), about("a", 2, json!("one\ntwo"))];
    for (n, expected) in (1..).zip(&expected) {
        let record = from_start.record().await;
        assert_eq!((record.id, &*record.event), (Some(n), "x_y"));
        let mut data = record.data.unwrap();
        if n == 2 {
            assert_eq!(data["data"]["n"], Value::Null);
            data["data"] = Value::Null;
        }
        assert_eq!(data, *expected);
        if n > 1 {
            let mut same = from_now.record().await.data.unwrap();
            if n == 2 {
                same["data"] = Value::Null;
            }
            assert_eq!(same, *expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_may_be_of_some_tasks_alone() {
    let (stage, [a, b, c]) = three_tasks().await;
    let mut of_two = stage.feed(&format!("?after=0&ids={a},{c}")).await;
    let mut of_one = stage.feed(&format!("?after=0&ids=,{b},")).await;
    let mut of_none = stage.feed("?after=0&ids=unknown&heartbeat=comment").await;
    let mut of_all = stage.feed("?after=0").await;
    for watching in [&mut of_two, &mut of_one, &mut of_none, &mut of_all] {
        watching.begins_after().await;
    }
    for n in 1..=300 {
        append_numbers(stage.store(), [&a, &b, &c][n as usize % 3], n..=n).await;
    }
    let (mut last, mut seen) = (0, BTreeMap::new());
    for _ in 0..300 {
        let record = of_all.record().await;
        assert!(record.id.unwrap() > last, "numbers grow");
        last = record.id.unwrap();
        seen.insert(last, record);
    }
    let of = |id: &TaskId, record: &Frame| record.data.as_ref().unwrap()["task_id"] == id.as_str();
    for record in seen.values() {
        if of(&a, record) || of(&c, record) {
            assert_eq!(of_two.record().await, *record, "the same record under the same number");
        } else {
            assert_eq!(of_one.record().await, *record);
        }
    }
    // Somebody who has seen nothing yet gets what is theirs first of all.
    introduce(stage.store(), &TaskId::from("unknown")).await;
    append_numbers(stage.store(), &TaskId::from("unknown"), 1..=1).await;
    assert_eq!(of_none.record().await.id, Some(last + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_for_the_feed_is_all_said() {
    let (stage, _) = three_tasks().await;
    append_numbers(stage.store(), &TaskId::from("a"), 1..=9).await;
    let ids = |count: usize| (0..count).map(|n| format!("task-{n}")).collect::<Vec<String>>().join(",");
    for wrong in ["", ",", &ids(101)] {
        assert_eq!(refused(&stage, &format!("?ids={wrong}"), &[]).await, ["ids"], "{wrong}");
    }
    stage.feed(&format!("?ids={}", ids(100))).await;
    assert_eq!(
        refused(&stage, "?after=1&last_event_id=2&starting_after=x&heartbeat=no&ids=", &[]).await,
        ["last_event_id", "starting_after", "heartbeat", "ids"]
    );
    assert_eq!(refused(&stage, "?after=1", &[("Last-Event-ID", "one")]).await, ["Last-Event-ID"]);
    // The position may stand in any of the places, and the header goes before the query.
    for (query, header, position) in [
        ("?after=3", "", 3),
        ("?last_event_id=4", "", 4),
        ("?starting_after=5", "", 5),
        ("?after=5&starting_after=5", "", 5),
        ("?after=3&starting_after=4", "7", 7),
        ("", "8", 8),
    ] {
        let mut answer = stage.get(&format!("/events{query}"), &[("Last-Event-ID", header)]).await;
        assert_eq!(answer.status, 200, "{query} {header}");
        assert_eq!(answer.begins_after().await, position, "{query} {header}");
        assert_eq!(answer.record().await.id, Some(position + 1));
    }
}

/// Whoever waits for a task that is quiet does not have all that the others said read again after each reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_moves_on_past_what_is_not_wanted() {
    let (inner, plan) = (memory(), FaultPlan::none());
    let stage = Stage::on(Faulty::new(inner.clone(), &plan), config()).await;
    let (loud, quiet) = (TaskId::from("loud"), TaskId::from("quiet"));
    introduce(&inner, &loud).await;
    let mut watching = stage.feed(&format!("?after=0&ids={quiet}")).await;
    assert_eq!(watching.begins_after().await, 0);
    // A read begun after the first record finds it, and has passed it when the next has begun.
    for n in 1..=3 {
        let reads = plan.calls_of("feed");
        append_numbers(&inner, &loud, n..=n).await;
        soon(async {
            while plan.calls_of("feed") == reads {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    stage.listening.begin_to_stop();
    let [farewell] = &watching.frames().await[..] else { panic!("nothing but a farewell") };
    assert!(farewell.retry.is_some() && farewell.data.is_none());
    assert!((1..=3).contains(&farewell.id.unwrap()), "{farewell:?}");
}

/// The same as pages, of which one is asked for after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_feed_are_what_its_stream_has() {
    let (stage, [a, b, _]) = three_tasks().await;
    for n in 1..=9 {
        let data = if n == 4 { "[NaN, 123456789012345678901234567890]".to_owned() } else { n.to_string() };
        append(stage.store(), vec![record([&a, &b][n % 2], "x", &data)]).await;
    }
    let asked =
        async |query: &str, accept: &str| stage.get(&format!("/events{query}"), &[("Accept", accept)]).await;
    let page = async |query: &str| {
        let answer = asked(query, "application/json").await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json")),
            "{query}"
        );
        answer.json().await
    };
    let mut streamed = stage.feed("?after=0").await;
    let mut next = json!(0);
    for _ in 0..3 {
        let found = page(&format!("?after={next}&limit=3")).await;
        let items = found["items"].as_array().unwrap();
        assert_eq!(items.len(), 3);
        for item in items {
            let record = streamed.record().await;
            let data = record.data.unwrap();
            assert_eq!((item["id"].as_u64(), &item["event"]), (record.id, &json!(record.event)));
            for part in ["task_id", "task", "position", "data"] {
                assert_eq!(item[part], data[part], "{item}");
            }
            assert!(item["at"].as_str().unwrap().ends_with('Z'), "{item}");
        }
        next = found["next"].clone();
    }
    // From the start unless asked otherwise, and from the same place again where nothing has come yet.
    assert_eq!(page("").await["items"].as_array().unwrap().len(), 9);
    assert_eq!(page("?after=9").await, json!({ "items": [], "next": 9 }));
    let of_one = page(&format!("?ids={a}&limit=4")).await;
    let ids: Vec<&Value> = of_one["items"].as_array().unwrap().iter().map(|item| &item["id"]).collect();
    assert_eq!((ids, &of_one["next"]), (vec![&json!(2), &json!(4)], &json!(4)), "it goes on past the others");
    assert_eq!(refused(&stage, "?limit=0&ids=", &[("Accept", "application/json")]).await, ["ids", "limit"]);
    assert_eq!(asked("", "image/png").await.status, 406);
}

/// Records as a reader of the feed gathers them: each number once, each task's positions in order.
#[derive(Default)]
struct Feed {
    records: Vec<Frame>,
    tasks: BTreeMap<String, Gathered>,
}

impl Feed {
    fn last(&self) -> u64 {
        self.records.last().map_or(0, |record| record.id.unwrap())
    }

    fn take(&mut self, frame: Frame) {
        let Some(data) = frame.data.as_ref().filter(|_| frame.id.is_some()) else { return };
        assert!(frame.id.unwrap() > self.last(), "numbers grow");
        let task = self.tasks.entry(data["task_id"].as_str().unwrap().to_owned()).or_default();
        task.take(data["position"].as_u64().unwrap(), &frame.event, &data["data"]);
        self.records.push(frame);
    }

    fn ended(&self) -> usize {
        self.tasks.values().filter(|task| task.ended).count()
    }

    /// Reads on until so many tasks have ended, over as many connections as it takes; returns how many.
    async fn read(&mut self, address: std::net::SocketAddr, query: &str, tasks: usize) -> usize {
        let mut connections = 0;
        while self.ended() < tasks {
            connections += 1;
            let last = self.last().to_string();
            let path = format!("/api/v1/events{query}");
            let Some(mut answer) = Raw::get(address, &path, &[("Last-Event-ID", &last)]).await else {
                continue;
            };
            assert_eq!(answer.status, 200, "{}", answer.head);
            while let Some(frame) = answer.frame().await {
                self.take(frame);
                if self.ended() == tasks {
                    break;
                }
            }
        }
        connections
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_goes_on_after_any_number_while_many_tasks_write() {
    const TASKS: usize = 4;
    const TOKENS: u64 = 2_000;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::of(app(folder.path()).await, config()).await;
    let working = app(folder.path()).await;
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        ids.push(speak(TOKENS, 8).delay(&working).await.unwrap().id());
    }
    let address = stage.listening.address;
    let proxy = CuttingProxy::start(address, 6_000, seed).await;
    let (mut steady, mut cut, mut of_two) = (Feed::default(), Feed::default(), Feed::default());
    let two = format!("?ids={},{}", ids[0], ids[2]);
    let worker = Running::start(working.worker().concurrency(TASKS));
    let (connections, cuts, cuts_of_two) = soon(async {
        tokio::join!(
            steady.read(address, "", TASKS),
            cut.read(proxy.address, "", TASKS),
            of_two.read(proxy.address, &two, 2)
        )
    })
    .await;
    assert_eq!(connections, 1);
    assert!(cuts > 5 && cuts_of_two > 2, "too few cuts to prove anything: {cuts} and {cuts_of_two}");
    assert!(steady.tasks.values().all(|task| task.text == whole_text(TOKENS)));
    let name = working.store().backend.feed(0, 1).await.unwrap()[0].task.clone();
    assert!(name.ends_with("speak"), "{name}");
    assert!(steady.records.iter().all(|record| record.data.as_ref().unwrap()["task"] == *name));
    assert_eq!(steady.records.len(), cut.records.len());
    assert!(steady.records == cut.records, "who was cut off has seen something else");
    let wanted = [ids[0].as_str(), ids[2].as_str()];
    let is_wanted =
        |record: &&Frame| wanted.contains(&record.data.as_ref().unwrap()["task_id"].as_str().unwrap());
    assert!(steady.records.iter().filter(is_wanted).eq(&of_two.records));
    worker.stop().await;
}
