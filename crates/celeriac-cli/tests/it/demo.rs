//! The demonstration, undisturbed and killed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Place;

/// Documents with so much to compare that a run takes a while.
fn documents(place: &Place, count: usize, sections: usize) {
    let words =
        ["queue", "worker", "lease", "message", "store", "result", "chain", "chord", "token", "stream"];
    for document in 0..count {
        let mut text = format!("# Document {document}\n\n");
        for section in 0..sections {
            let _ = writeln!(text, "## Section {section}\n");
            for sentence in 0..60 {
                let word = |n: usize| words[(document * 7 + section * 5 + sentence * n) % words.len()];
                let _ = writeln!(
                    text,
                    "The {} of a {} keeps its {} when a {} is lost.",
                    word(1),
                    word(3),
                    word(7),
                    word(9)
                );
            }
        }
        std::fs::create_dir_all(place.path("docs")).unwrap();
        std::fs::write(place.path(&format!("docs/{document}.md")), text).unwrap();
    }
}

#[test]
fn a_folder_is_digested() {
    let place = Place::new();
    documents(&place, 2, 2);
    let report = place.run(&["demo", "docs", "-o", "out.md", "--json"]).exits(0).json();
    assert_eq!(report[0]["documents"], 2);
    let text = std::fs::read_to_string(place.path("out.md")).unwrap();
    assert!(text.contains("Document 0") && text.contains("Section 1"), "{text}");
    // Nothing has changed: the same answer at once.
    assert_eq!(place.run(&["demo", "docs", "-o", "out.md", "--json"]).exits(0).json(), report);
    std::fs::remove_file(place.path("out.md")).unwrap();
    assert_eq!(place.run(&["demo", "docs", "-o", "out.md", "--json"]).exits(0).json(), report);
    assert!(place.path("out.md").exists());
}

/// An endpoint that streams the same three tokens to everybody, and counts who asked.
fn endpoint() -> (String, std::sync::Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            count.fetch_add(1, Ordering::SeqCst);
            let mut body = String::new();
            for piece in ["In short: ", "it is ", "durable."] {
                let _ =
                    writeln!(body, "data: {{\"choices\": [{{\"delta\": {{\"content\": \"{piece}\"}}}}]}}\n");
            }
            body.push_str("data: [DONE]\n\n");
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            // The rest of the request may still be on its way; what is asked does not matter here.
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    (url, asked)
}

#[test]
fn a_language_model_writes_the_summaries_and_is_paid_once() {
    let place = Place::new();
    documents(&place, 1, 3);
    let (url, asked) = endpoint();
    let arguments = ["demo", "docs", "-o", "out.md", "--llm-url", &url];
    place.run(&arguments).exits(0);
    let text = std::fs::read_to_string(place.path("out.md")).unwrap();
    assert_eq!(text.matches("In short: it is durable.").count(), 3, "{text}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let events = place.run(&["events", "--json"]).exits(0).json();
    let tokens: String = events
        .iter()
        .filter(|event| event["event"] == "token" && event["id"] == events[0]["id"])
        .map(|event| event["data"]["text"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, "In short: it is durable.");
    // Once more: everything is there.
    place.run(&arguments).exits(0);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn a_killed_run_goes_on_and_repeats_no_finished_step() {
    let place = Place::new();
    documents(&place, 6, 20);
    let mut first = place
        .command(&["demo", "docs", "-o", "out.md", "-c", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Kill it when some sections are done.
    let done = || {
        let events = place.run(&["events", "--json"]);
        events.json().iter().filter(|event| event["event"] == "step").count()
    };
    while done() < 5 {
        assert!(first.try_wait().unwrap().is_none(), "the run ended before it could be killed");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let before = done();
    assert!(before < 120, "the run had finished before it was killed");
    assert!(!place.path("out.md").exists());

    let second = place.run(&["demo", "docs", "-o", "out.md", "-c", "2"]).exits(0);
    assert!(second.stderr().contains("going on"), "{}", second.stderr());
    let mut steps: HashMap<String, u32> = HashMap::new();
    for event in place.run(&["events", "--json"]).exits(0).json() {
        if event["event"] == "step" {
            *steps.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    assert_eq!(steps.len(), 120, "every section was summarised");
    assert!(steps.values().all(|&count| count == 1), "{steps:?}");
}
