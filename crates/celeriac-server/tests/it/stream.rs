//! The stream of one task, over real sockets: what it begins with, where it may begin, and that all who watch see the
//! same.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use celeriac::clock::SystemClock;
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::Store;
use celeriac::{Celeriac, Context, Ignore, TaskId};
use serde_json::{Value, json};

use crate::client::gate;
use crate::stream_support::*;

/// Speaks in two halves, and waits at the gate of this name in between.
#[celeriac::task]
async fn halting(cx: Context, tokens: u64, name: String) -> u64 {
    for n in 0..tokens {
        if n == tokens / 2 {
            // A record of its own is written at once, and so is what came before it.
            cx.emit("halt", &n).await;
            gate(&name).acquire().await.unwrap().forget();
        }
        cx.token(&token(n)).await;
    }
    tokens
}

async fn halting_app(folder: &Path) -> Celeriac {
    let app = app(folder).await.register(halting);
    let mut config = app.config().clone();
    // Who waits at a gate does not listen.
    config.worker_revoke_grace = Duration::ZERO;
    app.with_config(config)
}

/// A file whose logs keep this many records.
fn store_that_keeps(records: u64, folder: &Path) -> Store {
    let options = SqliteOptions { log_bound: records, ..SqliteOptions::default() };
    Store::of(SqliteStore::open(folder.join("celeriac.db"), options, SystemClock::shared()).unwrap())
}

/// A server, and a task on it that has this many records and still runs.
async fn running(records: u64) -> (Stage, TaskId) {
    let stage = Stage::memory(config()).await;
    let id = TaskId::from("a");
    introduce(stage.store(), &id).await;
    append_numbers(stage.store(), &id, 1..=records).await;
    (stage, id)
}

/// The same, when the task has ended: its last record is `end`.
async fn ended(records: u64) -> (Stage, TaskId) {
    let (stage, id) = running(records - 1).await;
    end(stage.store(), &id).await;
    (stage, id)
}

