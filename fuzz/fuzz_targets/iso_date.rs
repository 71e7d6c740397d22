//! Celery's dates.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = celeriac::protocol::parse_iso8601(text);
});
