//! Reads and writes the headers of a task message.

use std::borrow::Cow;

use super::content::Compression;
use super::{DecodeError, Headers, Json, JsonMap, TimeLimit, date, scan, writer};
use crate::clock::Timestamp;

/// Gathers headers from one or two objects: the headers, and for protocol 1 the body.
#[derive(Default)]
pub(super) struct Reader {
    headers: Headers,
    task: Option<String>,
    id: Option<String>,
    /// How the body travelled, which is over once it is read.
    pub(super) compression: Option<String>,
}

impl Reader {
    /// Whether a task is named, which is how Celery tells protocol 2.
    pub(super) fn names_task(&self) -> bool {
        self.task.is_some()
    }

    /// Reads all headers of an object; unknown ones are the application's.
    pub(super) fn read(&mut self, object: &str, part: &'static str) -> Result<(), DecodeError> {
        for entry in entries(object, part)? {
            let (key, value) = entry?;
            if !self.known(&key, value, part)? {
                self.headers.custom.insert(key.into_owned(), Json::trusted(value));
            }
        }
        Ok(())
    }

    /// Reads one header; `false` when Celery knows none of this name.
    pub(super) fn known(&mut self, key: &str, value: &str, part: &'static str) -> Result<bool, DecodeError> {
        let at = At { part, key, value };
        let headers = &mut self.headers;
        match key {
            "lang" => headers.lang = at.loose_text().unwrap_or_default(),
            "task" => self.task = at.text()?,
            "id" => self.id = at.text()?,
            "shadow" => headers.shadow = at.loose_text(),
            "eta" => headers.eta = at.time()?,
            "expires" => headers.expires = at.time()?,
            "group" => headers.group = at.text()?,
            "group_index" => headers.group_index = at.integer()?,
            "retries" => headers.retries = at.integer()?.unwrap_or_default(),
            "timelimit" => headers.timelimit = at.time_limit()?,
            "root_id" => headers.root_id = at.text()?,
            "parent_id" => headers.parent_id = at.text()?,
            "argsrepr" => headers.argsrepr = at.loose_text().unwrap_or_default(),
            "kwargsrepr" => headers.kwargsrepr = at.loose_text().unwrap_or_default(),
            "origin" => headers.origin = at.loose_text().unwrap_or_default(),
            "ignore_result" => headers.ignore_result = at.boolean()?,
            "replaced_task_nesting" => headers.replaced_task_nesting = at.integer()?.unwrap_or_default(),
            "stamped_headers" => headers.stamped_headers = at.texts()?,
            "stamps" => headers.stamps = at.map()?,
            "compression" => self.compression = at.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn finish(self) -> Result<Headers, DecodeError> {
        let mut headers = self.headers;
        headers.task = self.task.ok_or(DecodeError::Missing { part: "headers.task" })?;
        headers.id = self.id.ok_or(DecodeError::Missing { part: "headers.id" })?;
        Ok(headers)
    }
}

impl Headers {
    pub(super) fn write(&self, out: &mut String, compression: Option<Compression>) {
        let mut object = writer::Object::new(out);
        object.text("lang", &self.lang);
        object.text("task", &self.task);
        object.text("id", &self.id);
        object.optional_text("shadow", self.shadow.as_deref());
        object.time("eta", self.eta);
        object.time("expires", self.expires);
        object.optional_text("group", self.group.as_deref());
        match self.group_index {
            Some(index) => object.integer("group_index", index),
            None => object.raw("group_index", "null"),
        }
        object.integer("retries", self.retries);
        let limit = object.key("timelimit");
        limit.push('[');
        writer::seconds(limit, self.timelimit.hard);
        limit.push_str(", ");
        writer::seconds(limit, self.timelimit.soft);
        limit.push(']');
        object.optional_text("root_id", self.root_id.as_deref());
        object.optional_text("parent_id", self.parent_id.as_deref());
        object.text("argsrepr", &self.argsrepr);
        object.text("kwargsrepr", &self.kwargsrepr);
        object.text("origin", &self.origin);
        object.raw(
            "ignore_result",
            self.ignore_result.map_or("null", |ignore| if ignore { "true" } else { "false" }),
        );
        object.integer("replaced_task_nesting", self.replaced_task_nesting);
        let stamped = object.key("stamped_headers");
        match &self.stamped_headers {
            None => stamped.push_str("null"),
            Some(names) => {
                stamped.push('[');
                for (index, name) in names.iter().enumerate() {
                    if index > 0 {
                        stamped.push_str(", ");
                    }
                    writer::string(stamped, name);
                }
                stamped.push(']');
            }
        }
        writer::map(object.key("stamps"), &self.stamps);
        for (key, value) in &self.custom {
            object.raw(key, value.as_str());
        }
        if let Some(compression) = compression {
            object.text("compression", compression.content_type());
        }
        object.end();
    }
}

/// The entries of an object; errors name the part.
pub(super) fn entries<'a>(
    text: &'a str,
    part: &'static str,
) -> Result<impl Iterator<Item = Result<(Cow<'a, str>, &'a str), DecodeError>>, DecodeError> {
    let entries = scan::entries(text).map_err(|why| DecodeError::invalid(part, why))?;
    Ok(entries.map(move |entry| entry.map_err(|why| DecodeError::invalid(part, why))))
}

/// A field being read: its place, for errors, and its value.
pub(super) struct At<'a> {
    pub(super) part: &'static str,
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

impl At<'_> {
    pub(super) fn wrong(&self, expected: &str) -> DecodeError {
        let why = format!("expected {expected}, found {}", scan::kind(self.value));
        DecodeError::invalid(format!("{}.{}", self.part, self.key), why)
    }

