//! Bad input: each is refused with the thing and the remedy, and the right exit code.

use super::Place;

#[track_caller]
fn refused(place: &Place, arguments: &[&str], code: i32, names: &[&str]) {
    let ran = place.run(arguments).exits(code);
    for name in names {
        assert!(ran.stderr().contains(name), "{name:?} in {}", ran.stderr());
    }
    assert!(!ran.stderr().contains("panicked"), "{}", ran.stderr());
}

#[test]
fn mistakes_on_the_command_line() {
    let place = Place::new();
    refused(&place, &["-b", "nope://x", "queues"], 2, &["unknown scheme", "nope", "sqlite://PATH"]);
    refused(&place, &["-A", "no_such_app", "worker", "-P", "gevent"], 2, &["--pool gevent", "prefork"]);
    refused(&place, &["worker", "-P", "prefork"], 2, &["--pool", "-A"]);
    refused(&place, &["worker", "-B"], 2, &["--beat", "-A"]);
    refused(&place, &["call", "t", "-a", "{"], 2, &["--args", "array"]);
    refused(&place, &["call", "t", "-k", "[]"], 2, &["--kwargs", "object"]);
    refused(&place, &["call", "t", "--eta", "tomorrow"], 2, &["--eta tomorrow"]);
    refused(&place, &["call", "t", "--priority", "12"], 2, &["--priority"]);
    refused(&place, &["worker", "-c", "0"], 2, &["--concurrency"]);
    refused(&place, &["revoke", "x", "--signal", "KILL"], 2, &["--terminate"]);
    refused(&place, &["revoke", "x", "--terminate", "--signal", "NO"], 2, &["NO", "SIGTERM"]);
    refused(&place, &["--config", "none.toml", "queues"], 2, &["none.toml"]);
    refused(&place, &["dance"], 2, &["dance"]);
    refused(&place, &["result", "unheard-of"], 4, &["unheard-of"]);
    refused(&place, &["events", "unheard-of"], 4, &["unheard-of"]);
    refused(&place, &["demo", "no/such/folder"], 2, &["no/such/folder"]);
}

#[test]
fn stores_that_cannot_be_opened() {
    let place = Place::new();
    let url = |name: &str| format!("sqlite://{}", place.path(name).display());
    refused(&place, &["-b", &url("no/folder/x.db"), "queues"], 3, &["no/folder"]);
    std::fs::write(
        place.path("garbage.db"),
        "this is not a database, and long enough to be looked at closely".repeat(20),
    )
    .unwrap();
    refused(&place, &["-b", &url("garbage.db"), "queues"], 3, &["garbage.db"]);
    let kept = std::fs::read(place.path("garbage.db")).unwrap();
    assert!(kept.starts_with(b"this is not"), "the file is left as it was");
    refused(
        &place,
        &["-b", &format!("sqlite://{}", place.folder.path().display()), "queues"],
        3,
        &["directory"],
    );
    // `doctor` says the same as a finding.
    let found = place.run(&["-b", &url("garbage.db"), "doctor"]).exits(3);
    assert!(found.stdout().contains("BAD"), "{}", found.stdout());
}
