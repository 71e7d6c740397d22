//! Messages that another client has made, published as they are: what Celery's producers hand over where they cannot reach
//! the store themselves.

use crate::app::Celeriac;
use crate::backend::{ChordPart, NewChord};
use crate::broker::Routed;
use crate::canvas::tags;
use crate::error::Result;
use crate::id::{GroupId, QueueName, TaskId};
use crate::protocol::{Json, JsonMap, Message, RawMessage, ResultMeta};
use crate::state::State;
use crate::store::Transaction;

/// Messages that one hand-over may hold.
pub const MESSAGES_MAX: usize = 10_000;

/// What is handed over, read: written in one step.
#[derive(Debug, Clone, Default)]
pub struct Envelopes {
    /// Messages, with where they go.
    pub messages: Vec<Routed>,
    /// Chords to open, before any of their header's messages is there.
    pub chords: Vec<NewChord>,
    /// States and results.
    pub results: Vec<ResultMeta>,
    /// Ends of tasks that chords count.
    pub parts: Vec<ChordPart>,
}

/// Something that is wrong with what is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Where: a JSON pointer.
    pub at: String,
    /// What, and what would be right.
    pub problem: String,
}

/// A whole number, which JSON may write as `1.0`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
fn whole(number: &Json) -> Option<u32> {
    let number = number.to::<f64>().ok()?;
    ((0.0..=f64::from(u32::MAX)).contains(&number) && number.fract() == 0.0).then_some(number as u32)
}

/// Reads lists of objects, and notes what is wrong with each.
struct Reader {
    at: String,
    wrong: Vec<Wrong>,
}

impl Reader {
    fn note(&mut self, field: &str, problem: &dyn std::fmt::Display) {
        let at = format!("{}{field}", self.at);
        self.wrong.push(Wrong { at, problem: problem.to_string() });
    }

    fn list<T>(
        &mut self,
        fields: &JsonMap,
        name: &str,
        read: impl Fn(&mut Self, &Json) -> Option<T>,
    ) -> Vec<T> {
        let Some(list) = fields.get(name) else { return Vec::new() };
        self.at = format!("/{name}");
        let Ok(items) = list.array_items() else {
            self.note("", &"not a list");
            return Vec::new();
        };
        if items.is_empty() {
            self.note("", &"empty; leave it out");
        }
        if items.len() > MESSAGES_MAX {
            self.note("", &format_args!("{} items; at most {MESSAGES_MAX} are taken at once", items.len()));
            return Vec::new();
        }
        let mut found = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            self.at = format!("/{name}/{index}");
            found.extend(read(self, item));
        }
        found
    }

    fn fields(&mut self, item: &Json) -> Option<JsonMap> {
        let found = item.entries().ok();
        if found.is_none() {
            self.note("", &"not an object");
        }
        found
    }

    fn text(&mut self, fields: &JsonMap, name: &str) -> Option<String> {
        let found = fields.get(name).and_then(Json::as_string).filter(|text| !text.is_empty());
        if found.is_none() {
            self.note(&format!("/{name}"), &"missing, empty or not a text");
        }
        found.map(std::borrow::Cow::into_owned)
    }

    fn message(&mut self, item: &Json) -> Option<Routed> {
        let fields = self.fields(item)?;
        let queue = self.text(&fields, "queue")?;
        let Some(envelope) = fields.get("message") else {
            self.note("/message", &"missing; Celery's envelope belongs here");
            return None;
        };
        let read = RawMessage::from_envelope(envelope.as_str().as_bytes())
            .and_then(|raw| Ok((Message::decode_head(&raw)?, raw)));
        let (head, raw) = match read {
            Ok((Some(head), raw)) => (head, raw),
            Ok((None, _)) => {
                let problem =
                    "no name of a task; messages are taken in Celery's task protocol 2, its default";
                self.note("/message/headers/task", &problem);
                return None;
            }
            Err(why) => {
                self.note("/message", &why);
                return None;
            }
        };
        for (field, value) in [("id", &head.headers.id), ("task", &head.headers.task)] {
            if value.is_empty() {
                self.note(&format!("/message/headers/{field}"), &"missing or empty");
                return None;
            }
        }
        Some(Routed {
            task_id: TaskId::from(head.headers.id.as_str()),
            task: head.headers.task.clone().into_boxed_str(),
            queue: QueueName::from(queue),
            priority: head.properties.priority,
            due: head.headers.eta,
            unique: false,
            tags: tags(&head.headers.custom),
            message: raw,
        })
    }

    fn chord(&mut self, item: &Json) -> Option<NewChord> {
        let fields = self.fields(item)?;
        let group_id = self.text(&fields, "group")?;
        let size = fields.get("size").and_then(whole).filter(|size| *size > 0);
        if size.is_none() {
            self.note("/size", &"not a number of tasks, 1 at least");
        }
        let body = fields.get("body").filter(|body| body.entries().is_ok()).cloned();
        if body.is_none() {
            self.note("/body", &"not a signature");
        }
        Some(NewChord { group_id: GroupId::from(group_id), size: size?, body: body? })
    }

    fn result(&mut self, item: &Json) -> Option<ResultMeta> {
        ResultMeta::decode(item.as_str().as_bytes()).map_err(|why| self.note("", &why)).ok()
    }

    fn part(&mut self, item: &Json) -> Option<ChordPart> {
        let fields = self.fields(item)?;
        let (group, task) = (self.text(&fields, "group")?, self.text(&fields, "task")?);
        let state = self.text(&fields, "state")?;
        Some(ChordPart {
            group_id: GroupId::from(group),
            task_id: TaskId::from(task),
            index: fields.get("index").and_then(|index| index.to::<u32>().ok()),
            state: State::from(state),
            result: fields.get("result").cloned().unwrap_or_default(),
        })
    }
}

