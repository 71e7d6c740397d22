//! Bodies in YAML. Needs the feature `yaml`; without it they are refused by name.

#[cfg(not(feature = "yaml"))]
use super::DecodeError;

#[cfg(not(feature = "yaml"))]
fn missing() -> DecodeError {
    DecodeError::ContentType {
        content_type: "application/x-yaml".to_owned(),
        remedy: "build with the feature `yaml`, or set task_serializer to json in the producer",
    }
}

#[cfg(not(feature = "yaml"))]
pub(super) fn to_json(_text: &str) -> Result<String, DecodeError> {
    Err(missing())
}

#[cfg(not(feature = "yaml"))]
pub(super) fn from_json(_json: &str) -> Result<Vec<u8>, DecodeError> {
    Err(missing())
}

#[cfg(feature = "yaml")]
pub(super) use with_feature::{from_json, to_json};

#[cfg(feature = "yaml")]
mod with_feature {
    use std::fmt;

    use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

    use super::super::{DecodeError, Json, extended, msgpack, scan, writer};

    /// The JSON text of a YAML document. Dates, which YAML writes without quotes, come out as strings, and so do bytes
    /// that are UTF-8; other bytes are refused, as the library has no way to show them when no type is asked for.
    pub(in super::super) fn to_json(text: &str) -> Result<String, DecodeError> {
        let options = serde_saphyr::options! {
            // As Python's safe loader: a key `n` or `y` is a string.
            strict_booleans: true,
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
            non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
            reject_unsupported_tags: true,
            // Errors end up in logs, the arguments of tasks should not.
            with_snippet: false,
        };
        let text = serde_saphyr::from_str_with_options::<Text>(text, options);
        text.map(|text| text.0).map_err(|why| invalid(&why))
    }

    /// The YAML form of a JSON text, in flow style.
    pub(in super::super) fn from_json(json: &str) -> Result<Vec<u8>, DecodeError> {
        let json = scan::value(json, scan::DOCUMENT_DEPTH_MAX).map_err(|why| invalid(&why))?;
        let mut out = String::with_capacity(json.len() + 1);
        write(&mut out, json)?;
        out.push('\n');
        Ok(out.into_bytes())
    }

    fn invalid(why: &dyn fmt::Display) -> DecodeError {
        DecodeError::invalid("body", format_args!("yaml: {why}"))
    }