    fn is_null(&self) -> bool {
        self.value == "null"
    }

    /// Text or null.
    pub(super) fn text(&self) -> Result<Option<String>, DecodeError> {
        if self.is_null() {
            return Ok(None);
        }
        scan::string(self.value).map(|text| Some(text.into_owned())).ok_or_else(|| self.wrong("a string"))
    }

    /// Text for people, or null; what is not a string is shown as it stands.
    pub(super) fn loose_text(&self) -> Option<String> {
        if self.is_null() {
            return None;
        }
        Some(scan::string(self.value).map_or_else(|| self.value.to_owned(), Cow::into_owned))
    }

    /// A number from 0 up, as a number or as text, or null.
    pub(super) fn integer(&self) -> Result<Option<u32>, DecodeError> {
        if self.is_null() {
            return Ok(None);
        }
        let text = scan::string(self.value).unwrap_or(Cow::Borrowed(self.value));
        let text = text.trim();
        let text = text.strip_suffix(".0").unwrap_or(text);
        text.parse().map(Some).map_err(|_| self.wrong("a whole number from 0 to 4294967295"))
    }

    /// A boolean or null; Python takes numbers as well.
    pub(super) fn boolean(&self) -> Result<Option<bool>, DecodeError> {
        match self.value {
            "null" => Ok(None),
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(self.wrong("a boolean")),
        }
    }

    /// A date or null.
    pub(super) fn time(&self) -> Result<Option<Timestamp>, DecodeError> {
        let Some(text) = self.text()? else { return Ok(None) };
        date::parse_iso8601(&text).map(Some).map_err(|_| {
            DecodeError::invalid(
                format!("{}.{}", self.part, self.key),
                format_args!("{text:?} is not ISO 8601"),
            )
        })
    }

    fn time_limit(&self) -> Result<TimeLimit, DecodeError> {
        if self.is_null() {
            return Ok(TimeLimit::default());
        }
        let pair = || self.wrong("a pair of seconds, hard and soft");
        match &Json::trusted(self.value).array_items().map_err(|_| pair())?[..] {
            [hard, soft] => {
                let seconds = |value: &Json| value.to::<Option<f64>>().map_err(|_| pair());
                Ok(TimeLimit { hard: seconds(hard)?, soft: seconds(soft)? })
            }
            _ => Err(pair()),
        }
    }

    fn texts(&self) -> Result<Option<Vec<String>>, DecodeError> {
        Json::trusted(self.value).to().map_err(|_| self.wrong("a list of strings"))
    }

    /// An object; null is an empty one.
    pub(super) fn map(&self) -> Result<JsonMap, DecodeError> {
        if self.is_null() {
            return Ok(JsonMap::new());
        }
        JsonMap::read(self.value).map_err(|_| self.wrong("an object"))
    }
}
