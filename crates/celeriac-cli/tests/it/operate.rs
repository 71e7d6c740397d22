//! Sending, looking, operating.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::Place;

const SECTION: &str = r#"[{"title": "T", "level": 1, "part": 1, "range": {"start": 0, "end": 9}, "text": "One sentence. Another one."}]"#;

#[test]
fn a_task_is_called_run_and_looked_at() {
    let place = Place::new();
    let id = place.run(&["call", "celeriac.demo.summarise", "-a", SECTION, "-Q", "here"]).exits(0).stdout();
    let id = id.trim();
    let queues = place.run(&["queues", "--json"]).exits(0).json();
    assert_eq!((&queues[0]["queue"], &queues[0]["ready"]), (&"here".into(), &1.into()));
    place.run(&["result", id]).exits(0);

    // A worker that takes it, and leaves on SIGTERM when it is done.
    let mut worker =
        place.command(&["worker", "-Q", "here", "-c", "2"]).stderr(Stdio::null()).spawn().unwrap();
    let waited = place.run(&["result", id, "--wait", "--timeout", "60", "--json"]).exits(0).json();
    assert_eq!(waited[0]["state"], "SUCCESS");
    assert_eq!(waited[0]["result"]["title"], "T");
    let killed = std::process::Command::new("kill").arg(worker.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(worker.wait().unwrap().code(), Some(0));

    let events = place.run(&["events", id, "--json"]).exits(0).json();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["state", "step", "end"]);
    assert_eq!(events[2]["position"], 3);
    let all = place.run(&["events", "--json"]).exits(0).json();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|event| event["task"] == "celeriac.demo.summarise"));
}

#[test]
fn a_call_is_followed_to_its_end() {
    let place = Place::new();
    let mut worker = place.command(&["worker", "-c", "1"]).stderr(Stdio::null()).spawn().unwrap();
    let mut call = place
        .command(&["call", "celeriac.demo.summarise", "-a", SECTION, "-Q", "celery", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> =
        BufReader::new(call.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(lines.last().unwrap().starts_with("3 end {\"state\": \"SUCCESS\""), "{lines:?}");
    assert_eq!(call.wait().unwrap().code(), Some(0));
    // Wrong arguments: the task fails, and so does the call.
    let failed =
        place.run(&["call", "celeriac.demo.summarise", "-a", "[5]", "-Q", "celery", "--wait"]).exits(1);
    assert!(
        failed.stdout().contains("TypeError") && failed.stdout().contains("'section'"),
        "{}",
        failed.stdout()
    );
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn what_waits_is_revoked_and_purged() {
    let place = Place::new();
    let send = |more: &[&str]| {
        let arguments = [&["call", "some.task"], more].concat();
        place.run(&arguments).exits(0).stdout().trim().to_owned()
    };
    let (queued, scheduled) = (send(&[]), send(&["--countdown", "3600"]));
    let revoked = place.run(&["revoke", &queued, &scheduled, "no-such", "--json"]).exits(4).json();
    let was: Vec<_> = revoked.iter().map(|one| one["was"].as_str().unwrap()).collect();
    assert_eq!(was, ["queued", "scheduled", "unknown"]);
    let result = place.run(&["result", &queued]).exits(1);
    assert!(result.stdout().contains("REVOKED"), "{}", result.stdout());

    send(&[]);
    send(&["--countdown", "3600"]);
    place.run(&["purge", "-Q", "celery"]).exits(2);
    let purged = place.run(&["purge", "-Q", "celery", "--force", "--json"]).exits(0).json();
    assert_eq!(purged[0]["dropped"], 2);
    place.run(&["doctor"]).exits(0);
}

#[test]
fn what_is_not_dead_is_not_revived() {
    let place = Place::new();
    place.run(&["call", "some.task", "--task-id", "waiting"]).exits(0);
    place.run(&["dead", "retry", "waiting"]).exits(4);
    place.run(&["dead", "drop", "waiting"]).exits(4);
    assert_eq!(place.run(&["queues", "--json"]).exits(0).json()[0]["ready"], 1);
    assert!(place.run(&["dead", "list", "--json"]).exits(0).json().is_empty());
}

#[test]
fn the_same_key_is_the_same_call() {
    let place = Place::new();
    let send = || place.run(&["call", "some.task", "--idempotency-key", "k"]).exits(0).stdout();
    assert_eq!(send(), send());
    assert_eq!(place.run(&["queues", "--json"]).json()[0]["ready"], 1);
}

#[test]
fn a_store_is_made_by_many_at_once() {
    let place = Place::new();
    let makers: Vec<_> = (0..8)
        .map(|_| place.command(&["call", "some.task"]).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    for mut maker in makers {
        assert_eq!(maker.wait().unwrap().code(), Some(0));
    }
    assert_eq!(place.run(&["queues", "--json"]).exits(0).json()[0]["ready"], 8);
}
