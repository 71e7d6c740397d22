//! kombu's extended types: what JSON has no form for, as an object with exactly the keys `__type__` and `__value__`.
//!
//! Each type here reads and writes such an object through serde, so that a task in Rust can take and return a datetime,
//! bytes or a decimal of Python's. They also read the plain form (`"2026-01-02"`), which other languages send.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::civil;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{DecodeError, Json, JsonError, date, scan};
use crate::clock::Timestamp;

/// Checks every extended type inside a value. An unknown one makes a document unreadable, in Python as here: only the
/// application that registered it knows what it means.
///
/// # Errors
/// The first `__type__` that is unknown, or whose `__value__` is not of that type.
pub fn check_value(json: &Json) -> Result<(), DecodeError> {
    check(json.as_str()).map_err(|why| DecodeError::invalid("value", why))
}

/// The same for text that is to be JSON. Text without such types is not scanned.
pub(super) fn check(text: &str) -> Result<(), JsonError> {
    // The key may be written with an escaped underscore; nobody does, but then it is the same key.
    let possible = text.contains("__type__") || text.contains("\\u005");
    if possible { scan::extended_types(text, check_one) } else { Ok(()) }
}

fn check_one(type_name: &str, value: &str) -> Result<(), JsonError> {
    let text = scan::string(value);
    let text = text.as_deref();
    let good = match scan::string(type_name).as_deref() {
        Some("datetime") => text.is_some_and(|text| date::Parts::read(text).is_some()),
        Some("date") => text.is_some_and(|text| date::parse_date(text).is_some()),
        Some("time") => text.is_some_and(|text| date::parse_time(text).is_some()),
        Some("decimal") => text.is_some_and(is_decimal),
        Some("uuid") => {
            Json::trusted(value).to::<Hex>().is_ok_and(|uuid| uuid::Uuid::try_parse(&uuid.hex).is_ok())
        }
        Some("bytes") => text.is_some(),
        Some("base64") => text.is_some_and(|text| BASE64.decode(text).is_ok()),
        _ => {
            let why = format!("the extended type {type_name} is not known here; send it as plain JSON");
            return Err(JsonError(why));
        }
    };
    if good { Ok(()) } else { Err(JsonError(format!("{value} is not of the extended type {type_name}"))) }
}

/// What Python's `Decimal` reads, without its underscores and non-ASCII digits.
fn is_decimal(text: &str) -> bool {
    let text = text.trim().trim_start_matches(['+', '-']);
    if matches!(text.to_ascii_lowercase().as_str(), "nan" | "snan" | "inf" | "infinity") {
        return true;
    }
    let (number, exponent) =
        text.split_once(['e', 'E']).map_or((text, None), |(number, exp)| (number, Some(exp)));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let good_exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && good_exponent
}

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    __type__: &'a str,
    __value__: T,
}

fn write<S: Serializer>(serializer: S, type_name: &str, value: impl Serialize) -> Result<S::Ok, S::Error> {
    Tagged { __type__: type_name, __value__: value }.serialize(serializer)
}

/// Reads a tagged value, or a plain one; the first part is empty for a plain one.
fn read<'de, D: Deserializer<'de>>(deserializer: D, known: &[&str]) -> Result<(String, Json), D::Error> {
    let json = Json::deserialize(deserializer)?;
    let Ok(mut entries) = json.entries() else { return Ok((String::new(), json)) };
    let name = entries.get("__type__").and_then(|name| name.as_string().map(std::borrow::Cow::into_owned));
    match (name, entries.remove("__value__")) {
        (Some(name), Some(value)) if known.contains(&name.as_str()) => Ok((name, value)),
        _ => {
            Err(de::Error::custom(format_args!("{json} is not of the extended type {}", known.join(" or "))))
        }
    }
}

fn read_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    known: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let (_, value) = read(deserializer, &[known])?;
    let parsed = value.as_string().and_then(|text| parse(&text));
    parsed.ok_or_else(|| de::Error::custom(format_args!("{value} is not a {known}")))
}

