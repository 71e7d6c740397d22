//! One JSON value, its parts, and what becomes of it as arguments.
#![no_main]

use celeriac::protocol::{Json, JsonMap, python_repr};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(json) = Json::parse(text) else { return };
    assert_eq!(Json::parse(json.as_str()).expect("the text of a value"), json);
    if let Ok(items) = json.array_items() {
        assert_eq!(Json::array(&items).array_items().expect("our own array"), items);
    }
    if let Ok(entries) = json.entries() {
        assert_eq!(entries.to_json().entries().expect("our own object"), entries);
    }
    let _ = (json.to::<JsonMap>(), json.to::<Vec<f64>>(), json.to::<i128>(), json.to::<String>());
    assert!(python_repr(&json).chars().count() <= 1024);
});
