//! The envelope as consumers of Celery's Redis transport need it, whatever the head of the message leaves out.
//!
//! A Python worker loses or dies of a message without delivery information, delivery tag, content type or id, and a
//! restorer sends it where its delivery information says. What Celery and this library write has all of that; to any other
//! head it is added.
//!
//! A header that only says what its absence says too is left out on the list, a quarter of a small message, and put back
//! when it is taken off, so that the head comes back byte for byte.

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::headers::{At, entries};
use super::{DecodeError, RawMessage, scan, writer};

/// Where a message goes, and what it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KombuRoute<'a> {
    pub(crate) task_id: &'a str,
    pub(crate) task: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) priority: u8,
}

/// An envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KombuEnvelope {
    /// The JSON.
    pub(crate) text: String,
    /// Its head is that of the message; otherwise something was added or put in another order.
    pub(crate) faithful: bool,
}

impl KombuEnvelope {
    /// The most bytes that the envelope of a message has, or little less where it has to be completed.
    pub(crate) fn bytes_max(message: &RawMessage) -> usize {
        message.head.len() + message.body.len() * 4 / 3 + 32
    }
}

impl RawMessage {
    /// The envelope for a list of Celery's Redis transport.
    ///
    /// # Errors
    /// The head is not a JSON object, or its headers or properties are none.
    pub(crate) fn to_kombu(&self, route: KombuRoute<'_>) -> Result<KombuEnvelope, DecodeError> {
        let mut text = String::with_capacity(KombuEnvelope::bytes_max(self));
        text.push_str("{\"body\": \"");
        BASE64.encode_string(&self.body, &mut text);
        text.push_str("\", ");
        if let Some(nothing) = nothing_said(&self.head, route) {
            let mut from = 1;
            for range in nothing {
                text.push_str(&self.head[from..range.start]);
                from = range.end;
            }
            text.push_str(&self.head[from..]);
            return Ok(KombuEnvelope { text, faithful: true });
        }
        if is_complete(&self.head, route) {
            let short = shortened(&self.head).filter(|short| expanded(short).as_deref() == Some(&*self.head));
            text.push_str(&short.as_deref().unwrap_or(&self.head)[1..]);
            return Ok(KombuEnvelope { text, faithful: true });
        }
        let head = completed(&self.head, route)?;
        let faithful = head == *self.head;
        text.push_str(&head[1..]);
        Ok(KombuEnvelope { text, faithful })
    }

    /// Takes an element of such a list apart.
    ///
    /// # Errors
    /// As [`RawMessage::from_envelope`].
    pub(crate) fn from_kombu(envelope: &[u8]) -> Result<Self, DecodeError> {
        let mut message = Self::from_envelope(envelope)?;
        if let Some(head) = expanded(&message.head) {
            message.head = head.into_boxed_str();
        }
        Ok(message)
    }
}

/// Celery's headers in its order, and what each says when it says nothing; none where it always says something.
const HEADERS: [(&str, Option<&str>); 19] = [
    ("lang", None),
    ("task", None),
    ("id", None),
    ("shadow", Some("null")),
    ("eta", Some("null")),
    ("expires", Some("null")),
    ("group", Some("null")),
    ("group_index", Some("null")),
    ("retries", Some("0")),
    ("timelimit", Some("[null, null]")),
    ("root_id", None),
    ("parent_id", Some("null")),
    ("argsrepr", None),
    ("kwargsrepr", None),
    ("origin", None),
    ("ignore_result", Some("null")),
    ("replaced_task_nesting", Some("0")),
    ("stamped_headers", Some("null")),
    ("stamps", Some("{}")),
];

/// A head with other headers, which `change` makes of those it has.
fn with_headers(head: &str, change: impl FnOnce(&str) -> Option<String>) -> Option<String> {
    let headers = entries(head, "head").ok()?.find_map(|entry| {
        let (key, value) = entry.ok()?;
        (key == "headers").then_some(value)
    })?;
    // The value is a part of the head.
    let from = headers.as_ptr() as usize - head.as_ptr() as usize;
    let (before, after) = (&head[..from], &head[from + headers.len()..]);
    Some([before, &change(headers)?, after].concat())
}

