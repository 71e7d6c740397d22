//! JSON as Python writes and reads it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{JsonMap, scan, tolerant, writer};

/// How deep a value made here may nest: less than a document, so that it fits into every message and result.
const OWN_DEPTH_MAX: usize = 200;

/// The name under which serde_json passes raw text through serde. `RawValue` itself cannot be used to write, as it
/// refuses `NaN`; a test holds us to it that the name is still this one.
pub(super) const RAW_TOKEN: &str = "$serde_json::private::RawValue";

/// One JSON value, kept as the text it was read from.
///
/// The text is what Python's `json` reads and writes: `NaN`, `Infinity`, integers of any size and lone surrogate escapes
/// may occur. It is stored and sent on byte for byte; only [`Json::to`] gives it a meaning.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

/// Why a text is not JSON, or not JSON of the type asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(pub String);

impl Json {
    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self(Arc::from("null"))
    }

    /// A string.
    #[must_use]
    pub fn string(text: &str) -> Self {
        let mut out = String::with_capacity(text.len() + 2);
        writer::string(&mut out, text);
        Self::trusted(&out)
    }

    /// An array of values, each as it is.
    #[must_use]
    pub fn array<'a>(items: impl IntoIterator<Item = &'a Json>) -> Self {
        let mut out = String::new();
        writer::array(&mut out, items);
        Self::trusted(&out)
    }

    /// Reads one JSON value, which may nest 256 levels deep.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        scan::value(text, scan::DOCUMENT_DEPTH_MAX).map(Self::trusted)
    }

    /// Writes a value, escaped to ASCII as Python does; it may nest 200 levels deep. A float that is not finite becomes
    /// `null`, as serde_json has it; a [`Json`] inside the value goes in unchanged.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, JsonError> {
        let mut out = Vec::with_capacity(64);
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, writer::PythonFormatter);
        value.serialize(&mut serializer).map_err(|why| JsonError(why.to_string()))?;
        let text = String::from_utf8(out).map_err(|why| JsonError(why.to_string()))?;
        // A short text cannot be too deep. A long one is better refused here than by whoever is to read it.
        if text.len() > OWN_DEPTH_MAX {
            scan::value(&text, OWN_DEPTH_MAX)?;
        }
        Ok(Self::trusted(&text))
    }

    /// Reads the value as a type. `NaN` and the infinities are floats, an integer too large for its type is an error
    /// that names it, a lone surrogate becomes U+FFFD.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        match serde_json::from_str(&self.0) {
            Ok(value) => Ok(value),
            Err(why) if why.is_data() => Err(JsonError(why.to_string())),
            // The text is not JSON in serde_json's eyes, so it is one of Python's liberties.
            Err(_) => T::deserialize(tolerant::Value(&self.0)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// The text of a string value; `None` for any other.
    #[must_use]
    pub fn as_string(&self) -> Option<Cow<'_, str>> {
        scan::string(&self.0)
    }

    /// The values of an array, each as it stands.
    pub fn array_items(&self) -> Result<Vec<Json>, JsonError> {
        scan::items(&self.0)?.map(|item| item.map(Self::trusted)).collect()
    }

    /// The entries of an object, each value as it stands.
    pub fn entries(&self) -> Result<JsonMap, JsonError> {
        JsonMap::read(&self.0)
    }

    /// Takes a text that was scanned or written by this module.
    pub(super) fn trusted(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::null()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut raw = serializer.serialize_struct(RAW_TOKEN, 1)?;
        raw.serialize_field(RAW_TOKEN, &*self.0)?;
        raw.end()
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        Ok(Self(Arc::from(raw.get())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pair {
        name: String,
        value: Json,
    }

    #[test]
    fn values_pass_through_serde_unchanged() {
        for value in ["NaN", "[1,2 ,3]", r#""\ud800é""#, "123456789012345678901234567890", "null", "{}"] {
            let pair = Pair { name: "n".to_owned(), value: Json::parse(value).unwrap() };
            let whole = Json::from_value(&pair).unwrap();
            assert_eq!(whole.as_str(), format!("{{\"name\": \"n\", \"value\": {value}}}"));
            assert_eq!(whole.to::<Pair>().unwrap(), pair);
        }
        // The same through serde_json alone, for what it can read.
        let pair: Pair = serde_json::from_str(r#"{"name": "n", "value": [1,  2]}"#).unwrap();
        assert_eq!(pair.value.as_str(), "[1,  2]");
        assert_eq!(serde_json::to_string(&pair).unwrap(), r#"{"name":"n","value":[1,  2]}"#);
    }

    #[test]
    fn pythons_liberties_become_types() {
        let json = |text| Json::parse(text).unwrap();
        assert!(json("NaN").to::<f64>().unwrap().is_nan());
        assert_eq!(json("[-Infinity, 1]").to::<Vec<f64>>().unwrap(), [f64::NEG_INFINITY, 1.0]);
        assert_eq!(json("1e999").to::<f64>().unwrap(), f64::INFINITY);
        assert_eq!(json(r#"["\ud800"]"#).to::<Vec<String>>().unwrap(), ["\u{fffd}"]);
        assert_eq!(json("170141183460469231731687303715884105727").to::<i128>().unwrap(), i128::MAX);
        assert_eq!(json("18446744073709551616").to::<f64>().unwrap(), 18_446_744_073_709_551_616.0);
        let why = json("[NaN, 99999999999999999999]").to::<(f64, u64)>().unwrap_err();
        assert!(why.0.contains("99999999999999999999"), "{why}");
        assert!(json("\"a\"").to::<u64>().is_err());
    }

    #[test]
    fn what_is_written_here_can_be_read_in_a_message() {
        let deep =
            |depth: usize| (1..depth).fold(serde_json::json!([]), |inner, _| serde_json::json!([inner]));
        assert!(Json::from_value(&deep(200)).is_ok());
        assert!(Json::from_value(&deep(201)).unwrap_err().0.contains("deep"));
        assert!(Json::parse(&("[".repeat(256) + &"]".repeat(256))).is_ok());
    }

    #[test]
    fn parts() {
        let json = Json::parse(r#"[1, {"a": NaN}]"#).unwrap();
        let items = json.array_items().unwrap();
        assert_eq!(items[1].entries().unwrap().get("a").unwrap().as_str(), "NaN");
        assert_eq!(Json::array(&items), json);
        assert!(json.entries().is_err());
        assert_eq!(Json::string("é").as_string().unwrap(), "é");
    }
}
