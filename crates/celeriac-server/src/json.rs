//! JSON that goes through this server without being understood.

use celeriac::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// A value of the application's, passed on as it is.
///
/// What Python writes is not always JSON: `NaN` and the infinities become `null` here, as a browser's `JSON.stringify`
/// has it, so that what this server answers can be read by anybody. All else is left byte for byte, integers of any size
/// included.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Raw(Json);

impl Raw {
    pub(crate) fn new(value: &Json) -> Self {
        let text = value.as_str();
        if !may_be_liberal(text) {
            return Self(value.clone());
        }
        // What was JSON for Python and is JSON now in all but the words replaced can be read again.
        Self(Json::parse(&strict(text)).unwrap_or_default())
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl utoipa::PartialSchema for Raw {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::schema::empty().into()
    }
}

impl ToSchema for Raw {
    fn name() -> std::borrow::Cow<'static, str> {
        "Value".into()
    }
}

fn may_be_liberal(text: &str) -> bool {
    text.contains("NaN") || text.contains("Infinity")
}

/// The text with `NaN`, `Infinity` and `-Infinity` replaced by `null`, wherever they are not within a string.
fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'N', 'I', '-']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if rest.starts_with('"') {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            end
        } else if let Some(word) =
            ["NaN", "Infinity", "-Infinity"].iter().find(|word| rest.starts_with(**word))
        {
            out.push_str("null");
            word.len()
        } else {
            out.push_str(&rest[..1]);
            1
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// The text without the white space between its parts: two spellings of one value are one text, as long as their keys
/// have the same order.
pub(crate) fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|letter: char| letter == '"' || letter.is_ascii_whitespace()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if rest.starts_with('"') {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            end
        } else {
            1
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// Where the string ends that `text` begins with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_liberties_become_null_and_nothing_else_changes() {
        for (python, json) in [
            ("NaN", "null"),
            ("[-Infinity, Infinity, -1, 1E5]", "[null, null, -1, 1E5]"),
            (r#"{"NaN": "NaN \" Infinity", "a\\": NaN}"#, r#"{"NaN": "NaN \" Infinity", "a\\": null}"#),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            (r#""é-Infinity""#, r#""é-Infinity""#),
        ] {
            let raw = Raw::new(&Json::parse(python).unwrap());
            assert_eq!(serde_json::to_string(&raw).unwrap(), json);
            serde_json::from_str::<serde_json::Value>(json).unwrap();
        }
    }

    #[test]
    fn compact_keeps_strings() {
        assert_eq!(compact("[ 1,\n {\"a b\" : \"c \\\" d\"} ]"), r#"[1,{"a b":"c \" d"}]"#);
    }
}
