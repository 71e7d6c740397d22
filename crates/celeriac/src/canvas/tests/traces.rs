//! What a worker does at the end of each task, against captured runs of Celery 5.7: each message of a run is followed
//! here, and must lead to what it led to there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::follow::Follow;
use super::super::plan::{SHAPE, shape};
use super::super::{Planner, Router, after_failure, after_success, fire};
use super::build::{Ids, planner};
use super::messages::{Ids as Numbers, facts, vectors};
use crate::backend::{ChordPart, ReadyChord};
use crate::id::TaskId;
use crate::protocol::{Exception, Json, Message, RawMessage, ResultMeta, ResultTuple};
use crate::state::State;

struct Run {
    messages: Vec<Message>,
    metas: BTreeMap<String, Value>,
    /// Parts by chord, in order.
    parts: BTreeMap<String, Vec<(f64, Value)>>,
    sizes: BTreeMap<String, u32>,
    /// Saved tuples of headers that end in groups.
    tuples: BTreeMap<String, Value>,
}

impl Run {
    fn read(name: &str) -> Self {
        let vectors = vectors("canvas_traces");
        let mut run = Self {
            messages: Vec::new(),
            metas: BTreeMap::new(),
            parts: BTreeMap::new(),
            sizes: BTreeMap::new(),
            tuples: BTreeMap::new(),
        };
        for command in vectors["traces"][name].as_array().unwrap() {
            let words: Vec<&str> =
                command["cmd"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let group = |suffix: &str| {
                let key = words[1].strip_prefix("celery-taskset-meta-")?.strip_suffix(suffix)?;
                Some(key.to_owned())
            };
            match words[0] {
                "LPUSH" => {
                    let raw = RawMessage::from_envelope(words[2].as_bytes()).unwrap();
                    run.messages.push(Message::decode(&raw).unwrap());
                }
                "SETEX" => {
                    let id = words[1].strip_prefix("celery-task-meta-").unwrap().to_owned();
                    run.metas.insert(id, serde_json::from_str(words[3]).unwrap());
                }
                "ZADD" => {
                    let part = (words[2].parse().unwrap(), serde_json::from_str(words[3]).unwrap());
                    run.parts.entry(group(".j").unwrap()).or_default().push(part);
                }
                "SET" if words[1].ends_with(".s") => {
                    run.sizes.insert(group(".s").unwrap(), words[2].parse().unwrap());
                }
                "SET" if words[1].starts_with("celery-taskset-meta-") && !words[1].ends_with(".c") => {
                    let saved: Value = serde_json::from_str(words[2]).unwrap();
                    run.tuples.insert(group("").unwrap(), saved["result"].clone());
                }
                _ => {}
            }
        }
        assert!(!run.messages.is_empty() && !run.metas.is_empty(), "{name} is empty");
        run
    }

    /// The messages sent by `parent`, but for those whose id `leave_out` names.
    fn sent_by(&self, parent: &str, leave_out: &str) -> Vec<Value> {
        let sent = self.messages.iter().filter(|message| {
            message.headers.parent_id.as_deref() == Some(parent) && !leave_out.contains(&message.headers.id)
        });
        sent.map(facts).collect()
    }

    fn check_task(&self, message: &Message, cx: &Planner<'_>) {
        let id = &message.headers.id;
        let meta = &self.metas[id];
        let result = Json::parse(&meta["result"].to_string()).unwrap();
        let follow = match meta["status"].as_str().unwrap() {
            "SUCCESS" => after_success(message, &result, cx).unwrap(),
            "FAILURE" => {
                after_failure(message, &Exception::decode(&result).unwrap(), meta["traceback"].as_str(), cx)
            }
            other => panic!("{other}"),
        };
        assert!(follow.problems.is_empty(), "{:?}", follow.problems);
        // A fired body has the last header task as its parent, and is checked with its chord.
        let bodies =
            message.body.embed.chord.as_ref().map_or(String::new(), |body| body.encode().to_string());
        compare(message, self.sent_by(id, &bodies), sent(&follow), "messages");
        let children = follow.children.iter().map(|tuple| value(&tuple.encode())).collect();
        compare(message, meta["children"].as_array().unwrap().clone(), children, "children");
        self.check_results(&follow.results);
        for part in &follow.parts {
            let captured = &self.parts[part.group_id.as_str()];
            assert!(captured.contains(&(f64::from(part.index.unwrap()), part_value(part))), "{part:?}");
        }
        for chord in &follow.chords {
            assert_eq!(self.sizes[chord.group_id.as_str()], chord.size);
        }
    }

    fn check_results(&self, results: &[ResultMeta]) {
        for result in results {
            let captured = &self.metas[result.task_id.as_str()];
            let ours: Value = serde_json::from_str(result.encode().unwrap().as_str()).unwrap();
            let mut fields = vec!["status", "group_id", "parent_id", "task_id"];
            if captured["result"]["exc_type"] == "ChordError" {
                // The traceback of a chord error shows the inside of Celery's worker, the group id is ours to add.
                fields = vec!["status", "task_id"];
            } else {
                fields.push("traceback");
            }
            for field in fields {
                assert_eq!(ours[field], captured[field], "{field} of {captured}");
            }
            assert_eq!(ours["result"], captured["result"]);
        }
    }

    fn check_chord(&self, group_id: &str, cx: &Planner<'_>) {
        let member = self.messages.iter().find(|message| {
            message.headers.group.as_deref() == Some(group_id) && message.body.embed.chord.is_some()
        });
        let mut body = (*member.unwrap().body.embed.chord.clone().unwrap()).clone();
        if let Some(tuple) = self.tuples.get(group_id) {
            let tuple = ResultTuple::decode(&Json::parse(&tuple.to_string()).unwrap()).unwrap();
            body.options.insert(SHAPE, shape(&tuple));
        }
        let mut parts = self.parts[group_id].clone();
        parts.sort_by(|one, two| one.0.total_cmp(&two.0));
        assert_eq!(parts.len(), self.sizes[group_id] as usize);
        let parts: Vec<ChordPart> = parts
            .iter()
            .map(|(score, part)| ChordPart {
                group_id: group_id.into(),
                task_id: part[1].as_str().unwrap().into(),
                index: Some(*score as u32),
                state: State::from(part[2].as_str().unwrap()),
                result: Json::parse(&part[3].to_string()).unwrap(),
            })
            .collect();
        let text = body.encode().to_string();
        let fired: Vec<&Message> = self
            .messages
            .iter()
            .filter(|message| {
                let parent = message.headers.parent_id.as_deref().unwrap_or_default();
                text.contains(&message.headers.id) && parts.iter().any(|part| part.task_id.as_str() == parent)
            })
            .collect();
        let parent = fired.first().map(|message| TaskId::from(message.headers.parent_id.as_deref().unwrap()));
        let root = fired.first().map(|message| TaskId::from(message.headers.root_id.as_deref().unwrap()));
        let cx = Planner { parent_id: parent, root_id: root, ..cx.clone() };
        let failed = parts.iter().any(|part| part.state == State::Failure);
        let chord = ReadyChord { group_id: group_id.into(), body: body.encode(), parts };
        let transaction = fire(&chord, &cx).unwrap();
        assert_eq!(transaction.record.fire, Some(group_id.into()));
        let ours = transaction
            .publish
            .iter()
            .map(|routed| facts(&Message::decode(&routed.message).unwrap()))
            .collect();
        self.check_results(&transaction.record.results);
        if failed {
            let body_id = transaction.record.results[0].task_id.as_str();
            compare(member.unwrap(), self.sent_by(body_id, ""), ours, "errbacks of the body");
            let children = transaction.record.results[0].children.iter().flatten();
            let children = children.map(|tuple| value(&tuple.encode())).collect();
            let captured = self.metas[body_id]["children"].as_array().unwrap().clone();
            compare(member.unwrap(), captured, children, "children of the body");
        } else {
            assert!(!fired.is_empty());
            compare(member.unwrap(), fired.into_iter().map(facts).collect(), ours, "body");
        }
    }
}

fn value(json: &Json) -> Value {
    serde_json::from_str(json.as_str()).unwrap()
}

fn part_value(part: &ChordPart) -> Value {
    json!([1, part.task_id.as_str(), part.state.as_str(), value(&part.result)])
}

fn sent(follow: &Follow) -> Vec<Value> {
    follow.publish.iter().map(|routed| facts(&Message::decode(&routed.message).unwrap())).collect()
}

/// Ids that the message knew must be the same; fresh ones are numbered.
fn compare(message: &Message, captured: Vec<Value>, ours: Vec<Value>, what: &str) {
    let known = message.encode().unwrap();
    let known = format!("{}{}", known.head, String::from_utf8_lossy(&known.body));
    let normal = |values: Vec<Value>| {
        let mut numbers = Numbers::default();
        let numbered = numbers.number_unknown(Value::Array(values), &known);
        serde_json::to_string_pretty(&numbered).unwrap()
    };
    assert_eq!(normal(ours), normal(captured), "{what} of {}", message.headers.task);
}

fn check(name: &str) {
    let run = Run::read(name);
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let cx = planner(&router, &fresh);
    for message in &run.messages {
        run.check_task(message, &cx);
    }
    for group_id in run.parts.keys() {
        run.check_chord(group_id, &cx);
    }
}

macro_rules! captured {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

// Not here: `replace`, `replace_in_chain`, `replace_in_chord` and `add_to_chord`, in which the task itself sends.
captured! {
    chain3 chord2 chain_group_chain chain_group_end chord_nested_header chord_fail chord_fail_linkerr chain_fail
    chord_chain_header chord_chain_header_fail chord_with_group_result chord_body_group map chunks links2 link_group
}

#[test]
fn a_retry_is_the_message_again() {
    let vectors = vectors("retry");
    let text = vectors.to_string();
    assert!(text.contains("retries"), "the file has changed");
    let pair: Vec<Message> = find_messages(&vectors);
    let (first, again) = pair
        .iter()
        .find_map(|again| {
            let first = pair.iter().find(|first| {
                first.headers.id == again.headers.id && first.headers.retries + 1 == again.headers.retries
            })?;
            Some((first, again))
        })
        .unwrap();
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let routed = super::super::retry(first, again.headers.eta, &planner(&router, &fresh)).unwrap();
    let ours = Message::decode(&routed.message).unwrap();
    assert_eq!(facts(&ours), facts(again));
    assert_eq!(ours.headers.eta, again.headers.eta);
    assert_eq!(ours.properties.priority, again.properties.priority);
    assert_eq!(ours.properties.routing_key, again.properties.routing_key);
    assert_eq!(ours.properties.other.get("origin"), again.properties.other.get("origin"));
    assert_eq!(routed.queue.as_str(), again.properties.routing_key);
    assert!(!routed.unique);
}

fn find_messages(value: &Value) -> Vec<Message> {
    match value {
        Value::String(text) if text.starts_with("{\"body\"") => RawMessage::from_envelope(text.as_bytes())
            .ok()
            .and_then(|raw| Message::decode(&raw).ok())
            .into_iter()
            .collect(),
        Value::Array(items) => items.iter().flat_map(find_messages).collect(),
        Value::Object(entries) => entries.values().flat_map(find_messages).collect(),
        _ => Vec::new(),
    }
}
