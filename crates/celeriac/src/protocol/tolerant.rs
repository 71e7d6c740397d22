//! Reads into any serde type what serde_json refuses and Python does not.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, CowStrDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::json::RAW_TOKEN;
use super::{JsonError, scan};

/// One checked value.
#[derive(Clone, Copy)]
pub(super) struct Value<'de>(pub(super) &'de str);

impl de::Error for JsonError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl<'de> Value<'de> {
    fn is_integer(self) -> bool {
        self.0.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9'))
    }

    fn float(self) -> Result<f64, JsonError> {
        match self.0 {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            number => number.parse().map_err(|_| JsonError(format!("{number} is not a number"))),
        }
    }

    fn too_large(self, kind: &str) -> JsonError {
        JsonError(format!("the integer {} is too large for {kind}", self.0))
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $kind:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            if !self.is_integer() {
                return self.deserialize_any(visitor);
            }
            match self.0.parse::<$kind>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(self.too_large(stringify!($kind))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Value<'de> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.0.as_bytes().first() {
            Some(b'{') => visitor.visit_map(Map { entries: scan::entries(self.0)?, value: None }),
            Some(b'[') => visitor.visit_seq(Sequence(scan::items(self.0)?)),
            Some(b'"') => match scan::string(self.0) {
                Some(Cow::Borrowed(text)) => visitor.visit_borrowed_str(text),
                Some(Cow::Owned(text)) => visitor.visit_string(text),
                None => Err(JsonError(format!("{} is not a string", self.0))),
            },
            Some(b't') => visitor.visit_bool(true),
            Some(b'f') => visitor.visit_bool(false),
            Some(b'n') => visitor.visit_unit(),
            _ if self.is_integer() => {
                if let Ok(value) = self.0.parse() {
                    visitor.visit_u64(value)
                } else if let Ok(value) = self.0.parse() {
                    visitor.visit_i64(value)
                } else {
                    visitor.visit_f64(self.float()?)
                }
            }
            _ => visitor.visit_f64(self.float()?),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_i128 visit_i128 i128,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_u128 visit_u128 u128,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.0 == "null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        if name == RAW_TOKEN {
            visitor.visit_map(Raw(Some(self.0)))
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        if let Some(name) = scan::string(self.0) {
            return visitor.visit_enum(name.into_deserializer());
        }
        let mut entries = scan::entries(self.0)?;
        match (entries.next().transpose()?, entries.next()) {
            (Some((name, content)), None) => visitor.visit_enum(Variant { name, content }),
            _ => Err(JsonError("an enum is a string or an object with one key".to_owned())),
        }
    }

    forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

impl<'de> IntoDeserializer<'de, JsonError> for Value<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Sequence<'de>(scan::Items<'de>);

impl<'de> de::SeqAccess<'de> for Sequence<'de> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonError> {
        self.0.next().transpose()?.map(|item| seed.deserialize(Value(item))).transpose()
    }
}

struct Map<'de> {
    entries: scan::Entries<'de>,
    value: Option<&'de str>,
}

impl<'de> de::MapAccess<'de> for Map<'de> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        let Some((key, value)) = self.entries.next().transpose()? else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, JsonError> {
        let value =
            self.value.take().ok_or_else(|| JsonError("a value was asked for before its key".to_owned()))?;
        seed.deserialize(Value(value))
    }
}

/// A key is a string, but a map with keys of another type reads it as that: `{"1": …}` as `HashMap<u32, …>`.
struct Key<'de>(Cow<'de, str>);

macro_rules! key_numbers {
    ($($method:ident $visit:ident $kind:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            match self.0.parse::<$kind>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(JsonError(format!("the key {:?} is not of type {}", self.0, stringify!($kind)))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.0 {
            Cow::Borrowed(key) => visitor.visit_borrowed_str(key),
            Cow::Owned(key) => visitor.visit_string(key),
        }
    }

    key_numbers! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

/// Hands a value's text to `RawValue`, in the shape serde_json hands it.
struct Raw<'de>(Option<&'de str>);

impl<'de> de::MapAccess<'de> for Raw<'de> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        self.0.map(|_| seed.deserialize(BorrowedStrDeserializer::new(RAW_TOKEN))).transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, JsonError> {
        seed.deserialize(BorrowedStrDeserializer::new(self.0.take().unwrap_or("null")))
    }
}

struct Variant<'de> {
    name: Cow<'de, str>,
    content: &'de str,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = JsonError;
    type Variant = Value<'de>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Value<'de>), JsonError> {
        let name = seed.deserialize(CowStrDeserializer::<JsonError>::new(self.name))?;
        Ok((name, Value(self.content)))
    }
}

impl<'de> de::VariantAccess<'de> for Value<'de> {
    type Error = JsonError;

    fn unit_variant(self) -> Result<(), JsonError> {
        serde::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, JsonError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.deserialize_any(visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    enum Shape {
        Point,
        Circle(f32),
        Box { width: u8, height: Option<u8> },
        Pair(i64, i128),
    }

    #[test]
    fn reads_every_shape() {
        let read = |text| Shape::deserialize(Value(text)).unwrap();
        assert_eq!(read("\"Point\""), Shape::Point);
        assert_eq!(read("{\"Circle\": Infinity}"), Shape::Circle(f32::INFINITY));
        assert_eq!(
            read("{\"Box\": {\"width\": 1, \"height\": null, \"x\": [NaN]}}"),
            Shape::Box { width: 1, height: None }
        );
        assert_eq!(
            read("{\"Pair\": [-5, 18446744073709551616]}"),
            Shape::Pair(-5, 18_446_744_073_709_551_616)
        );
        assert!(Shape::deserialize(Value("{\"Box\": {\"width\": 256}}")).is_err());
        assert!(Shape::deserialize(Value("{}")).is_err());
        let keyed = BTreeMap::<u16, Option<bool>>::deserialize(Value("{\"7\": true, \"8\": null}")).unwrap();
        assert_eq!(keyed, BTreeMap::from([(7, Some(true)), (8, None)]));
    }
}