impl Envelopes {
    /// Reads `{"messages": [{"queue", "message"}], "chords": [{"group", "size", "body"}]}`; and, from a worker's own
    /// process, `results` as Celery stores them, and `parts` of chords `{"group", "task", "index", "state", "result"}`.
    ///
    /// # Errors
    /// All that is wrong, with its place.
    pub fn read(json: &Json) -> Result<Self, Vec<Wrong>> {
        let mut reader = Reader { at: String::new(), wrong: Vec::new() };
        let Some(fields) = reader.fields(json) else { return Err(reader.wrong) };
        for (name, _) in fields.iter() {
            if !matches!(&**name, "messages" | "chords" | "results" | "parts") {
                reader.at = String::new();
                reader.note(&format!("/{name}"), &"not known here");
            }
        }
        let found = Self {
            chords: reader.list(&fields, "chords", Reader::chord),
            messages: reader.list(&fields, "messages", Reader::message),
            results: reader.list(&fields, "results", Reader::result),
            parts: reader.list(&fields, "parts", Reader::part),
        };
        if reader.wrong.is_empty() { Ok(found) } else { Err(reader.wrong) }
    }

    /// Puts it into a transaction.
    pub(crate) fn add_to(self, transaction: &mut Transaction) {
        transaction.publish.extend(self.messages);
        transaction.record.chords.extend(self.chords);
        transaction.record.results.extend(self.results);
        transaction.record.parts.extend(self.parts);
    }
}

impl Celeriac {
    /// Publishes messages as they are, and opens chords, in one step. Returns those tasks that were not sent, since they
    /// wait or run already. Results and parts are left out: they are a run's to write, under its lease.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub async fn send_envelopes(&self, envelopes: Envelopes) -> Result<Vec<TaskId>> {
        let mut transaction = Transaction::default();
        Envelopes { results: Vec::new(), parts: Vec::new(), ..envelopes }.add_to(&mut transaction);
        self.send(transaction).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Envelopes, Vec<Wrong>> {
        Envelopes::read(&Json::parse(text).unwrap())
    }

    const MESSAGE: &str = r#"{"body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"lang": "py", "task": "t", "id": "a", "eta": null, "x-own": 1},
        "properties": {"correlation_id": "a", "delivery_mode": 2, "priority": 3, "body_encoding": "base64",
        "delivery_tag": "d", "delivery_info": {"exchange": "", "routing_key": "q"}}}"#;

    #[test]
    fn a_message_is_kept_as_it_came() {
        let found = read(&format!(r#"{{"messages": [{{"queue": "q", "message": {MESSAGE}}}]}}"#)).unwrap();
        let [routed] = &found.messages[..] else { panic!("one message: {found:?}") };
        assert_eq!((routed.task_id.as_str(), &*routed.task, routed.queue.as_str()), ("a", "t", "q"));
        assert_eq!((routed.priority, routed.due, routed.unique), (3, None, false));
        assert_eq!(&*routed.message.body, b"[[], {}, {}]");
        assert!(routed.message.head.contains(r#""x-own": 1"#), "{}", routed.message.head);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            ("[]", ""),
            (r#"{"message": []}"#, "/message"),
            (r#"{"messages": {}}"#, "/messages"),
            (r#"{"messages": []}"#, "/messages"),
            (r#"{"messages": null}"#, "/messages"),
            (r#"{"messages": [1]}"#, "/messages/0"),
            (r#"{"messages": [{"queue": "", "message": {}}]}"#, "/messages/0/queue"),
            (r#"{"messages": [{"queue": "q"}]}"#, "/messages/0/message"),
            (r#"{"messages": [{"queue": "q", "message": {"headers": {}}}]}"#, "/messages/0/message"),
            (
                r#"{"messages": [{"queue": "q", "message": {"body": "e30=", "headers": {}, "properties": {"body_encoding": "base64", "delivery_tag": "d", "delivery_info": {"exchange": "", "routing_key": "q"}}}}]}"#,
                "/messages/0/message/headers/task",
            ),
            (r#"{"chords": [{"group": "g", "size": 0, "body": {}}]}"#, "/chords/0/size"),
            (r#"{"chords": [{"group": "g", "size": 1}]}"#, "/chords/0/body"),
            (r#"{"results": [{"status": "SUCCESS"}]}"#, "/results/0"),
            (r#"{"parts": [{"group": "g", "task": "t"}]}"#, "/parts/0/state"),
        ];
        for (text, at) in cases {
            let wrong = read(text).expect_err(text);
            assert!(wrong.iter().any(|wrong| wrong.at == at), "{text}: {wrong:?}");
        }
    }
}
