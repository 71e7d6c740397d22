//! The body of a message in application/x-yaml.
#![no_main]

use celeriac::protocol::{Message, RawMessage};

const HEAD: &str = r#"{"content-type": "application/x-yaml", "headers": {"task": "t", "id": "1"}, "properties": {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": "1", "body_encoding": "base64"}}"#;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let raw = RawMessage { head: HEAD.into(), body: data.to_vec().into() };
    if let Ok(message) = Message::decode(&raw) {
        let again = Message::decode(&message.encode().expect("a message can be written")).expect("our own message");
        assert_eq!(again.body, message.body);
    }
});
