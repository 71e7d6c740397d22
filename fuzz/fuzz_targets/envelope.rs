//! An envelope, and the message in it.
#![no_main]

use celeriac::protocol::{Message, RawMessage};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(raw) = RawMessage::from_envelope(data) else { return };
    let _ = raw.summary();
    let envelope = raw.to_envelope().expect("what came from an envelope fits into one");
    assert_eq!(RawMessage::from_envelope(envelope.as_bytes()).expect("our own envelope"), raw);
    if let Ok(message) = Message::decode(&raw) {
        let again = Message::decode(&message.encode().expect("a message can be written")).expect("our own message");
        assert_eq!(again.body, message.body);
    }
});
