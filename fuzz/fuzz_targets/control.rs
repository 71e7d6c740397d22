//! What is no task: events, requests to workers, and their answers.
#![no_main]

use celeriac::protocol::{RawMessage, event, pidbox};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(raw) = RawMessage::from_envelope(data) else { return };
    if let Ok(events) = event::decode(&raw) {
        let events: Vec<_> = events.into_iter().flatten().collect();
        for message in event::encode(&events) {
            let again = event::decode(&message.message).expect("our own message");
            assert!(again.iter().all(Result::is_ok), "our own events");
        }
    }
    if let Ok((request, _)) = pidbox::Request::decode(&raw) {
        let _ = request.is_for("w1@host");
        pidbox::Request::decode(&request.encode("tag")).expect("our own request");
    }
    if let Ok(replies) = pidbox::Reply::decode(&raw) {
        let to = pidbox::ReplyTo { exchange: "x".to_owned(), routing_key: "k".to_owned() };
        for reply in replies {
            pidbox::Reply::decode(&reply.encode(&to)).expect("our own answer");
        }
    }
});
