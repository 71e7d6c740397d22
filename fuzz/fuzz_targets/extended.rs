//! kombu's extended types.
#![no_main]

use celeriac::protocol::{Json, extended};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(json) = Json::parse(text) else { return };
    let _ = extended::check_value(&json);
    let _ = (json.to::<extended::DateTime>(), json.to::<extended::NaiveDateTime>(), json.to::<extended::Date>());
    let _ = (json.to::<extended::Time>(), json.to::<extended::Decimal>(), json.to::<extended::Uuid>());
    if let Ok(bytes) = json.to::<extended::Bytes>() {
        let again = Json::from_value(&bytes).expect("bytes can be written");
        assert_eq!(again.to::<extended::Bytes>().expect("our own bytes"), bytes);
    }
});
