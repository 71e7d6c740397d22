//! A compressed body; the first byte says how.
#![no_main]

use celeriac::protocol::{Message, RawMessage};

const NAMES: [&str; 5] = ["gzip", "bzip2", "lzma", "zstd", "brotli"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let head = format!(
        r#"{{"content-type": "application/json", "headers": {{"task": "t", "id": "1", "compression": "{name}"}}, "properties": {{"delivery_info": {{"exchange": ""}}, "delivery_tag": "1", "body_encoding": "base64"}}}}"#
    );
    let _ = Message::decode(&RawMessage { head: head.into(), body: body.to_vec().into() });
});