macro_rules! extended {
    ($(#[$doc:meta])* $name:ident($inner:ty), $tag:literal, $parse:expr, $write:expr;) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(pub $inner);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text: fn(&$inner) -> String = $write;
                write(serializer, $tag, text(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let parse: fn(&str) -> Option<$inner> = $parse;
                read_text(deserializer, $tag, parse).map(Self)
            }
        }
    };
}

extended! {
    /// A `datetime` with an offset, written in UTC with microseconds. One without an offset is read as UTC.
    DateTime(Timestamp), "datetime", |text| date::parse_iso8601(text).ok(), |at| {
        let mut out = String::new();
        date::iso8601(&mut out, *at);
        out
    };
}
extended! {
    /// A `datetime` without an offset. An offset that is there is left out of account.
    NaiveDateTime(civil::DateTime), "datetime", |text| date::Parts::read(text).map(|parts| parts.datetime),
    ToString::to_string;
}
extended! {
    /// A `date`.
    Date(civil::Date), "date", date::parse_date, ToString::to_string;
}
extended! {
    /// A `time` of day.
    Time(civil::Time), "time", date::parse_time, ToString::to_string;
}
extended! {
    /// A `Decimal`, as its digits: `1.50` keeps its zero.
    Decimal(String), "decimal", |text| is_decimal(text).then(|| text.to_owned()), String::clone;
}

/// A `UUID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub uuid::Uuid);

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(serializer, "uuid", Hex { hex: self.0.simple().to_string() })
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (tag, value) = read(deserializer, &["uuid"])?;
        let hex = if tag.is_empty() { value.to() } else { value.to::<Hex>().map(|uuid| uuid.hex) };
        uuid::Uuid::try_parse(&hex.map_err(de::Error::custom)?).map(Self).map_err(de::Error::custom)
    }
}

/// `bytes`: as text when they are UTF-8, in base64 otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => write(serializer, "bytes", text),
            Err(_) => write(serializer, "base64", BASE64.encode(&self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (tag, value) = read(deserializer, &["bytes", "base64"])?;
        let text =
            value.as_string().ok_or_else(|| de::Error::custom(format_args!("{value} is not bytes")))?;
        if tag == "base64" {
            return BASE64.decode(text.as_bytes()).map(Self).map_err(de::Error::custom);
        }
        Ok(Self(text.into_owned().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + de::DeserializeOwned>(text: &str) -> T {
        let value: T = Json::parse(text).unwrap().to().unwrap();
        assert_eq!(Json::from_value(&value).unwrap().as_str(), text);
        check(text).unwrap();
        value
    }

    #[test]
    fn every_type_round_trips() {
        let at: DateTime =
            round_trip(r#"{"__type__": "datetime", "__value__": "2026-01-02T03:04:05.678901+00:00"}"#);
        assert_eq!(at.0, "2026-01-02T03:04:05.678901Z".parse().unwrap());
        round_trip::<NaiveDateTime>(r#"{"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}"#);
        round_trip::<Date>(r#"{"__type__": "date", "__value__": "2026-01-02"}"#);
        round_trip::<Time>(r#"{"__type__": "time", "__value__": "03:04:05"}"#);
        round_trip::<Decimal>(r#"{"__type__": "decimal", "__value__": "1.50"}"#);
        round_trip::<Uuid>(
            r#"{"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000001"}}"#,
        );
        let bytes: Bytes = round_trip(r#"{"__type__": "bytes", "__value__": "abc"}"#);
        assert_eq!(bytes.0, b"abc");
        let bytes: Bytes = round_trip(r#"{"__type__": "base64", "__value__": "/wA="}"#);
        assert_eq!(bytes.0, [0xff, 0]);
    }

    #[test]
    fn plain_forms_are_read() {
        let read = |text| Json::parse(text).unwrap();
        assert_eq!(read("\"2026-01-02\"").to::<Date>().unwrap().0, civil::date(2026, 1, 2));
        assert_eq!(read("\"abc\"").to::<Bytes>().unwrap().0, b"abc");
        assert!(read("\"00000000-0000-0000-0000-000000000001\"").to::<Uuid>().is_ok());
        assert!(read("{\"__type__\": \"date\", \"__value__\": \"2026-01-02\"}").to::<Bytes>().is_err());
    }

    #[test]
    fn unknown_types_and_wrong_values_are_found_at_any_depth() {
        for text in [
            r#"[{"a": {"__type__": "zz", "__value__": 1}}]"#,
            r#"{"\u005f_type__": "zz", "__value__": 1}"#,
            r#"{"__type__": 1, "__value__": 1}"#,
            r#"{"__type__": "date", "__value__": "soon"}"#,
            r#"{"__type__": "base64", "__value__": "!"}"#,
            r#"{"__type__": "decimal", "__value__": "1.5.0"}"#,
            r#"{"__type__": "uuid", "__value__": "x"}"#,
        ] {
            assert!(check(text).is_err(), "{text}");
        }
        for text in [
            r#"{"__type__": "zz"}"#,
            r#"{"__type__": "zz", "__value__": 1, "more": 2}"#,
            r#"["__type__", "__value__"]"#,
            r#"{"__type__": "decimal", "__value__": "-1E+3"}"#,
        ] {
            check(text).unwrap();
        }
    }
}