/// What is wrong, by place.
async fn places(answer: Raw) -> Vec<String> {
    assert_eq!(answer.status, 422, "{}", answer.head);
    let problem = answer.json().await;
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| error["at"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_retry_then_its_position_then_every_record_then_over() {
    let (stage, id) = running(3).await;
    let mut watching = stage.watch(&id, "").await;
    assert_eq!(watching.begins_after().await, 0);
    for n in 1..=3 {
        let frame = watching.record().await;
        assert_eq!((frame.id, &*frame.event, frame.data), (Some(n), "number", Some(json!(n))));
    }
    append_numbers(stage.store(), &id, 4..=300).await;
    end(stage.store(), &id).await;
    let rest = watching.frames().await;
    let ids: Vec<u64> = rest.iter().map(|frame| frame.id.unwrap()).collect();
    assert_eq!(ids, (4..=301).collect::<Vec<u64>>(), "numbered without a gap");
    let last = rest.last().unwrap();
    assert_eq!((&*last.event, last.data.as_ref().unwrap()["state"].as_str()), ("end", Some("SUCCESS")));
    assert!(watching.is_whole(), "the body ends in good order after the record `end`");
    // To the byte: the time to wait is the setting.
    let body = stage.watch(&id, "?after=299").await.body().await;
    let expected = "retry: 2\n\nid: 299\n\nid: 300\nevent: number\ndata: 300\n\n\
                    id: 301\nevent: end\ndata: {\"state\": \"SUCCESS\", \"result\": null}\n\n";
    assert_eq!(String::from_utf8(body).unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_that_nobody_is_to_keep_or_change_it() {
    let (stage, id) = running(1).await;
    for path in [format!("/tasks/{id}/events"), "/events".to_owned()] {
        let answer = stage.get(&path, &[("Accept-Encoding", "gzip, br, zstd, deflate")]).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-cache, no-transform"), "{path}");
        assert_eq!(answer.header("x-accel-buffering"), Some("no"), "{path}");
        assert_eq!(answer.header("content-encoding"), None, "{path}");
        assert_eq!(answer.header("content-length"), None, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_may_stand_in_the_header_or_the_query() {
    let (stage, id) = running(6).await;
    let path = format!("/tasks/{id}/events");
    let begins = async |query: &str, header: Option<&str>| {
        let headers: Vec<(&str, &str)> = header.map(|value| ("Last-Event-ID", value)).into_iter().collect();
        let mut answer = stage.get(&format!("{path}{query}"), &headers).await;
        assert_eq!(answer.status, 200, "{query} {header:?}");
        let position = answer.begins_after().await;
        assert_eq!(answer.record().await.id, Some(position + 1), "{query} {header:?}");
        position
    };
    assert_eq!(begins("", None).await, 0);
    assert_eq!(begins("", Some("3")).await, 3);
    assert_eq!(begins("", Some("")).await, 0, "a header without content says nothing");
    for name in ["after", "last_event_id", "starting_after"] {
        assert_eq!(begins(&format!("?{name}=4"), None).await, 4, "{name}");
        assert_eq!(begins(&format!("?{name}=4"), Some("5")).await, 5, "a reconnect by the URL of {name}");
        assert_eq!(begins(&format!("?{name}=0"), None).await, 0, "{name}");
    }
    assert_eq!(begins("?after=2&starting_after=2&last_event_id=2", None).await, 2);
    assert_eq!(begins("?after=1&starting_after=2", Some("5")).await, 5, "the header says which");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_all_said() {
    let (stage, id) = running(3).await;
    let path = format!("/tasks/{id}/events");
    let asked = async |query: &str, headers: &[(&str, &str)]| {
        places(stage.get(&format!("{path}{query}"), headers).await).await
    };
    assert_eq!(asked("?after=1&starting_after=2", &[]).await, ["starting_after"]);
    assert_eq!(
        asked("?after=1&last_event_id=2&starting_after=3&heartbeat=loud&limit=0", &[]).await,
        ["last_event_id", "starting_after", "heartbeat", "limit"]
    );
    for wrong in ["-1", "1.5", "x", "", "%201", "0x1", "9223372036854775808", "99999999999999999999"] {
        for name in ["after", "last_event_id", "starting_after"] {
            assert_eq!(asked(&format!("?{name}={wrong}"), &[]).await, [name], "{wrong}");
        }
    }
    for wrong in ["-1", "x", "1;2", "9223372036854775808"] {
        assert_eq!(asked("", &[("Last-Event-ID", wrong)]).await, ["Last-Event-ID"], "{wrong}");
        let found = asked("?after=y&heartbeat=", &[("Last-Event-ID", wrong)]).await;
        assert_eq!(found, ["after", "Last-Event-ID", "heartbeat"], "{wrong}");
    }
    assert_eq!(asked("?after=1&after=2", &[]).await, ["query"]);
    // The largest that can be is none that is wrong.
    let mut far = stage.watch(&id, "?after=9223372036854775807").await;
    assert_eq!(far.begins_after().await, 9_223_372_036_854_775_807);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_task_is_not_found() {
    let (stage, _) = running(1).await;
    for accept in ["text/event-stream", "application/json"] {
        for query in ["", "?after=7"] {
            let answer = stage.get(&format!("/tasks/none/events{query}"), &[("Accept", accept)]).await;
            assert_eq!(answer.status, 404, "{accept} {query}");
            assert_eq!(answer.json().await["type"], "/problems/unknown-task");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_longer_kept_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::on(store_that_keeps(10, folder.path()), config()).await;
    let id = TaskId::from("a");
    introduce(stage.store(), &id).await;
    append_numbers(stage.store(), &id, 1..=30).await;
    for accept in ["text/event-stream", "application/json"] {
        for after in [0, 19] {
            let path = format!("/tasks/{id}/events?after={after}");
            let answer = stage.get(&path, &[("Accept", accept)]).await;
            assert_eq!(answer.status, 410, "{accept} {after}");
            let problem = answer.json().await;
            assert_eq!((&problem["type"], &problem["first"]), (&json!("/problems/trimmed-log"), &json!(21)));
            assert_eq!(problem["status"], 410);
        }
    }
    // The first that is kept is to be had by asking for what follows the one before it, or for no position at all.
    for query in ["?after=20", ""] {
        let mut kept = stage.watch(&id, query).await;
        assert_eq!(kept.begins_after().await, 20, "{query}");
        assert_eq!(kept.record().await.id, Some(21), "{query}");
    }
    // Ends are as good as records. Asked of a server that has none of it in memory for others that watch, or did just now.
    end(stage.store(), &id).await;
    let stage = Stage::on(stage.store().clone(), config()).await;
    let path = format!("/tasks/{id}/events");
    assert_eq!(stage.get(&path, &[("Last-Event-ID", "20")]).await.json().await["first"], 22);
    let ids: Vec<_> = stage.watch(&id, "?after=21").await.frames().await.iter().map(|f| f.id).collect();
    assert_eq!(ids[1..], (21..=31).map(Some).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_gets_the_tail_and_after_it_nothing() {
    let (stage, id) = ended(300).await;
    let path = format!("/tasks/{id}/events");
    for after in [0, 1, 127, 128, 129, 298, 299] {
        let mut tail = stage.get(&path, &[("Last-Event-ID", &after.to_string())]).await;
        assert_eq!(tail.status, 200, "{after}");
        assert_eq!(tail.begins_after().await, after);
        let ids: Vec<u64> = tail.frames().await.iter().map(|frame| frame.id.unwrap()).collect();
        assert_eq!(ids, (after + 1..=300).collect::<Vec<u64>>());
    }
    for after in ["300", "301", "4000"] {
        let over = stage.get(&path, &[("Last-Event-ID", after)]).await;
        assert_eq!(over.status, 204, "{after}: this tells an EventSource to stop");
        assert_eq!(over.header("cache-control"), Some("no-cache, no-transform"));
        assert_eq!(stage.get(&format!("{path}?after={after}"), &[]).await.status, 204);
    }
}

/// Ends without a result, as Celery's `Ignore`.
#[celeriac::task]
async fn ignored() -> Result<(), Ignore> {
    Err(Ignore)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_without_a_result_ends_as_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let in_memory = Celeriac::connect("memory://").await.unwrap();
    for app in [in_memory, app(folder.path()).await] {
        let app = app.register(ignored);
        let stage = Stage::of(app.clone(), config()).await;
        let id = ignored().delay(&app).await.unwrap().id();
        let mut watching = stage.watch(&id, "").await;
        let worker = Running::start(app.worker());
        let end = watching.frames().await.pop().unwrap();
        assert_eq!((&*end.event, &end.data.unwrap()["state"]), ("end", &json!("IGNORED")), "{}", app.url());
        let after = format!("/tasks/{id}/events?after={}", end.id.unwrap());
        assert_eq!(stage.get(&after, &[]).await.status, 204, "{}", app.url());
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_the_log_is_to_be_had_as_json() {
    let mut settings = config();
    settings.page_default = 4;
    settings.page_max = 6;
    // Pages take no place among the streams.
    settings.streams_max = 0;
    let stage = Stage::memory(settings).await;
    let id = TaskId::from("a");
    introduce(stage.store(), &id).await;
    let page = async |query: &str| {
        let path = format!("/tasks/{id}/events{query}");
        let answer = stage.get(&path, &[("Accept", "application/json")]).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.head);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json().await
    };
    let ids = |page: &Value| -> Vec<u64> {
        page["items"].as_array().unwrap().iter().map(|item| item["id"].as_u64().unwrap()).collect()
    };
    let about = |page: &Value| json!([page["first"], page["last"], page["ended"], page["next"]]);
    let empty = page("").await;
    assert_eq!((ids(&empty), about(&empty)), (vec![], json!([1, 0, false, 0])));
    append_numbers(stage.store(), &id, 1..=9).await;
    let first = page("").await;
    assert_eq!((ids(&first), about(&first)), (vec![1, 2, 3, 4], json!([1, 9, false, 4])));
    let item = &first["items"][2];
    assert_eq!(item["event"], "number");
    assert_eq!(item["data"], 3);
    assert!(item["at"].as_str().unwrap().ends_with('Z'), "{item}");
    let second = page("?after=4&limit=6").await;
    assert_eq!((ids(&second), about(&second)), (vec![5, 6, 7, 8, 9], json!([1, 9, false, 9])));
    // What is not there yet is asked for again from the same place.
    assert_eq!(about(&page("?after=9").await), json!([1, 9, false, 9]));
    end(stage.store(), &id).await;
    let more = page("?after=8&limit=1").await;
    assert_eq!((ids(&more), about(&more)), (vec![9], json!([1, 10, true, 9])));
    let last = page("?after=9").await;
    assert_eq!((ids(&last), about(&last)), (vec![10], json!([1, 10, true, null])));
    assert_eq!(about(&page("?after=10").await), json!([1, 10, true, null]));
    for wrong in ["0", "7", "-1", "x", ""] {
        let path = format!("/tasks/{id}/events?limit={wrong}&after=x");
        let answer = stage.get(&path, &[("Accept", "application/json")]).await;
        assert_eq!(places(answer).await, ["after", "limit"], "{wrong}");
    }
    assert_eq!(stage.get(&format!("/tasks/{id}/events"), &[]).await.status, 503, "a stream has no place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_nobody_has_is_refused() {
    let (stage, id) = ended(2).await;
    let path = format!("/tasks/{id}/events");
    let answer = stage.get(&path, &[("Accept", "image/png")]).await;
    assert_eq!(answer.status, 406);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json().await;
    assert!(
        problem["detail"].as_str().unwrap().contains("text/event-stream or application/json"),
        "{problem}"
    );
    for (accept, kind) in [
        ("*/*", "text/event-stream"),
        ("text/event-stream, application/json;q=0.9", "text/event-stream"),
        ("image/png, application/json", "application/json"),
    ] {
        let answer = stage.get(&path, &[("Accept", accept)]).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_record_holds_arrives_as_json_on_one_line() {
    let stage = Stage::memory(config()).await;
    let id = TaskId::from("a");
    introduce(stage.store(), &id).await;
    let cases = [
        // What Python writes and nobody else reads; what stands beside it is left as it is.
        (
            r#"{"z": NaN, "a": [Infinity, -Infinity], "n": 123456789012345678901234567890, "NaN": "NaN"}"#,
            r#"{"z": null, "a": [null, null], "n": 123456789012345678901234567890, "NaN": "NaN"}"#,
        ),
        ("NaN", "null"),
        // Line breaks: between tokens, and in texts.
        ("{\"a\":\n[1,\r\n2,\r3]}", "{\"a\": [1,  2, 3]}"),
        ("\"one\\ntwo\\r\\nthree\\n\\n\"", "\"one\\ntwo\\r\\nthree\\n\\n\""),
        ("\"\u{2028}\u{85} data: x\"", "\"\u{2028}\u{85} data: x\""),
        (r#""😀 \ud83d\ude00 \ud800""#, r#""😀 \ud83d\ude00 \ud800""#),
    ];
    append(stage.store(), cases.iter().map(|(data, _)| record(&id, "a: b\nid: 9", data)).collect()).await;
    end(stage.store(), &id).await;
    let body = String::from_utf8(stage.watch(&id, "").await.body().await).unwrap();
    let mut expected = "retry: 2\n\nid: 0\n\n".to_owned();
    for (n, (_, data)) in (1..).zip(cases) {
        expected.push_str(&format!("id: {n}\nevent: a: b_id: 9\ndata: {data}\n\n"));
    }
    assert!(body.starts_with(&expected), "{body}\n\n{expected}");
    // A page has the same.
    let page = stage.get(&format!("/tasks/{id}/events?limit=5"), &[("Accept", "application/json")]).await;
    let page = page.json().await;
    for (n, (_, data)) in cases[..5].iter().enumerate() {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(page["items"][n]["data"], data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_watch_see_the_very_same_frames() {
    const TOKENS: u64 = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = config();
    // Comments would be of each watcher's own.
    settings.stream_heartbeat = PATIENCE;
    let stage = Arc::new(Stage::of(app(folder.path()).await, settings).await);
    let working = halting_app(folder.path()).await;
    let name = "all who watch";
    let task = halting(TOKENS, name.to_owned()).delay(&working).await.unwrap();
    let watch_all = async |watchers: usize| {
        let watching: Vec<_> = (0..watchers)
            .map(|_| {
                let (stage, id) = (stage.clone(), task.id());
                tokio::spawn(async move { stage.watch(&id, "").await })
            })
            .collect();
        let mut answers = Vec::new();
        for answer in watching {
            let mut answer = answer.await.unwrap();
            answers.push(tokio::spawn(async move { answer.body().await }));
        }
        answers
    };
    let mut bodies = watch_all(10).await;
    let mut first = stage.watch(&task.id(), "").await;
    let worker = Running::start(working.worker());
    while first.record().await.event != "halt" {}
    bodies.extend(watch_all(100).await);
    gate(name).add_permits(1);
    let rest = first.frames().await;
    assert_eq!(rest.last().unwrap().event, "end");
    bodies.extend(watch_all(10).await);
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for body in bodies {
        seen.push(soon(body).await.unwrap());
    }
    assert!(seen.iter().all(|body| *body == seen[0]), "not all the same");
    let mut gathered = Gathered::default();
    take_frames(&mut seen[0].clone()).iter().for_each(|frame| gathered.take_frame(frame));
    assert!(gathered.ended && gathered.text == whole_text(TOKENS), "what all have seen is not what was said");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_leaves_cancels_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = config();
    settings.streams_max = 1;
    let stage = Stage::of(app(folder.path()).await, settings).await;
    let working = halting_app(folder.path()).await;
    let worker = Running::start(working.worker().concurrency(2));
    let name = "a watcher leaves";
    let task = halting(100, name.to_owned()).delay(&working).await.unwrap();
    let mut leaving = stage.watch(&task.id(), "").await;
    while leaving.record().await.event != "halt" {}
    drop(leaving);
    // Its place is free as soon as the server has noticed.
    let path = format!("/tasks/{}/events", task.id());
    let mut next = soon(async {
        loop {
            let answer = stage.get(&path, &[]).await;
            if answer.status == 200 {
                return answer;
            }
            assert_eq!(answer.status, 503);
        }
    })
    .await;
    // A revocation that the leave had caused would have arrived before this one, which is asked for later.
    let other = halting(100, "nobody opens this".to_owned()).delay(&working).await.unwrap();
    soon(async { while stage.app.log(&other.id(), None, 500).await.unwrap().last == 0 {} }).await;
    stage.app.revoke(&[other.id()], true).await.unwrap();
    assert!(soon(other.get()).await.is_err());
    gate(name).add_permits(1);
    assert_eq!(soon(task.get()).await.unwrap(), 100, "the task ran to its end");
    let frames = next.frames().await;
    let text: String =
        frames.iter().filter_map(|f| f.data.as_ref()?["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, whole_text(100));
    worker.stop().await;
}
