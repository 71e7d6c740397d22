//! An object whose values stay text.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Json, JsonError, scan, writer};

/// Up to this many entries a look-up walks the list, which is faster than hashing; beyond it an index is kept, so that
/// an object with a million keys is read in linear time.
const INDEX_FROM: usize = 24;

/// An object whose values stay text, in the order read. Two are equal when they hold the same entries, whatever the
/// order.
#[derive(Clone, Default)]
pub struct JsonMap {
    entries: Vec<(String, Json)>,
    /// Key to place in `entries`; empty while there are few.
    index: HashMap<String, usize>,
}

impl JsonMap {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.position(key).map(|place| &self.entries[place].1)
    }

    /// The value under a key, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Json> {
        self.position(key).map(|place| &mut self.entries[place].1)
    }

    /// Whether the key is there.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    /// Sets a value and returns the one it replaces. A key that is there keeps its place; a new one comes last.
    pub fn insert(&mut self, key: impl Into<String>, value: Json) -> Option<Json> {
        let key = key.into();
        if let Some(place) = self.position(&key) {
            return Some(std::mem::replace(&mut self.entries[place].1, value));
        }
        if !self.index.is_empty() {
            self.index.insert(key.clone(), self.entries.len());
        }
        self.entries.push((key, value));
        if self.index.is_empty() && self.entries.len() >= INDEX_FROM {
            self.rebuild_index();
        }
        None
    }

    /// Takes an entry out; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        let place = self.position(key)?;
        let (_, value) = self.entries.remove(place);
        self.rebuild_index();
        Some(value)
    }

    /// Keeps the entries for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Json) -> bool) {
        self.entries.retain(|(key, value)| keep(key, value));
        self.rebuild_index();
    }

    /// The entries, in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.entries.iter())
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// The values, in order.
    pub fn values(&self) -> impl Iterator<Item = &Json> {
        self.entries.iter().map(|(_, value)| value)
    }

    /// The map as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let mut out = String::new();
        writer::map(&mut out, self);
        Json::trusted(&out)
    }

    /// Reads a text that holds one object.
    pub(super) fn read(text: &str) -> Result<Self, JsonError> {
        let mut map = Self::new();
        for entry in scan::entries(text)? {
            let (key, value) = entry?;
            map.insert(key.into_owned(), Json::trusted(value));
        }
        Ok(map)
    }

    fn position(&self, key: &str) -> Option<usize> {
        if self.index.is_empty() {
            self.entries.iter().position(|(known, _)| known == key)
        } else {
            self.index.get(key).copied()
        }
    }

    fn rebuild_index(&mut self) {
        self.index.clear();
        if self.entries.len() >= INDEX_FROM {
            self.index.extend(self.entries.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)));
        }
    }
}

/// Iterates over the entries of a [`JsonMap`].
#[derive(Debug, Clone)]
pub struct Iter<'a>(std::slice::Iter<'a, (String, Json)>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a String, &'a Json);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a JsonMap {
    type Item = (&'a String, &'a Json);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for JsonMap {
    type Item = (String, Json);
    type IntoIter = std::vec::IntoIter<(String, Json)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl Extend<(String, Json)> for JsonMap {
    fn extend<I: IntoIterator<Item = (String, Json)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl FromIterator<(String, Json)> for JsonMap {
    fn from_iter<I: IntoIterator<Item = (String, Json)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K: Into<String>, const N: usize> From<[(K, Json); N]> for JsonMap {
    fn from(entries: [(K, Json); N]) -> Self {
        entries.into_iter().map(|(key, value)| (key.into(), value)).collect()
    }
}

impl PartialEq for JsonMap {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl Eq for JsonMap {}

impl fmt::Debug for JsonMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl Serialize for JsonMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for JsonMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Json::deserialize(deserializer)?;
        Self::read(whole.as_str()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: usize) -> Json {
        Json::from_value(&value).unwrap()
    }

    #[test]
    fn keeps_order_with_and_without_index() {
        for size in [3, 1000] {
            let mut map: JsonMap = (0..size).rev().map(|n| (format!("k{n}"), number(n))).collect();
            assert_eq!(map.insert("k1".to_owned(), number(77)), Some(number(1)));
            assert_eq!(map.remove("k2"), Some(number(2)));
            assert_eq!(map.get("k2"), None);
            assert_eq!(map.get("k0"), Some(&number(0)));
            map.insert("last".to_owned(), Json::null());
            let keys: Vec<_> = map.keys().cloned().collect();
            assert_eq!(keys.len(), size);
            assert_eq!(&keys[size - 3..], ["k1", "k0", "last"], "{size}");
            for (place, (key, _)) in map.iter().enumerate() {
                assert_eq!(map.position(key), Some(place));
            }
        }
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        let map = JsonMap::read(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap();
        assert_eq!(map.to_json().as_str(), r#"{"a": 3, "b": 2}"#);
        assert_eq!(map, JsonMap::read(r#"{"b": 2, "a": 3}"#).unwrap());
    }
}
