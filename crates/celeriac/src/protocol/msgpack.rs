//! Bodies in msgpack, as kombu writes them: strings as str, bytes as bin, keys as str.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rmpv::ValueRef;

use super::{DecodeError, Json, extended, scan, writer};

const DEPTH_MAX: usize = 128;

/// The JSON text of a msgpack value; bytes become the extended type `base64`.
pub(super) fn to_json(bytes: &[u8]) -> Result<String, DecodeError> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_ref_with_max_depth(&mut rest, DEPTH_MAX);
    let value = value.map_err(|why| invalid(&why))?;
    if !rest.is_empty() {
        return Err(invalid(&format_args!("{} bytes follow the value", rest.len())));
    }
    let mut out = String::with_capacity(bytes.len() * 2);
    write(&mut out, &value)?;
    Ok(out)
}

fn invalid(why: &dyn std::fmt::Display) -> DecodeError {
    DecodeError::invalid("body", format_args!("msgpack: {why}"))
}

fn write(out: &mut String, value: &ValueRef<'_>) -> Result<(), DecodeError> {
    match value {
        ValueRef::Nil => out.push_str("null"),
        ValueRef::Boolean(flag) => out.push_str(if *flag { "true" } else { "false" }),
        ValueRef::Integer(number) => {
            // Writing to a String cannot fail.
            let _ = write!(out, "{number}");
        }
        ValueRef::F32(number) => float(out, f64::from(*number)),
        ValueRef::F64(number) => float(out, *number),
        ValueRef::String(text) => match text.as_str() {
            Some(text) => writer::string(out, text),
            None => return Err(invalid(&"a string is not UTF-8; send bytes with use_bin_type")),
        },
        ValueRef::Binary(bytes) => {
            let mut object = writer::Object::new(out);
            object.text("__type__", "base64");
            object.text("__value__", &BASE64.encode(bytes));
            object.end();
        }
        ValueRef::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(out, item)?;
            }
            out.push(']');
        }
        ValueRef::Map(entries) => {
            let mut object = writer::Object::new(out);
            for (key, value) in entries {
                let key = match key {
                    ValueRef::String(key) => key.as_str(),
                    _ => None,
                };
                let key = key.ok_or_else(|| invalid(&"a key is not a string"))?;
                write(object.key(key), value)?;
            }
            object.end();
        }
        ValueRef::Ext(kind, _) => {
            return Err(invalid(&format_args!("extension type {kind} is not known here")));
        }
    }
    Ok(())
}

pub(super) fn float(out: &mut String, number: f64) {
    if number.is_nan() {
        out.push_str("NaN");
    } else if number.is_infinite() {
        out.push_str(if number < 0.0 { "-Infinity" } else { "Infinity" });
    } else {
        // The debug form always has a fraction or an exponent, so that it stays a float.
        let _ = write!(out, "{number:?}");
    }
}

/// The msgpack form of a JSON text.
pub(super) fn from_json(text: &str) -> Result<Vec<u8>, DecodeError> {
    let text = scan::value(text, DEPTH_MAX).map_err(|why| invalid(&why))?;
    let mut out = Vec::with_capacity(text.len());
    let value = value(text)?;
    rmpv::encode::write_value(&mut out, &value).map_err(|why| invalid(&why))?;
    Ok(out)
}

fn value(text: &str) -> Result<rmpv::Value, DecodeError> {
    let value = match text.as_bytes().first() {
        Some(b'n') => rmpv::Value::Nil,
        Some(b't') => true.into(),
        Some(b'f') => false.into(),
        Some(b'"') => scan::string(text).unwrap_or_default().into_owned().into(),
        Some(b'[') => {
            let items = scan::items(text).map_err(|why| invalid(&why))?;
            rmpv::Value::Array(
                items
                    .map(|item| self::value(item.map_err(|why| invalid(&why))?))
                    .collect::<Result<_, _>>()?,
            )
        }
        Some(b'{') => return object(text),
        _ => return number(text),
    };
    Ok(value)
}

fn object(text: &str) -> Result<rmpv::Value, DecodeError> {
    // Later keys win over earlier ones, which a map takes care of.
    let entries = Json::trusted(text).entries().map_err(|why| invalid(&why))?;
    if entries.len() == 2
        && let (Some(kind), Some(_)) = (entries.get("__type__"), entries.get("__value__"))
    {
        let Ok(bytes) = Json::trusted(text).to::<extended::Bytes>() else {
            return Err(invalid(&format_args!("the extended type {kind} has no form in it; use json")));
        };
        return Ok(bytes.0.into());
    }
    let entries = entries.into_iter().map(|(key, value)| Ok((key.into(), self::value(value.as_str())?)));
    Ok(rmpv::Value::Map(entries.collect::<Result<_, DecodeError>>()?))
}

fn number(text: &str) -> Result<rmpv::Value, DecodeError> {
    let json = Json::trusted(text);
    if text.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9')) {
        if let Ok(number) = json.to::<u64>() {
            return Ok(number.into());
        }
        let number = json
            .to::<i64>()
            .map_err(|_| invalid(&format_args!("{text} does not fit in 64 bits; use json")))?;
        return Ok(number.into());
    }
    json.to::<f64>().map(Into::into).map_err(|why| invalid(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = r#"[[2, -3, 1.5, NaN, 18446744073709551615, "\u00e9", null, true], {"a": {"b": []}}]"#;
        assert_eq!(to_json(&from_json(text).unwrap()).unwrap(), text);
        let bytes = r#"{"__type__": "base64", "__value__": "/wA="}"#;
        assert_eq!(from_json(bytes).unwrap(), [0xc4, 2, 0xff, 0]);
        assert_eq!(to_json(&[0xc4, 2, 0xff, 0]).unwrap(), bytes);
    }

    #[test]
    fn what_has_no_form_is_refused() {
        assert!(from_json("99999999999999999999").is_err());
        assert!(from_json(r#"{"__type__": "date", "__value__": "2026-01-02"}"#).is_err());
        for bytes in [&[0x92, 1][..], &[1, 2], &[0x81, 1, 2], &[0xd4, 5, 0], &[0xa1, 0xff]] {
            assert!(to_json(bytes).is_err(), "{bytes:?}");
        }
        assert!(to_json(&[0x91; 1000]).is_err());
    }
}
