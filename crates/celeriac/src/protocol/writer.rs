//! Writes JSON as Python's `json.dumps` does: `", "` and `": "` between parts, everything but printable ASCII escaped.

use std::fmt::Write as _;
use std::io;

use super::{Json, JsonMap, date};
use crate::clock::Timestamp;

/// Whether a text is written as it stands. Looks at all of it, as that is what many bytes at once are looked at by.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~'))
}

/// Appends a string value.
pub(super) fn string(out: &mut String, text: &str) {
    out.push('"');
    if is_plain(text) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut plain_from = 0;
    for (at, character) in text.char_indices() {
        let escape = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            ' '..='~' => continue,
            _ => "",
        };
        out.push_str(&text[plain_from..at]);
        plain_from = at + character.len_utf8();
        if escape.is_empty() {
            utf16_escapes(out, character);
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain_from..]);
    out.push('"');
}

fn utf16_escapes(out: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a String cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// Appends a number of seconds; a whole one without a fraction, as people write limits.
pub(super) fn seconds(out: &mut String, value: Option<f64>) {
    // 2^53: beyond it a float is no longer every integer.
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    let _ = match value {
        None => write!(out, "null"),
        Some(value) if value.is_nan() => write!(out, "NaN"),
        Some(value) if value.is_infinite() => write!(out, "{}Infinity", if value < 0.0 { "-" } else { "" }),
        Some(value) if value.fract() == 0.0 && value.abs() <= WHOLE_MAX => write!(out, "{value:.0}"),
        Some(value) => write!(out, "{value:?}"),
    };
}

/// Appends a float as Python's `repr` writes it: `2.0`, `0.0037`, `5e-05`, `1e+16`.
pub(super) fn float(out: &mut String, value: f64) {
    // Beyond these powers of ten Python changes to the form with an exponent, of two digits at least.
    const PLAIN: std::ops::Range<i32> = -4..16;
    let scientific = format!("{value:e}");
    match scientific.split_once('e').map(|(digits, power)| (digits, power.parse::<i32>())) {
        Some((digits, Ok(power))) if !PLAIN.contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            // Writing to a String cannot fail.
            let _ = write!(out, "{digits}e{sign}{:02}", power.unsigned_abs());
        }
        Some(_) => {
            let _ = write!(out, "{value:?}");
        }
        // Not finite.
        None => seconds(out, Some(value)),
    }
}

/// Appends an array.
pub(super) fn array<'a>(out: &mut String, items: impl IntoIterator<Item = &'a Json>) {
    out.push('[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        out.push_str(item.as_str());
    }
    out.push(']');
}

/// Appends an object.
pub(super) fn map(out: &mut String, entries: &JsonMap) {
    let mut object = Object::new(out);
    for (key, value) in entries {
        object.raw(key, value.as_str());
    }
    object.end();
}

/// An object being written.
pub(super) struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    pub(super) fn new(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// Writes a key; the value is to be appended to what this returns.
    pub(super) fn key(&mut self, key: &str) -> &mut String {
        if !self.first {
            self.out.push_str(", ");
        }
        self.first = false;
        string(self.out, key);
        self.out.push_str(": ");
        self.out
    }

    pub(super) fn raw(&mut self, key: &str, json: &str) {
        self.key(key).push_str(json);
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        string(self.key(key), text);
    }

    pub(super) fn optional_text(&mut self, key: &str, text: Option<&str>) {
        match text {
            Some(text) => self.text(key, text),
            None => self.raw(key, "null"),
        }
    }

    pub(super) fn integer(&mut self, key: &str, value: impl Into<i128>) {
        let _ = write!(self.key(key), "{}", value.into());
    }

    pub(super) fn boolean(&mut self, key: &str, value: bool) {
        self.raw(key, if value { "true" } else { "false" });
    }

    pub(super) fn float(&mut self, key: &str, value: f64) {
        float(self.key(key), value);
    }

    /// A date, or null.
    pub(super) fn time(&mut self, key: &str, at: Option<Timestamp>) {
        let out = self.key(key);
        match at {
            None => out.push_str("null"),
            Some(at) => {
                out.push('"');
                date::iso8601(out, at);
                out.push('"');
            }
        }
    }

    pub(super) fn end(self) {
        self.out.push('}');
    }
}

/// The same for whatever serde can serialize.
pub(super) struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let mut out = String::new();
        float(&mut out, value);
        writer.write_all(out.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return writer.write_all(text.as_bytes());
        }
        let mut escaped = String::with_capacity(text.len() * 2);
        for character in text.chars() {
            if matches!(character, ' '..='~') {
                escaped.push(character);
            } else {
                utf16_escapes(&mut escaped, character);
            }
        }
        writer.write_all(escaped.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_like_python() {
        let mut out = String::new();
        string(&mut out, "a\"\\\n\u{1}\u{7f}é\u{1f600}/");
        assert_eq!(out, r#""a\"\\\n\u0001\u007f\u00e9\ud83d\ude00/""#);
        let same = Json::from_value("a\"\\\n\u{1}\u{7f}é\u{1f600}/").unwrap();
        assert_eq!(same.as_str(), out);
    }

    #[test]
    fn floats_are_pythons() {
        for (value, expected) in [
            (2.0, "2.0"),
            (-1.0, "-1.0"),
            (0.0, "0.0"),
            (1_795_397_612.367_396_8, "1795397612.3673968"),
            (0.000_1, "0.0001"),
            (0.000_05, "5e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let mut out = String::new();
            float(&mut out, value);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn limits_are_short() {
        let write = |value| {
            let mut out = String::new();
            seconds(&mut out, value);
            out
        };
        assert_eq!(write(Some(10.0)), "10");
        assert_eq!(write(Some(0.25)), "0.25");
        assert_eq!(write(Some(f64::NEG_INFINITY)), "-Infinity");
        assert_eq!(write(None), "null");
    }
}