/// Without the headers that say nothing.
fn shortened(head: &str) -> Option<String> {
    with_headers(head, |headers| {
        let mut out = String::with_capacity(headers.len());
        let mut object = writer::Object::new(&mut out);
        for entry in entries(headers, "headers").ok()? {
            let (key, value) = entry.ok()?;
            if !HEADERS.iter().any(|(name, nothing)| *name == key && *nothing == Some(value)) {
                object.raw(&key, value);
            }
        }
        object.end();
        Some(out)
    })
}

/// With them. Nothing for headers that do not begin as Celery's do.
fn expanded(head: &str) -> Option<String> {
    with_headers(head, |headers| {
        let mut out = String::with_capacity(headers.len() + 256);
        let mut object = writer::Object::new(&mut out);
        let mut left = entries(headers, "headers").ok()?.peekable();
        for (name, nothing) in HEADERS {
            match left.peek() {
                Some(Ok((key, value))) if key == name => {
                    object.raw(name, value);
                    left.next();
                }
                Some(Err(_)) => return None,
                _ => match nothing {
                    Some(nothing) => object.raw(name, nothing),
                    None if matches!(name, "lang" | "task" | "id") => return None,
                    None => {}
                },
            }
        }
        for entry in left {
            let (key, value) = entry.ok()?;
            // One of those above in another place: it is as its writer wanted it.
            if HEADERS.iter().any(|(name, _)| *name == key) {
                return None;
            }
            object.raw(&key, value);
        }
        object.end();
        Some(out)
    })
}

/// So many runs of headers that say nothing can stand apart from each other.
const RUNS_MAX: usize = HEADERS.len().div_ceil(2);

/// Where a head says nothing, if it is complete and has all of Celery's headers in its order and no other: what most are,
/// and what is read here in one go. Without those parts it is as [`shortened`] would have it, and [`expanded`] puts them back.
fn nothing_said(head: &str, route: KombuRoute<'_>) -> Option<impl Iterator<Item = Range<usize>>> {
    let mut rest = Rest(head);
    rest.eat("{\"content-encoding\": ")?.value()?;
    rest.eat(", \"content-type\": ")?.value()?;
    rest.eat(", \"headers\": {\"lang\": ")?.value()?;
    rest.eat(", \"task\": ")?.text(route.task)?;
    rest.eat(", \"id\": ")?.text(route.task_id)?;
    let mut runs = [const { 0..0 }; RUNS_MAX];
    let mut count = 0;
    for (name, nothing) in &HEADERS[3..] {
        let from = head.len() - rest.0.len();
        let value = rest.eat(", \"")?.eat(name)?.eat("\": ")?.value()?;
        if *nothing != Some(value) {
            continue;
        }
        let to = head.len() - rest.0.len();
        match runs[..count].last_mut() {
            Some(run) if run.end == from => run.end = to,
            _ => {
                runs[count] = from..to;
                count += 1;
            }
        }
    }
    rest.eat("}, \"properties\": {\"correlation_id\": ")?;
    let tag = rest.0.strip_suffix("\"}}")?;
    let (properties, tag) = tag.rsplit_once('"')?;
    let properties =
        properties.strip_suffix("}, \"priority\": 0, \"body_encoding\": \"base64\", \"delivery_tag\": ")?;
    let to_queue = properties.strip_suffix('"')?.strip_suffix(route.queue)?;
    let direct = to_queue.ends_with("\"delivery_info\": {\"exchange\": \"\", \"routing_key\": \"");
    let plain = direct && route.priority == 0 && is_plain_tag(tag) && writer::is_plain(route.queue);
    plain.then(|| runs.into_iter().take(count))
}

