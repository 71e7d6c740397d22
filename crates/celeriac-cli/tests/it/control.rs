//! Which workers there are, and remote control.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Place, Ran};

/// A worker process, killed when the test is over.
struct Worker(Child);

impl Worker {
    fn start(place: &Place, name: &str) -> Self {
        let arguments = ["worker", "-n", name, "-Q", "here,there", "-c", "2"];
        Self(place.command(&arguments).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command until it does as awaited: each run takes its time, and nothing is waited for in between.
fn until(place: &Place, arguments: &[&str], awaited: impl Fn(&Ran) -> bool) -> Ran {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ran = place.run(arguments);
        if awaited(&ran) {
            return ran;
        }
        assert!(Instant::now() < deadline, "{arguments:?}: {}{}", ran.stdout(), ran.stderr());
    }
}

fn nodes(ran: &Ran) -> Vec<Value> {
    ran.json().into_iter().map(|document| document["node"].clone()).collect()
}

#[test]
fn workers_are_listed_asked_and_told() {
    let place = Place::new();
    for arguments in [&["status"] as &[&str], &["inspect", "ping"], &["control", "pool_grow"]] {
        let ran = place.run(arguments).exits(1);
        assert!(ran.stderr().contains("no worker answered") && ran.stderr().contains("celeriac worker"));
    }
    let (_a, mut b) = (Worker::start(&place, "a@host"), Worker::start(&place, "b@host"));
    let status = until(&place, &["status", "--json", "-t", "30"], |ran| nodes(ran).len() == 2);
    let status = status.exits(0).json();
    assert_eq!((&status[0]["node"], &status[0]["status"]), (&json!("a@host"), &json!("online")));
    assert_eq!((&status[1]["queues"], &status[1]["concurrency"]), (&json!("here,there"), &json!(2)));
    let table = place.run(&["status", "-t", "30"]).exits(0);
    assert!(table.stdout().contains("b@host") && table.stderr().contains("2 nodes online"));

    let ping = place.run(&["inspect", "ping", "-t", "30"]).exits(0).stdout();
    assert_eq!(ping, "a@host: OK\n    pong\nb@host: OK\n    pong\n");
    let stats = place.run(&["inspect", "stats", "-d", "b@host", "-t", "30", "--json"]).exits(0).json();
    assert_eq!((stats.len(), &stats[0]["reply"]["pid"]), (1, &json!(b.0.id())));
    let unknown = place.run(&["inspect", "query_task", "some-id", "-d", "a@host", "-t", "30"]).exits(0);
    assert_eq!(unknown.stdout(), "a@host: OK\n    {}\n");
    place.run(&["inspect", "query_task"]).exits(2);
    place.run(&["inspect", "ping", "pong"]).exits(2);
    place.run(&["inspect", "no_such_command"]).exits(2);

    let grown = place.run(&["control", "pool_grow", "3", "-d", "a@host", "-t", "30"]).exits(0);
    assert_eq!(grown.stdout(), "a@host: OK\n    pool will grow\n");
    until(&place, &["status", "--json", "-t", "30"], |ran| ran.json()[0]["concurrency"] == 5).exits(0);
    let refused = place.run(&["control", "rate_limit", "no.such.task", "1/s", "-t", "30"]).exits(1);
    assert!(refused.stdout().contains("b@host: ERROR\n    unknown task"), "{}", refused.stdout());
    place.run(&["control", "add_consumer", "-t", "30"]).exits(2);
    let nobody = place.run(&["control", "shutdown", "-d", "c@host"]).exits(1);
    assert!(nobody.stderr().contains("online are a@host, b@host"), "{}", nobody.stderr());

    place.run(&["control", "shutdown", "-d", "b@host", "-t", "30"]).exits(0);
    assert_eq!(b.0.wait().unwrap().code(), Some(0));
    assert_eq!(nodes(&place.run(&["status", "--json", "-t", "30"]).exits(0)), ["a@host"]);
}

#[test]
fn a_killed_worker_is_listed_no_more_when_its_heartbeat_has_expired() {
    let place = Place::new();
    std::fs::write(place.path("celeriac.toml"), "worker_heartbeat_interval = 0.1\n").unwrap();
    let mut worker = Worker::start(&place, "a@host");
    until(&place, &["inspect", "ping", "-t", "30"], |ran| !ran.stdout().is_empty()).exits(0);
    worker.0.kill().unwrap();
    worker.0.wait().unwrap();
    until(&place, &["status", "--json", "-t", "0"], |ran| nodes(ran).is_empty()).exits(1);
}
