//! The bytes of a stream: frames of server-sent events, as the WHATWG's text has them.

use std::time::Duration;

use bytes::Bytes;
use celeriac::Json;
use celeriac::backend::{FeedRecord, LogEntry};

use crate::json::Raw;

/// A comment: keeps the connection alive, and is seen by nobody.
pub(super) const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// A heartbeat that a page can see, without an id, so that it moves nobody's position.
pub(super) const HEARTBEAT: Bytes = Bytes::from_static(b"event: heartbeat\ndata: {}\n\n");

/// What a stream begins with: how long to wait before reconnecting, and the position it begins after. An id without data
/// is noted by clients and dispatched to nobody, so that a connection lost before its first record resumes in the right
/// place.
pub(super) fn head(retry: Duration, position: u64) -> Bytes {
    Bytes::from(format!("retry: {}\n\nid: {position}\n\n", retry.as_millis()))
}

/// What a stream that the server closes ends with: when to come back, and where to go on. A stream that leaves records
/// out has got further than the last one it sent.
pub(super) fn farewell(retry: Duration, position: u64) -> Bytes {
    Bytes::from(format!("retry: {}\nid: {position}\n\n", retry.as_millis()))
}

/// A record of a task's log.
pub(super) fn of_task(entry: &LogEntry) -> Bytes {
    frame(entry.position, &entry.event, Raw::new(&entry.data).as_str())
}

/// A record of the feed.
pub(super) fn of_feed(record: &FeedRecord) -> Bytes {
    let FeedRecord { number, task_id, task, entry } = record;
    let data = format!(
        "{{\"task_id\":{},\"task\":{},\"position\":{},\"data\":{}}}",
        Json::string(task_id.as_str()),
        Json::string(task),
        entry.position,
        Raw::new(&entry.data).as_str()
    );
    frame(*number, &entry.event, &data)
}

fn frame(id: u64, event: &str, data: &str) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + event.len() + 48);
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id.to_string().as_bytes());
    // Without a name it is a `message`, for clients as well.
    if !event.is_empty() {
        out.extend_from_slice(b"\nevent: ");
        // What would end the line, or the text in C, is not part of a name.
        out.extend(event.bytes().map(|byte| if matches!(byte, b'\r' | b'\n' | 0) { b'_' } else { byte }));
    }
    out.extend_from_slice(b"\ndata: ");
    // In JSON a raw line break can only stand between tokens, where a space means the same. Other separators of lines,
    // such as U+2028, end none here.
    out.extend(data.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    out.extend_from_slice(b"\n\n");
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use celeriac::Timestamp;

    fn entry(event: &str, data: &str) -> LogEntry {
        let data = Json::parse(data).unwrap();
        LogEntry { position: 7, event: event.into(), data, at: Timestamp::UNIX_EPOCH }
    }

    fn text(event: &str, data: &str) -> String {
        String::from_utf8(of_task(&entry(event, data)).to_vec()).unwrap()
    }

    #[test]
    fn frames_have_one_line_a_field() {
        assert_eq!(
            text("token", r#"{"text": "a\nb"}"#),
            "id: 7\nevent: token\ndata: {\"text\": \"a\\nb\"}\n\n"
        );
        assert_eq!(text("a\nid: 9\r\0", "1"), "id: 7\nevent: a_id: 9__\ndata: 1\n\n");
        assert_eq!(text("", "1"), "id: 7\ndata: 1\n\n");
        assert_eq!(text("a: b", "[1,\r\n2,\r3]"), "id: 7\nevent: a: b\ndata: [1,  2, 3]\n\n");
        assert_eq!(text("x", "\"\u{2028}\""), "id: 7\nevent: x\ndata: \"\u{2028}\"\n\n");
    }

    #[test]
    fn pythons_liberties_are_not_passed_on() {
        assert_eq!(
            text("x", r#"{"a": NaN, "b": [-Infinity]}"#),
            "id: 7\nevent: x\ndata: {\"a\": null, \"b\": [null]}\n\n"
        );
        // What stands beside them is left as it is.
        let beside = r#"{"b": 123456789012345678901234567890, "a": NaN}"#;
        assert_eq!(
            text("x", beside),
            format!("id: 7\nevent: x\ndata: {}\n\n", beside.replace("NaN", "null"))
        );
    }

    #[test]
    fn the_feed_says_whose_record_it_is() {
        let entry = entry("token", "{}");
        let record = FeedRecord { number: 40, task_id: "a\"b".into(), task: "t".into(), entry };
        let expected = r#"{"task_id":"a\"b","task":"t","position":7,"data":{}}"#;
        assert_eq!(of_feed(&record), format!("id: 40\nevent: token\ndata: {expected}\n\n"));
    }
}
