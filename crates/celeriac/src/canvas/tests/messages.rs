//! What a producer sends, against what Celery 5.7 was captured sending for the same canvas.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::build::{add, chord, items, linked, planned, task, xsum};
use crate::protocol::{Message, RawMessage, Signature};

/// A file of captures.
pub(super) fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What of a message is the canvas's doing: everything but names of processes, tags and the transport.
pub(super) fn facts(message: &Message) -> Value {
    let headers = &message.headers;
    let body: Value = serde_json::from_str(message.body.to_json().as_str()).unwrap();
    let mut embed = body[2].clone();
    // An empty list of what follows is sent as `[]` or `null`, by Celery too.
    if let Value::Object(embed) = &mut embed {
        embed.retain(|_, value| !value.is_null() && value != &json!([]));
    }
    json!({
        "task": headers.task,
        "id": headers.id,
        "group": headers.group,
        "group_index": headers.group_index,
        "root_id": headers.root_id,
        "parent_id": headers.parent_id,
        "retries": headers.retries,
        "argsrepr": headers.argsrepr,
        "args": body[0],
        "kwargs": body[1],
        "embed": without_noise(embed),
    })
}

/// Takes out what says nothing (null options) or is another library's own (`reply_to`).
fn without_noise(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(without_noise).collect()),
        Value::Object(entries) => {
            let mut entries: Map<String, Value> =
                entries.into_iter().map(|(key, value)| (key, without_noise(value))).collect();
            if let Some(Value::Object(options)) = entries.get_mut("options") {
                for noise in ["reply_to", "add_to_parent"] {
                    options.remove(noise);
                }
                options.retain(|_, value| !value.is_null());
            }
            Value::Object(entries)
        }
        other => other,
    }
}

/// Ids in the order of their first appearance, so that two runs can be compared.
#[derive(Default)]
pub(super) struct Ids(HashMap<String, String>);

impl Ids {
    fn number(&mut self, value: Value) -> Value {
        self.number_unknown(value, "")
    }

    /// Numbers the ids that `known` does not contain.
    pub(super) fn number_unknown(&mut self, value: Value, known: &str) -> Value {
        match value {
            Value::String(text) if is_id(&text) && !known.contains(&text) => {
                let next = format!("#{}", self.0.len());
                Value::String(self.0.entry(text).or_insert(next).clone())
            }
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.number_unknown(item, known)).collect())
            }
            Value::Object(entries) => Value::Object(
                entries.into_iter().map(|(key, value)| (key, self.number_unknown(value, known))).collect(),
            ),
            other => other,
        }
    }
}

fn is_id(text: &str) -> bool {
    text.starts_with("id-") || uuid::Uuid::try_parse(text).is_ok()
}

fn check(name: &str, signature: &Signature) {
    let vectors = vectors("canvas_messages");
    let captured = vectors["canvas"][name].as_object().unwrap();
    let mut expected = Vec::new();
    // The right end of a list is consumed, and so was sent, first.
    for element in captured["celery"].as_array().unwrap().iter().rev() {
        let raw = RawMessage::from_envelope(element.as_str().unwrap().as_bytes()).unwrap();
        expected.push(facts(&Message::decode(&raw).unwrap()));
    }
    let sizes = captured.iter().filter_map(|(key, value)| {
        let id = key.strip_prefix("celery-taskset-meta-")?.strip_suffix(".s")?;
        Some(json!([id, value["value"].as_str()?.parse::<u32>().ok()?]))
    });
    let expected = normal(expected, sizes.collect());

    let plan = planned(signature);
    let sent = super::build::decoded(&plan).iter().map(facts).collect();
    let sizes = plan.chords.iter().map(|chord| json!([chord.group_id.as_str(), chord.size])).collect();
    let actual = normal(sent, sizes);
    assert_eq!(
        serde_json::to_string_pretty(&actual).unwrap(),
        serde_json::to_string_pretty(&expected).unwrap(),
        "{name}"
    );
    for routed in &plan.publish {
        assert_eq!(routed.queue.as_str(), "celery");
        assert!(!routed.unique);
    }
}

fn normal(messages: Vec<Value>, sizes: Vec<Value>) -> Value {
    let mut ids = Ids::default();
    let messages = ids.number(Value::Array(messages));
    let Value::Array(mut sizes) = ids.number(Value::Array(sizes)) else { unreachable!() };
    sizes.sort_by_key(ToString::to_string);
    json!([messages, sizes])
}

macro_rules! captured {
    ($($name:ident: $signature:expr;)*) => {
        $(#[test] fn $name() { check(stringify!($name), &$signature); })*
    };
}

captured! {
    chain3: Signature::chain(&[add("[1, 2]"), add("[3]"), add("[4]")]);
    group2: Signature::group(&[add("[1, 1]"), add("[2, 2]")]);
    chord2: chord(&[add("[1, 1]"), add("[2, 2]")], &xsum());
    chain_group_chain: Signature::chain(&[add("[1, 2]"), Signature::group(&[add("[10]"), add("[20]")]), xsum(), add("[5]")]);
    group_of_chain: Signature::group(&[Signature::chain(&[add("[1, 1]"), add("[2]")]), add("[5, 5]")]);
    chord_chain_header: chord(&[Signature::chain(&[add("[1, 1]"), add("[2]")]), add("[3, 3]")], &xsum());
    chord_group_header: chord(&[Signature::group(&[add("[1, 1]"), add("[2, 2]")]), add("[3, 3]")], &xsum());
    chord_nested_header: chord(&[chord(&[add("[1, 1]"), add("[2, 2]")], &xsum()), add("[3, 3]")], &xsum());
    chord_chain_body: chord(&[add("[1, 1]")], &Signature::chain(&[xsum(), add("[1]")]));
    chord_group_body: chord(&[add("[1, 1]"), add("[2, 2]")], &Signature::group(&[xsum(), xsum()]));
    chunks: Signature::chunks(&add("[]"), &items("[[0, 0], [1, 1], [2, 2], [3, 3]]"), 2);
    map: Signature::xmap(&xsum(), &items("[[1, 2], [3]]"));
    starmap: Signature::xstarmap(&add("[]"), &items("[[1, 2], [3, 4]]"));
    chord_linkerr: chord(
        &[add("[1, 1]"), add("[2, 2]")],
        &linked(xsum(), "link_error", &[task("wapp.errback_old", "[]")]),
    );
}
