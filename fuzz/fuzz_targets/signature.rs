//! A signature and the parts of composites.
#![no_main]

use celeriac::protocol::{Json, Signature};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(signature) = Json::parse(text).map_err(drop).and_then(|json| Signature::decode(&json).map_err(drop)) else {
        return;
    };
    assert_eq!(Signature::decode(&signature.encode()).expect("our own signature"), signature);
    let _ = (signature.tasks(), signature.chord_parts(), signature.map_parts());
});
