//! Reads and writes the body of a task message.

use super::headers::{At, Reader, entries};
use super::{Body, DecodeError, Embed, Json, JsonMap, Signature, date, scan, writer};

impl Body {
    /// Reads a body of protocol 2 from JSON.
    ///
    /// # Errors
    /// It is not `[args, kwargs, embed]`.
    pub fn from_json(json: &Json) -> Result<Self, DecodeError> {
        Self::read(json.as_str())
    }

    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let mut out = String::new();
        self.write(&mut out);
        Json::trusted(&out)
    }

    pub(super) fn read(text: &str) -> Result<Self, DecodeError> {
        let mut parts = [""; 3];
        let mut count = 0;
        let items = scan::items(text).map_err(|why| DecodeError::invalid("body", why))?;
        for item in items {
            let item = item.map_err(|why| DecodeError::invalid("body", why))?;
            if let Some(part) = parts.get_mut(count) {
                *part = item;
            }
            count += 1;
        }
        if count != 3 {
            let why = format!("expected [args, kwargs, embed], found {count} parts");
            return Err(DecodeError::invalid("body", why));
        }
        let [args, kwargs, embed] = parts;
        Ok(Self { args: read_args(args)?, kwargs: read_kwargs(kwargs)?, embed: Embed::read(embed)? })
    }

    /// Reads the object that is body and headers in one, and leaves the headers in `reader`.
    pub(super) fn read_protocol_1(text: &str, reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut body = Self::default();
        let (mut has_arguments, mut utc) = (false, true);
        let mut times = Vec::new();
        for entry in entries(text, "body")? {
            let (key, value) = entry?;
            let at = At { part: "body", key: &key, value };
            match &*key {
                "args" => {
                    body.args = read_args(value)?;
                    has_arguments = true;
                }
                "kwargs" => body.kwargs = read_kwargs(value)?,
                "callbacks" => body.embed.callbacks = signatures(&at)?.unwrap_or_default(),
                "errbacks" => body.embed.errbacks = signatures(&at)?.unwrap_or_default(),
                "chord" => body.embed.chord = signature(&at)?,
                "utc" => utc = at.boolean()?.unwrap_or(true),
                "taskset" => {
                    // The older name of the group; where both are given they are equal.
                    if value != "null" {
                        reader.known("group", value, "body")?;
                    }
                }
                "group" if value == "null" => {}
                key => {
                    if matches!(key, "eta" | "expires") {
                        times.push(value);
                    }
                    // What is neither an argument nor a header of today has no meaning.
                    reader.known(key, value, "body")?;
                }
            }
        }
        if !has_arguments {
            return Err(DecodeError::Missing { part: "body.args" });
        }
        let naive = |value: &&str| scan::string(value).is_some_and(|text| !date::has_offset(&text));
        if !utc && times.iter().any(naive) {
            let why = "utc is false, and nothing says in which zone eta and expires are; set enable_utc in the producer";
            return Err(DecodeError::invalid("body.eta", why));
        }
        Ok(body)
    }

    pub(super) fn write(&self, out: &mut String) {
        out.push('[');
        writer::array(out, &self.args);
        out.push_str(", ");
        writer::map(out, &self.kwargs);
        out.push_str(", ");
        self.embed.write(out);
        out.push(']');
    }
}

fn read_args(value: &str) -> Result<Vec<Json>, DecodeError> {
    if !value.starts_with('[') {
        return Err(At { part: "body", key: "args", value }.wrong("a list of positional arguments"));
    }
    Json::trusted(value).array_items().map_err(|why| DecodeError::invalid("body.args", why))
}

fn read_kwargs(value: &str) -> Result<JsonMap, DecodeError> {
    if !value.starts_with('{') {
        return Err(At { part: "body", key: "kwargs", value }.wrong("an object of named arguments"));
    }
    JsonMap::read(value).map_err(|why| DecodeError::invalid("body.kwargs", why))
}

impl Embed {
    fn read(text: &str) -> Result<Self, DecodeError> {
        let mut embed = Self::default();
        if text == "null" {
            return Ok(embed);
        }
        for entry in entries(text, "body.embed")? {
            let (key, value) = entry?;
            let at = At { part: "body.embed", key: &key, value };
            match &*key {
                "callbacks" => embed.callbacks = signatures(&at)?.unwrap_or_default(),
                "errbacks" => embed.errbacks = signatures(&at)?.unwrap_or_default(),
                "chain" => embed.chain = signatures(&at)?,
                "chord" => embed.chord = signature(&at)?,
                _ => {}
            }
        }
        Ok(embed)
    }

    fn write(&self, out: &mut String) {
        let mut object = writer::Object::new(out);
        for (key, list) in [("callbacks", &self.callbacks), ("errbacks", &self.errbacks)] {
            write_list(object.key(key), Some(list).filter(|list| !list.is_empty()));
        }
        write_list(object.key("chain"), self.chain.as_ref());
        match &self.chord {
            Some(chord) => chord.write(object.key("chord")),
            None => object.raw("chord", "null"),
        }
        object.end();
    }
}

fn write_list(out: &mut String, list: Option<&Vec<Signature>>) {
    match list {
        None => out.push_str("null"),
        Some(list) => Signature::write_list(out, list),
    }
}

/// A list of signatures or null. Celery writes a single one as a list, but reads it alone as well.
fn signatures(at: &At<'_>) -> Result<Option<Vec<Signature>>, DecodeError> {
    match at.value.as_bytes().first() {
        Some(b'[') => Signature::read_list(at.value, &format!("{}.{}", at.part, at.key)).map(Some),
        Some(b'{') => Ok(signature(at)?.map(|one| vec![*one])),
        _ if at.value == "null" => Ok(None),
        _ => Err(at.wrong("a list of signatures")),
    }
}

fn signature(at: &At<'_>) -> Result<Option<Box<Signature>>, DecodeError> {
    if at.value == "null" {
        return Ok(None);
    }
    Signature::read(at.value, &format!("{}.{}", at.part, at.key)).map(|one| Some(Box::new(one)))
}