/// What is left of a head that is being read.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn eat(&mut self, text: &str) -> Option<&mut Self> {
        self.0 = self.0.strip_prefix(text)?;
        Some(self)
    }

    /// A text as this library writes it.
    fn text(&mut self, text: &str) -> Option<()> {
        if !writer::is_plain(text) {
            return None;
        }
        self.eat("\"")?.eat(text)?.eat("\"").map(|_| ())
    }

    fn value(&mut self) -> Option<&'a str> {
        let value = scan::first(self.0)?;
        self.0 = &self.0[value.len()..];
        Some(value)
    }
}

/// The properties by which a consumer of the transport finds its way, up to the delivery tag.
fn way(route: KombuRoute<'_>) -> String {
    let mut way = String::from("\"delivery_info\": {\"exchange\": \"\", \"routing_key\": ");
    writer::string(&mut way, route.queue);
    way.push_str("}, \"priority\": ");
    way.push_str(&route.priority.to_string());
    way.push_str(", \"body_encoding\": \"base64\", \"delivery_tag\": \"");
    way
}

/// Whether a head has the form in which this library writes it, for this route. One that has it in substance but not in
/// form is merely written anew.
fn is_complete(head: &str, route: KombuRoute<'_>) -> bool {
    let mut front = String::from("\", \"headers\": {\"lang\": \"");
    let begins = head
        .strip_prefix("{\"content-encoding\": \"")
        .and_then(|rest| rest.split_once("\", \"content-type\": \""))
        .and_then(|(_, rest)| rest.split_once(front.as_str()))
        .and_then(|(_, rest)| rest.split_once("\", \"task\": "));
    let Some((_, rest)) = begins else { return false };
    front.clear();
    writer::string(&mut front, route.task);
    front.push_str(", \"id\": ");
    writer::string(&mut front, route.task_id);
    let way = way(route);
    let Some((_, tag)) = head.rsplit_once(way.as_str()) else { return false };
    let tag = tag.strip_suffix("\"}}");
    rest.starts_with(front.as_str()) && tag.is_some_and(is_plain_tag)
}

