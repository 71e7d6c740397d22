//! The meta of a result in every serializer, compressed or not, and result tuples.
#![no_main]

use celeriac::protocol::{Json, ResultMeta, ResultTuple, Serializer};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
        if let Ok(meta) = ResultMeta::decode_as(serializer, data) {
            let _ = meta.exception();
            let text = meta.encode().expect("a meta can be written");
            ResultMeta::decode(text.as_str().as_bytes()).expect("our own meta");
        }
    }
    if let Some(json) = std::str::from_utf8(data).ok().and_then(|text| Json::parse(text).ok())
        && let Ok(tuple) = ResultTuple::decode(&json)
    {
        assert_eq!(ResultTuple::decode(&tuple.encode()).expect("our own tuple"), tuple);
    }
});
