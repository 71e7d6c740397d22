//! What a stream is held to, over real sockets: heartbeats, places, a lifetime, a shutdown, a store that is away, and
//! watchers that do not read.

use std::sync::Arc;
use std::time::Duration;

use celeriac::TaskId;
use celeriac::store::Store;
use celeriac::testing::{Fault, FaultPlan, Faulty};
use celeriac_server::ServerConfig;
use celeriac_server::client::Stream;
use serde_json::json;
use tokio::net::TcpSocket;

use crate::stream_support::*;

/// A server with these settings, and a task on it that has this many records and still runs.
async fn running(settings: ServerConfig, records: u64) -> (Stage, TaskId) {
    let stage = Stage::memory(settings).await;
    let id = TaskId::from("a");
    introduce(stage.store(), &id).await;
    append_numbers(stage.store(), &id, 1..=records).await;
    (stage, id)
}

/// The status of each request until it is another than `status`.
async fn until_no_longer(status: u16, stage: &Stage, path: &str) -> Raw {
    soon(async {
        loop {
            let answer = stage.get(path, &[]).await;
            if answer.status != status {
                return answer;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_is_kept_alive() {
    let mut settings = config();
    settings.stream_heartbeat = Duration::from_millis(10);
    let (stage, id) = running(settings, 1).await;
    let comment = Frame { comment: true, ..Frame::default() };
    let heartbeat = Frame { event: "heartbeat".to_owned(), data: Some(json!({})), ..Frame::default() };
    for (query, expected) in
        [("", &comment), ("&heartbeat=comment", &comment), ("&heartbeat=event", &heartbeat)]
    {
        let mut task = stage.watch(&id, &format!("?after=1{query}")).await;
        let mut feed = stage.feed(&format!("?after=1{query}")).await;
        for watching in [&mut task, &mut feed] {
            assert_eq!(watching.begins_after().await, 1);
            for _ in 0..3 {
                assert_eq!(soon(watching.frame()).await.as_ref(), Some(expected), "{query}");
            }
        }
    }
    let mut task = stage.watch(&id, "?after=1&heartbeat=event").await;
    let mut feed = stage.feed("?after=1&heartbeat=event").await;
    for watching in [&mut task, &mut feed] {
        watching.begins_after().await;
        soon(watching.frame()).await.unwrap();
    }
    // It goes on as if nothing had been said.
    append_numbers(stage.store(), &id, 2..=2).await;
    assert_eq!(task.record().await.id, Some(2));
    assert_eq!(feed.record().await.id, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_bounded_and_given_back() {
    let mut settings = config();
    settings.streams_max = 2;
    let (stage, id) = running(settings, 1).await;
    let done = TaskId::from("done");
    introduce(stage.store(), &done).await;
    end(stage.store(), &done).await;
    let path = format!("/tasks/{id}/events");
    // What is answered at once keeps no place.
    for _ in 0..5 {
        assert_eq!(stage.get("/tasks/none/events", &[]).await.status, 404);
        assert_eq!(stage.get(&format!("/tasks/{done}/events?after=1"), &[]).await.status, 204);
        assert_eq!(stage.get(&format!("{path}?after=x"), &[]).await.status, 422);
        assert_eq!(stage.watch(&done, "").await.frames().await.last().unwrap().event, "end");
    }
    // Streams of tasks and of all tasks share the places.
    let mut task = stage.watch(&id, "").await;
    let mut feed = stage.feed("").await;
    task.begins_after().await;
    feed.begins_after().await;
    for refused in [&path, "/events"] {
        let answer = stage.get(refused, &[]).await;
        assert_eq!(answer.status, 503, "{refused}");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&seconds), "{seconds}");
        let problem = answer.json().await;
        assert_eq!(problem["type"], "/problems/streams-unavailable");
        assert!(problem["detail"].as_str().unwrap().contains("2 streams are open"), "{problem}");
    }
    // Both leave in silence, and each leaves a place to one other.
    for leaving in [task, feed] {
        drop(leaving);
        let mut next = until_no_longer(503, &stage, &path).await;
        assert_eq!(next.status, 200);
        next.begins_after().await;
        assert_eq!(stage.get(&path, &[]).await.status, 503, "one place was given back, and not two");
        // Kept until the test ends.
        std::mem::forget(next);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_shuts_down_sends_its_watchers_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let here = Stage::of(app(folder.path()).await, config()).await;
    let there = Stage::of(app(folder.path()).await, config()).await;
    let id = TaskId::from("a");
    introduce(here.store(), &id).await;
    append_numbers(here.store(), &id, 1..=3).await;
    let mut task = here.watch(&id, "").await;
    let mut feed = here.feed("?after=0").await;
    for watching in [&mut task, &mut feed] {
        watching.begins_after().await;
        for n in 1..=3 {
            assert_eq!(watching.record().await.id, Some(n));
        }
    }
    here.listening.begin_to_stop();
    for watching in [&mut task, &mut feed] {
        let frames = watching.frames().await;
        // Clients come back spread over time: after once to twice the time that is set.
        let retry = frames[0].retry.unwrap();
        assert!((2..=4).contains(&retry), "{retry}");
        let farewell = Frame { retry: Some(retry), id: Some(3), ..Frame::default() };
        assert_eq!(frames, [farewell], "when to come back, and after what");
    }
    append_numbers(there.store(), &id, 4..=5).await;
    let headers = [("Last-Event-ID", "3")];
    let mut task = there.get(&format!("/tasks/{id}/events"), &headers).await;
    let mut feed = there.get("/events", &headers).await;
    for watching in [&mut task, &mut feed] {
        assert_eq!(watching.begins_after().await, 3);
        for n in 4..=5 {
            assert_eq!(watching.record().await.id, Some(n));
        }
    }
    here.listening.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_shuts_down_opens_no_stream() {
    let folder = tempfile::tempdir().unwrap();
    let serving = serve(folder.path(), config()).await;
    introduce(serving.server.app().store(), &TaskId::from("a")).await;
    let path = "/api/v1/tasks/a/events";
    assert_eq!(soon(Raw::get(serving.address, path, &[])).await.unwrap().status, 200);
    // It is still reached, as behind a load balancer that has not heard of it yet.
    serving.server.draining().cancel();
    for path in [path, "/api/v1/events"] {
        let answer = soon(Raw::get(serving.address, path, &[])).await.unwrap();
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.header("retry-after").is_some());
        let problem = answer.json().await;
        assert!(problem["detail"].as_str().unwrap().contains("shutting down"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_a_lifetime_and_its_stream_has_none() {
    const CONNECTIONS: u64 = 4;
    let mut settings = config();
    settings.stream_lifetime = Duration::from_millis(100);
    let (stage, id) = running(settings, 0).await;
    let ours = tokio::spawn({
        let url = format!("http://{}/api/v1/tasks/{id}/events", stage.listening.address);
        async move {
            let mut gathered = Gathered::default();
            let mut stream = Stream::connect(url);
            while let Some(event) = stream.next().await.unwrap() {
                let data = serde_json::from_str(&event.data).unwrap();
                gathered.take(event.id.unwrap().parse().unwrap(), &event.event, &data);
            }
            gathered
        }
    });
    let (mut written, mut position) = (0, 0);
    for path in [format!("/tasks/{id}/events"), "/events".to_owned()] {
        let mut connections = 0;
        let first = position;
        while position < first + CONNECTIONS {
            let mut answer = stage.get(&format!("{path}?after={position}"), &[]).await;
            assert_eq!(answer.begins_after().await, position);
            // No more than one record to each connection, which is then silent until it is closed.
            if written == position {
                written += 1;
                append_numbers(stage.store(), &id, written..=written).await;
            }
            let mut frames = answer.frames().await;
            let farewell = frames.pop().unwrap();
            for record in frames {
                position += 1;
                assert_eq!(record.id, Some(position));
            }
            assert!((2..=4).contains(&farewell.retry.unwrap()), "{farewell:?}");
            assert_eq!((farewell.id, farewell.data), (Some(position), None));
            connections += 1;
        }
        assert!(connections >= CONNECTIONS, "{connections}");
    }
    end(stage.store(), &id).await;
    let gathered = soon(ours).await.unwrap();
    assert!(gathered.ended);
    assert_eq!(gathered.position, 2 * CONNECTIONS + 1);
}

/// What a watcher gets that comes back for as long as it takes: records in order, until the one for which `is_last`.
async fn everything(stage: &Stage, path: &str, is_last: impl Fn(&Frame) -> bool) -> (Vec<Frame>, usize) {
    let (mut records, mut refused) = (Vec::<Frame>::new(), 0);
    soon(async {
        loop {
            let position = records.last().map_or(0, |record| record.id.unwrap());
            let mut answer = stage.get(path, &[("Last-Event-ID", &position.to_string())]).await;
            if answer.status == 503 {
                assert!(answer.header("retry-after").is_some());
                refused += 1;
                continue;
            }
            assert_eq!(answer.status, 200, "{}", answer.head);
            assert_eq!(answer.begins_after().await, position);
            while let Some(frame) = answer.frame().await {
                if frame.data.is_some() {
                    records.push(frame);
                    if is_last(&records[records.len() - 1]) {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (records, refused)
}

/// The ids of the records among `frames`.
fn ids(frames: &[Frame]) -> Vec<u64> {
    frames.iter().filter(|frame| frame.data.is_some()).map(|record| record.id.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_store_heals_in_mid_stream() {
    let (inner, plan) = (memory(), FaultPlan::none());
    let stage = Arc::new(Stage::on(Faulty::new(inner.clone(), &plan), config()).await);
    let id = TaskId::from("a");
    introduce(&inner, &id).await;
    append_numbers(&inner, &id, 1..=2).await;
    let mut task = stage.watch(&id, "").await;
    let mut feed = stage.feed("?after=0").await;
    for watching in [&mut task, &mut feed] {
        assert_eq!(watching.begins_after().await, 0);
        assert_eq!(watching.record().await.id, Some(1));
        assert_eq!(watching.record().await.id, Some(2));
    }
    for round in 0..2 {
        let first = 3 + round * 200;
        plan.set_outage(true);
        // Both wait for the store just now, and learn of the outage by what comes next.
        append_numbers(&inner, &id, first..=first + 199).await;
        let (logs, feeds) = (plan.calls_of("log"), plan.calls_of("feed"));
        soon(async {
            while plan.calls_of("log") < logs + 2 || plan.calls_of("feed") < feeds + 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for path in ["/tasks/another/events", "/events"] {
            let refused = stage.get(path, &[]).await;
            assert_eq!(refused.status, 503, "{path}");
            assert_eq!(refused.header("retry-after"), Some("1"));
            assert_eq!(refused.json().await["type"], "/problems/store-unavailable");
        }
        plan.set_outage(false);
        // On the same connections, without a gap or a repeat.
        for n in first..=first + 199 {
            for watching in [&mut task, &mut feed] {
                let record = watching.record().await;
                assert_eq!((record.id, &*record.event), (Some(n), "number"));
            }
        }
    }
    end(&inner, &id).await;
    assert_eq!(feed.record().await.event, "end");
    let rest = task.frames().await;
    assert_eq!((ids(&rest), &*rest[0].event), (vec![403], "end"));
}

/// Whichever call of the store fails, once: what is streamed is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_that_fails_makes_a_gap_or_a_repeat() {
    for (path, methods) in [("/tasks/a/events", ["log", "wait"]), ("/events", ["feed", "wait"])] {
        for method in methods {
            for nth in 1.. {
                let (inner, plan) = (memory(), FaultPlan::nth_of(method, nth, Fault::Before));
                let stage = Stage::on(Faulty::new(inner.clone(), &plan), config()).await;
                let id = TaskId::from("a");
                introduce(&inner, &id).await;
                // More than is read at once, and then some that are waited for.
                append_numbers(&inner, &id, 1..=300).await;
                let write = async {
                    let mut before = stage.app.follow(&id, Some(300)).await;
                    for n in 301..=303 {
                        append_numbers(&inner, &id, n..=n).await;
                        if let Ok(follow) = &mut before {
                            soon(follow.next()).await.unwrap();
                        }
                    }
                    end(&inner, &id).await;
                };
                let ((records, _), ()) =
                    tokio::join!(everything(&stage, path, |frame| frame.event == "end"), write);
                assert_eq!(ids(&records), (1..=304).collect::<Vec<u64>>(), "{path}: {method} {nth} failed");
                if plan.hits() == 0 {
                    assert!(nth > 2, "{path}: {method} is called more than once");
                    break;
                }
            }
        }
    }
}

/// A connection whose side that reads has little room.
async fn narrow(stage: &Stage, path: &str) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let address = stage.listening.address;
    let connection = soon(socket.connect(address)).await.unwrap();
    soon(Raw::ask(connection, address, &format!("/api/v1{path}"), &[])).await.expect("an answer")
}

const LARGE: usize = 16 * 1024;
const LARGE_RECORDS: u64 = 2_000;

/// A task with more records than all sockets have room for, which has ended.
async fn large(store: &Store) -> TaskId {
    let id = TaskId::from("large");
    introduce(store, &id).await;
    let data = format!("\"{}\"", "x".repeat(LARGE));
    append(store, (0..LARGE_RECORDS).map(|_| record(&id, "token", &data)).collect()).await;
    end(store, &id).await;
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_and_others_do_not_notice() {
    let mut settings = config();
    settings.stall_timeout = Duration::from_millis(200);
    settings.streams_max = 3;
    let (stage, id) = running(settings, 0).await;
    let large = large(stage.store()).await;
    let mut task = stage.watch(&id, "").await;
    let mut feed = stage.feed(&format!("?ids={id}")).await;
    task.begins_after().await;
    feed.begins_after().await;
    let mut stalled = narrow(&stage, &format!("/tasks/{large}/events")).await;
    assert_eq!(stalled.record().await.id, Some(1));
    // Until the place of the one who does not read is free, the others get each record.
    let path = format!("/tasks/{id}/events");
    let mut written = 0;
    let mut next = soon(async {
        loop {
            written += 1;
            append_numbers(stage.store(), &id, written..=written).await;
            for watching in [&mut task, &mut feed] {
                let record = watching.record().await.data.unwrap();
                assert_eq!(record.get("data").unwrap_or(&record), &json!(written));
            }
            let answer = stage.get(&path, &[]).await;
            if answer.status == 200 {
                return answer;
            }
            assert_eq!(answer.status, 503);
        }
    })
    .await;
    assert_eq!(next.begins_after().await, 0);
    end(stage.store(), &id).await;
    assert_eq!(ids(&task.frames().await), [written + 1]);
    assert_eq!(ids(&next.frames().await), (1..=written + 1).collect::<Vec<u64>>());
    // It was cut in the middle, and comes back where it was.
    let mut position = 1;
    while let Some(frame) = soon(stalled.frame()).await {
        position += 1;
        assert_eq!(frame.id, Some(position));
    }
    assert!(!stalled.is_whole() && position < LARGE_RECORDS, "{position}");
    let patient = Stage::on(stage.store().clone(), config()).await;
    let rest = patient.watch(&large, &format!("?after={position}")).await.frames().await;
    assert!(ids(&rest).into_iter().eq(position + 1..=LARGE_RECORDS + 1), "the rest is not whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_from_the_store_for_who_does_not_read() {
    let mut settings = config();
    settings.stall_timeout = Duration::from_millis(200);
    settings.streams_max = 1;
    for (path, method) in [("/tasks/large/events", "log"), ("/events?after=0", "feed")] {
        let (inner, plan) = (memory(), FaultPlan::none());
        let stage = Stage::on(Faulty::new(inner.clone(), &plan), settings.clone()).await;
        large(&inner).await;
        let mut stalled = narrow(&stage, path).await;
        let other = "/events?after=9000000";
        drop(until_no_longer(503, &stage, other).await);
        let reads = plan.calls_of(method);
        let mut sent = 0;
        while let Some(frame) = soon(stalled.frame()).await {
            sent += u64::from(frame.data.is_some());
        }
        let patient = Stage::on(stage.store().clone(), config()).await;
        let mut whole = patient.get(path, &[]).await;
        while whole.record().await.event != "end" {}
        let all_reads = plan.calls_of(method) - reads;
        assert!(
            reads < all_reads / 2,
            "{path}: {reads} reads of {all_reads} were made for one who reads nothing"
        );
        let records_of_a_read = LARGE_RECORDS.div_ceil(all_reads);
        let waiting = (reads * records_of_a_read).saturating_sub(sent);
        let bytes = waiting * LARGE as u64;
        assert!(bytes < 256 * 1024, "{path}: {bytes} bytes wait in the server, beyond what its socket holds");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_without_end_are_none_too_long() {
    let mut settings = config();
    settings.stream_lifetime = Duration::MAX;
    settings.stream_heartbeat = Duration::MAX;
    settings.stream_retry = Duration::MAX;
    let (stage, id) = running(settings, 1).await;
    let mut task = stage.watch(&id, "").await;
    let mut feed = stage.feed("?after=0").await;
    for watching in [&mut task, &mut feed] {
        assert_eq!(watching.begins_after().await, 0);
        assert_eq!(watching.record().await.id, Some(1));
    }
    stage.listening.begin_to_stop();
    for watching in [&mut task, &mut feed] {
        assert!(watching.frames().await[0].retry.is_some());
    }
}
