//! What Redis answers, taken apart. What has another form than it should counts as empty: the callers check what matters.

use redis::Value;

use crate::clock::Timestamp;

/// The elements of an array.
pub(crate) fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// The elements of an array, given away.
pub(crate) fn into_items(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => Vec::new(),
    }
}

/// The pairs of a map, which older protocols have as a flat array.
pub(crate) fn pairs(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(pairs) => pairs.iter().map(|(key, value)| (key, value)).collect(),
        _ => items(value).chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
    }
}

/// Bytes; `None` for nil.
pub(crate) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        Value::Okay => Some(b"OK"),
        _ => None,
    }
}

/// Text; `None` for nil and for what is not UTF-8.
pub(crate) fn text(value: &Value) -> Option<&str> {
    std::str::from_utf8(bytes(value)?).ok()
}

/// Text, empty for nil and mended where it is not UTF-8.
pub(crate) fn lossy(value: &Value) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes(value).unwrap_or_default())
}

/// The score of the first member of a sorted set read with scores, which newer protocols have in pairs.
pub(crate) fn first_score(value: &Value) -> Option<f64> {
    let score = match items(value) {
        [pair @ Value::Array(_), ..] => items(pair).get(1)?,
        [_, score, ..] => score,
        _ => return None,
    };
    match score {
        Value::Double(score) => Some(*score),
        other => text(other)?.parse().ok(),
    }
}

/// A whole number, 0 for anything else.
pub(crate) fn integer(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        Value::Double(number) => *number as i64,
        Value::Boolean(flag) => i64::from(*flag),
        other => text(other).and_then(|text| text.parse().ok()).unwrap_or(0),
    }
}

/// A count, 0 for anything else.
pub(crate) fn count(value: &Value) -> u64 {
    u64::try_from(integer(value)).unwrap_or(0)
}

/// A time as this store writes it; `None` for anything else.
pub(crate) fn time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Int(micros) => Some(time_of(*micros)),
        other => text(other).and_then(time_in),
    }
}

/// The same, of a text.
pub(crate) fn time_in(text: &str) -> Option<Timestamp> {
    text.parse().ok().map(time_of)
}

/// What lies past the end of time is the end of time.
fn time_of(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// A time as this store writes it: microseconds, which a double of Lua or of a score has without loss for two centuries
/// to come.
pub(crate) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// A time as Celery writes it in scores: seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    format!("{:.6}", micros(at) as f64 / 1e6)
}

/// The same for `unacked_index`, in whole seconds and never too early: Redis keeps the scores of a small set as texts where
/// they are no whole numbers, and reads one after the other again for each member that comes.
pub(crate) fn seconds_held(at: Timestamp) -> String {
    micros(at).div_euclid(1_000_000).saturating_add(1).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_time_comes_back() {
        for at in [Timestamp::MAX, Timestamp::constant(1_767_225_600, 500_000_000)] {
            let written = Value::BulkString(micros(at).to_string().into_bytes());
            assert_eq!(time(&written).map(micros), Some(micros(at)), "{at}");
        }
    }
}