fn is_plain_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// A head with all that is needed, in the order in which Celery writes it.
fn completed(head: &str, route: KombuRoute<'_>) -> Result<String, DecodeError> {
    let (mut encoding, mut content_type) = ("\"utf-8\"", "\"application/json\"");
    let (mut headers, mut properties) = ("{}", "{}");
    let mut others: Vec<(Cow<'_, str>, &str)> = Vec::new();
    for entry in entries(head, "head")? {
        let (key, value) = entry?;
        match (&*key, value) {
            ("body", _) | (_, "null") => {}
            ("content-encoding", value) => encoding = value,
            ("content-type", value) => content_type = value,
            ("headers", value) => headers = value,
            ("properties", value) => properties = value,
            (_, value) => others.push((key, value)),
        }
    }
    let mut out = String::with_capacity(head.len() + 256);
    let mut object = writer::Object::new(&mut out);
    object.raw("content-encoding", encoding);
    object.raw("content-type", content_type);
    write_headers(object.key("headers"), headers, route)?;
    for (key, value) in others {
        object.raw(&key, value);
    }
    write_properties(object.key("properties"), properties, route)?;
    object.end();
    Ok(out)
}

fn write_headers(out: &mut String, headers: &str, route: KombuRoute<'_>) -> Result<(), DecodeError> {
    let mut lang = "\"py\"";
    let mut others = Vec::new();
    for entry in entries(headers, "headers")? {
        let (key, value) = entry?;
        match &*key {
            "lang" if value.starts_with('"') => lang = value,
            "lang" | "task" | "id" => {}
            _ => others.push((key, value)),
        }
    }
    let mut object = writer::Object::new(out);
    object.raw("lang", lang);
    object.text("task", route.task);
    object.text("id", route.task_id);
    for (key, value) in others {
        object.raw(&key, value);
    }
    object.end();
    Ok(())
}

fn write_properties(out: &mut String, properties: &str, route: KombuRoute<'_>) -> Result<(), DecodeError> {
    let mut tag = None;
    let mut correlated = false;
    let mut object = writer::Object::new(out);
    for entry in entries(properties, "properties")? {
        let (key, value) = entry?;
        let at = At { part: "properties", key: &key, value };
        match &*key {
            "delivery_tag" => tag = at.loose_text(),
            "delivery_info" | "priority" | "body_encoding" => {}
            _ => {
                correlated |= key == "correlation_id";
                object.raw(&key, value);
            }
        }
    }
    if !correlated {
        object.text("correlation_id", route.task_id);
    }
    let info = object.key("delivery_info");
    info.push_str("{\"exchange\": \"\", \"routing_key\": ");
    writer::string(info, route.queue);
    info.push('}');
    object.integer("priority", route.priority);
    object.text("body_encoding", "base64");
    object.text("delivery_tag", &tag.unwrap_or_else(|| uuid::Uuid::new_v4().hyphenated().to_string()));
    object.end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::{Body, Headers, Message, Properties};

    const ROUTE: KombuRoute<'static> =
        KombuRoute { task_id: "a-1", task: "app.add", queue: "celery", priority: 3 };

    fn whole() -> RawMessage {
        let headers = Headers {
            lang: "rust".into(),
            task: ROUTE.task.into(),
            id: ROUTE.task_id.into(),
            ..Headers::default()
        };
        let properties = Properties { priority: 3, ..Properties::new("a-1", "celery") };
        Message { headers, properties, body: Body::default() }.encode().unwrap()
    }

    #[test]
    fn what_is_whole_goes_as_it_is() {
        let raw = whole();
        assert!(is_complete(&raw.head, ROUTE), "{}", raw.head);
        let envelope = raw.to_kombu(ROUTE).unwrap();
        assert!(envelope.faithful);
        assert_eq!(RawMessage::from_kombu(envelope.text.as_bytes()).unwrap(), raw);
        assert!(!envelope.text.contains("shadow"), "{}", envelope.text);
        let whole = raw.to_envelope().unwrap();
        assert!(envelope.text.len() + 200 < whole.len(), "{}", envelope.text);
        assert_eq!(RawMessage::from_kombu(whole.as_bytes()).unwrap(), raw);
    }

    /// What is read in one go is what is found out step by step, and what is not as it should be is not taken for it.
    #[test]
    fn one_go_is_as_good() {
        let route = KombuRoute { priority: 0, ..ROUTE };
        let full = Headers {
            lang: "rust".into(),
            task: ROUTE.task.into(),
            id: ROUTE.task_id.into(),
            shadow: Some("a \"name\"".into()),
            eta: Some(crate::clock::Timestamp::UNIX_EPOCH),
            group: Some("g".into()),
            group_index: Some(0),
            root_id: Some("r, \"parent_id\": null".into()),
            argsrepr: "('}', \"é\")".into(),
            origin: "me@here".into(),
            ignore_result: Some(true),
            ..Headers::default()
        };
        let plain = Headers { shadow: None, eta: None, group_index: None, ..full.clone() };
        for headers in
            [full, plain, Headers { task: ROUTE.task.into(), id: ROUTE.task_id.into(), ..Headers::default() }]
        {
            let properties = Properties::new("a-1", "celery");
            let raw = Message { headers, properties, body: Body::default() }.encode().unwrap();
            assert!(is_complete(&raw.head, route));
            let envelope = raw.to_kombu(route).unwrap();
            assert!(nothing_said(&raw.head, route).is_some());
            assert!(envelope.text.ends_with(&shortened(&raw.head).unwrap()[1..]), "{}", envelope.text);
            assert_eq!(RawMessage::from_kombu(envelope.text.as_bytes()).unwrap(), raw);
            let others = [
                KombuRoute { queue: "celer", ..route },
                KombuRoute { queue: "elery", ..route },
                KombuRoute { priority: 1, ..route },
                KombuRoute { task_id: "a-", ..route },
                KombuRoute { task: "app.ad", ..route },
            ];
            assert!(others.into_iter().all(|other| nothing_said(&raw.head, other).is_none()));
            for (is, would_be) in [
                (", \"shadow\"", ",  \"shadow\""),
                ("\"retries\": 0", "\"retries\":0"),
                ("\"stamps\": {}", "\"stamps\": {}, \"mine\": 1"),
                ("\"expires\": null, ", ""),
                ("\"exchange\": \"\"", "\"exchange\": \"x\""),
                ("\"base64\"", "\"base32\""),
                ("\"delivery_tag\": \"", "\"delivery_tag\": \"/"),
                ("\"lang\": ", "\"lang\": ["),
            ] {
                let head = raw.head.replacen(is, would_be, 1);
                assert_ne!(*head, *raw.head, "{is}");
                assert!(nothing_said(&head, route).is_none(), "{head}");
            }
            for end in 0..raw.head.len() {
                let cut = raw.head.get(..end).unwrap_or_default();
                assert!(nothing_said(cut, route).is_none(), "{cut}");
            }
        }
    }

    #[test]
    fn headers_that_say_something_stay() {
        let mut message = Message::decode(&whole()).unwrap();
        message.headers.retries = 2;
        message.headers.eta = Some(crate::clock::Timestamp::UNIX_EPOCH);
        message.headers.custom.insert("shadow2", crate::protocol::Json::null());
        message.headers.custom.insert("tags", crate::protocol::Json::parse("[1]").unwrap());
        let raw = message.encode().unwrap();
        let envelope = raw.to_kombu(ROUTE).unwrap();
        let again = RawMessage::from_kombu(envelope.text.as_bytes()).unwrap();
        assert_eq!((again, envelope.faithful), (raw, true));
        assert!(envelope.text.contains("\"retries\": 2") && envelope.text.contains("shadow2"));
        let read = RawMessage::from_envelope(envelope.text.as_bytes()).unwrap();
        assert_eq!(Message::decode(&read).unwrap(), message, "who does not put them back reads the same");
    }

    #[test]
    fn foreign_headers_stay_as_they_are() {
        for headers in [
            r#"{"id": "a", "task": "t"}"#,
            r#"{"lang": "py", "task": "t", "id": "a", "origin": "x", "eta": null}"#,
        ] {
            let envelope = format!(r#"{{"body": "", "headers": {headers}, "properties": {{}}}}"#);
            let raw = RawMessage::from_kombu(envelope.as_bytes()).unwrap();
            assert!(raw.head.contains(headers), "{}", raw.head);
        }
    }

    #[test]
    fn another_way_is_written_anew() {
        let raw = whole();
        for route in [
            KombuRoute { queue: "other", ..ROUTE },
            KombuRoute { priority: 4, ..ROUTE },
            KombuRoute { task_id: "b", ..ROUTE },
            KombuRoute { task: "t", ..ROUTE },
        ] {
            let envelope = raw.to_kombu(route).unwrap();
            assert!(!envelope.faithful, "{}", envelope.text);
            let again = RawMessage::from_kombu(envelope.text.as_bytes()).unwrap();
            assert!(is_complete(&again.head, route), "{}", again.head);
        }
    }

    #[test]
    fn what_is_missing_is_added() {
        for head in [
            "{}",
            r#"{"headers":{"task":"t","x":NaN},"properties":{"delivery_tag":7}}"#,
            r#"{"headers":null}"#,
        ] {
            let raw = RawMessage { head: head.into(), body: Bytes::from_static(b"\xff\0") };
            let envelope = raw.to_kombu(ROUTE).unwrap();
            assert!(!envelope.faithful);
            let again = RawMessage::from_envelope(envelope.text.as_bytes()).unwrap();
            assert_eq!(again.body, raw.body);
            let summary = again.summary().unwrap();
            assert_eq!((summary.id.as_deref(), summary.queue.as_str()), (Some("a-1"), "celery"));
            assert!(is_complete(&again.head, ROUTE), "{}", again.head);
        }
        assert!(RawMessage { head: "no object".into(), body: Bytes::new() }.to_kombu(ROUTE).is_err());
    }
}