    fn write(out: &mut String, value: &str) -> Result<(), DecodeError> {
        match value.as_bytes().first() {
            Some(b'[') => {
                out.push('[');
                for (index, item) in scan::items(value).map_err(|why| invalid(&why))?.enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    write(out, item.map_err(|why| invalid(&why))?)?;
                }
                out.push(']');
            }
            Some(b'{') => write_object(out, value)?,
            Some(b'"') => write_string(out, &scan::string(value).unwrap_or_default()),
            Some(b't' | b'f' | b'n') => out.push_str(value),
            _ if value.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9')) => out.push_str(value),
            _ => write_float(out, Json::trusted(value).to().map_err(|why| invalid(&why))?),
        }
        Ok(())
    }

    fn write_object(out: &mut String, value: &str) -> Result<(), DecodeError> {
        let entries = Json::trusted(value).entries().map_err(|why| invalid(&why))?;
        if entries.len() == 2 && entries.contains_key("__type__") && entries.contains_key("__value__") {
            let Ok(bytes) = Json::trusted(value).to::<extended::Bytes>() else {
                return Err(invalid(&format_args!("{value} has no form in it; use json")));
            };
            out.push_str("!!binary ");
            use base64::Engine as _;
            writer::string(out, &base64::engine::general_purpose::STANDARD.encode(bytes.0));
            return Ok(());
        }
        out.push('{');
        for (index, (key, value)) in entries.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            write_string(out, key);
            out.push_str(": ");
            write(out, value.as_str())?;
        }
        out.push('}');
        Ok(())
    }

    /// As in JSON, except that nothing is written as a pair of surrogates: YAML readers do not join them.
    fn write_string(out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            if matches!(character, '\u{10000}'..) {
                out.push_str(&format!("\\U{:08x}", u32::from(character)));
            } else {
                let mut quoted = String::new();
                writer::string(&mut quoted, character.encode_utf8(&mut [0; 4]));
                out.push_str(&quoted[1..quoted.len() - 1]);
            }
        }
        out.push('"');
    }

    /// YAML 1.1, which Python reads, takes `1e16` for a string: it wants a point and a sign.
    fn write_float(out: &mut String, number: f64) {
        if number.is_nan() {
            out.push_str(".nan");
        } else if number.is_infinite() {
            out.push_str(if number < 0.0 { "-.inf" } else { ".inf" });
        } else {
            let text = format!("{number:?}");
            match text.split_once('e') {
                None => out.push_str(&text),
                Some((digits, exponent)) => {
                    let point = if digits.contains('.') { "" } else { ".0" };
                    let sign = if exponent.starts_with('-') { "" } else { "+" };
                    out.push_str(&format!("{digits}{point}e{sign}{exponent}"));
                }
            }
        }
    }

    /// JSON text made of whatever a deserializer shows.
    struct Text(String);

    impl<'de> Deserialize<'de> for Text {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(TextVisitor)
        }
    }

    struct TextVisitor;

    impl<'de> Visitor<'de> for TextVisitor {
        type Value = Text;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value that JSON can hold")
        }

        fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
            Ok(Text(value.to_string()))
        }

        fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
            Ok(Text(value.to_string()))
        }

        fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
            Ok(Text(value.to_string()))
        }

        fn visit_i128<E>(self, value: i128) -> Result<Text, E> {
            Ok(Text(value.to_string()))
        }

        fn visit_u128<E>(self, value: u128) -> Result<Text, E> {
            Ok(Text(value.to_string()))
        }

        fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
            let mut out = String::new();
            msgpack::float(&mut out, value);
            Ok(Text(out))
        }

        fn visit_str<E>(self, value: &str) -> Result<Text, E> {
            let mut out = String::new();
            writer::string(&mut out, value);
            Ok(Text(out))
        }

        fn visit_bytes<E: serde::de::Error>(self, value: &[u8]) -> Result<Text, E> {
            let json = Json::from_value(&extended::Bytes(value.to_vec())).map_err(E::custom)?;
            Ok(Text(json.as_str().to_owned()))
        }

        fn visit_unit<E>(self) -> Result<Text, E> {
            Ok(Text("null".to_owned()))
        }

        fn visit_none<E>(self) -> Result<Text, E> {
            Ok(Text("null".to_owned()))
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
            Text::deserialize(deserializer)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Text, A::Error> {
            let mut out = String::from("[");
            while let Some(Text(item)) = items.next_element()? {
                if out.len() > 1 {
                    out.push_str(", ");
                }
                out.push_str(&item);
            }
            out.push(']');
            Ok(Text(out))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Text, A::Error> {
            let mut out = String::new();
            let mut object = writer::Object::new(&mut out);
            while let Some(Text(key)) = entries.next_key()? {
                let Some(key) = scan::string(&key) else {
                    return Err(serde::de::Error::custom(format_args!("the key {key} is not a string")));
                };
                let Text(value) = entries.next_value()?;
                object.raw(&key, &value);
            }
            object.end();
            Ok(Text(out))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn round_trips() {
            let text = r#"[[2, -3, 1.5, "\u00e9\ud83d\ude00", "no", "1", "2026-01-02", null, true, 1e+16], {"a": {}}]"#;
            let yaml = String::from_utf8(from_json(text).unwrap()).unwrap();
            assert!(yaml.contains("1.0e+16") && yaml.contains("\\U0001f600"), "{yaml}");
            let back = to_json(&yaml).unwrap();
            assert_eq!(back, text.replace("1e+16", "1e16"));
        }

        #[test]
        fn reads_scalars_as_python_does() {
            let check = |yaml: &str, expected: &str| assert_eq!(to_json(yaml).unwrap(), expected, "{yaml}");
            check("{y: n, f: .nan, g: -.inf}", r#"{"y": "n", "f": NaN, "g": -Infinity}"#);
            check("- !!binary eHk=", r#"["xy"]"#);
            assert!(to_json("- !!binary /wA=").is_err());
            check("2026-01-02 03:04:05", r#""2026-01-02 03:04:05""#);
            check("{a: 1, a: 2}", r#"{"a": 1, "a": 2}"#);
            assert!(to_json("!!python/tuple [1]").is_err());
            assert!(to_json("{1: 2}").is_err());
            let bytes = from_json(r#"{"__type__": "base64", "__value__": "/wA="}"#).unwrap();
            assert_eq!(bytes, b"!!binary \"/wA=\"\n");
        }

        #[test]
        fn refuses_bombs_and_nonsense() {
            let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
            for level in 1..12 {
                let refs = vec![format!("*a{}", level - 1); 9].join(", ");
                bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
            }
            assert!(to_json(&bomb).is_err());
            assert!(to_json("[").is_err());
            assert!(to_json(&"[".repeat(100_000)).is_err());
        }
    }
}
