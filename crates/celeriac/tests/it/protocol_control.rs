//! Events and remote control against what real Celery wrote.

use celeriac::protocol::event::{self, Event, EventKind, Heartbeat, Load, Received, Software};
use celeriac::protocol::pidbox::{
    self, HelloReply, QueueInfo, Reply, ReplyTo, Request, ScheduledInfo, TaskInfo,
};
use celeriac::protocol::{Json, JsonMap, Pattern, RawMessage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::protocol::vectors;

fn raw(envelope: &str) -> RawMessage {
    RawMessage::from_envelope(envelope.as_bytes()).unwrap()
}

/// A message with the delivery tag of another: the only thing in it that is made up anew.
fn retagged(message: &RawMessage, like: &RawMessage) -> String {
    let tag = |message: &RawMessage| {
        let (_, tag) = message.head.split_once("\"delivery_tag\": \"").expect("a delivery tag");
        tag.split_once('"').expect("the end of the tag").0.to_owned()
    };
    message.to_envelope().unwrap().replace(&tag(message), &tag(like))
}

fn event_vectors() -> Vec<(String, Value)> {
    let all = vectors("events");
    all["events"].as_object().unwrap().iter().map(|(name, vector)| (name.clone(), vector.clone())).collect()
}

fn decoded(vector: &Value) -> Vec<Event> {
    let events = event::decode(&raw(vector["raw"].as_str().unwrap())).unwrap();
    events.into_iter().map(Result::unwrap).collect()
}

#[test]
fn every_event_of_celery_comes_out_byte_for_byte() {
    let mut names = std::collections::BTreeSet::new();
    for (name, vector) in event_vectors() {
        let envelope = vector["raw"].as_str().unwrap();
        let events = decoded(&vector);
        names.extend(events.iter().map(|event| event.kind.name().to_owned()));
        for event in &events {
            assert!(!matches!(event.kind, EventKind::Other { .. }), "{name}: {event:?}");
        }
        let mut again = event::encode(&events);
        assert_eq!(again.len(), 1, "{name}");
        let again = again.remove(0);
        assert_eq!(retagged(&again.message, &raw(envelope)), envelope, "{name}");
        let channel = vector["channel"].as_str().unwrap();
        assert!(channel.ends_with(&format!(".{}/{}", event::EXCHANGE, again.routing_key)), "{channel}");
    }
    // Each type that the specification names, but for `task-cancelled`, which was not captured.
    let expected = [
        "task-failed",
        "task-received",
        "task-rejected",
        "task-retried",
        "task-revoked",
        "task-sent",
        "task-started",
        "task-succeeded",
        "worker-elect",
        "worker-elect-ack",
        "worker-heartbeat",
        "worker-offline",
        "worker-online",
    ];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn the_fields_of_events_arrive() {
    let all = vectors("events");
    let of = |name: &str| decoded(&all["events"][name]);
    let online = &of("worker-online")[0];
    assert_eq!((&*online.hostname, online.pid, online.clock, online.utcoffset), ("w1@host", 10360, 1, 0.0));
    let EventKind::WorkerOnline(beat) = &online.kind else { panic!("{online:?}") };
    assert_eq!(beat.freq, 2.0);
    assert_eq!(beat.load, Some(Load { active: 0, processed: 0, loadavg: [0.01, 0.08, 0.06] }));
    assert_eq!((&*beat.software.ident, &*beat.software.version), ("py-celery", "5.7.0"));
    let EventKind::WorkerHeartbeat(asked) = &of("worker-heartbeat_on_demand")[0].kind else { panic!() };
    assert_eq!((asked.freq, asked.load), (5.0, None));

    let batch = of("multi2");
    assert!(batch.len() > 1);
    let received = &of("task-received")[0];
    assert_eq!(received.kind.task_id().unwrap(), "94cdad54-e0be-46a4-9787-06c2d1574b92");
    let EventKind::TaskReceived(received) = &received.kind else { panic!("{received:?}") };
    assert_eq!((&*received.name, &*received.args, &*received.kwargs), ("wapp.add", "(2, 3)", "{}"));
    let EventKind::TaskSucceeded { result, runtime, .. } = &of("task-succeeded")[0].kind else { panic!() };
    assert_eq!((&**result, *runtime), ("5", Some(0.003_773_985_999_941_942_3)));
    let EventKind::TaskFailed { exception, traceback, .. } = &of("task-failed")[0].kind else { panic!() };
    assert_eq!(exception, "ValueError('boom')");
    assert!(traceback.as_deref().unwrap().ends_with("ValueError: boom\n"));
    let EventKind::TaskRevoked { terminated, signum, expired, .. } = of("task-revoked_terminated")[0].kind
    else {
        panic!()
    };
    assert_eq!((terminated, signum, expired), (true, Some(9), false));
    let EventKind::TaskSent(sent) = &of("task-sent")[0].kind else { panic!() };
    assert_eq!((&*sent.queue, &*sent.exchange, &*sent.routing_key), ("celery", "", "celery"));
    let EventKind::WorkerElect { id, topic, action } = &of("worker-elect")[0].kind else { panic!() };
    assert_eq!((&**id, &**topic, action.is_null()), ("e1", "task", true));
}

fn event(kind: EventKind) -> Event {
    Event {
        hostname: "w@h".to_owned(),
        utcoffset: -1.0,
        pid: 1,
        clock: 2,
        timestamp: "2026-01-02T03:04:05.5Z".parse().unwrap(),
        kind,
    }
}

fn started(uuid: &str) -> Event {
    event(EventKind::TaskStarted { uuid: uuid.to_owned() })
}

/// The bodies of messages, with their routing keys.
fn bodies(events: &[Event]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let encoded = event::encode(events);
    encoded.into_iter().map(|message| (message.routing_key, text(&message.message.body))).collect()
}

#[test]
fn events_that_were_not_captured_have_their_fields_in_order() {
    let received = Received {
        uuid: "u".to_owned(),
        name: "n".to_owned(),
        retries: 2,
        eta: Some("2030-01-02T03:04:05Z".parse().unwrap()),
        ..Received::default()
    };
    let late = EventKind::TaskSucceeded { uuid: "u".to_owned(), result: "é".to_owned(), runtime: None };
    let unknown =
        EventKind::TaskFailed { uuid: "u".to_owned(), exception: "N()".to_owned(), traceback: None };
    for (kind, expected) in [
        (EventKind::TaskCancelled { uuid: "u".to_owned() }, r#""uuid": "u""#),
        (late, r#""uuid": "u", "result": "\u00e9", "runtime": null"#),
        (unknown, r#""uuid": "u", "exception": "N()""#),
        (
            EventKind::TaskReceived(Box::new(received)),
            r#""uuid": "u", "name": "n", "args": "", "kwargs": "", "root_id": null, "parent_id": null, "retries": 2, "eta": "2030-01-02T03:04:05+00:00", "expires": null"#,
        ),
        (
            EventKind::custom(
                "task-progress",
                JsonMap::from([("uuid", Json::string("u")), ("n", Json::null())]),
            )
            .unwrap(),
            r#""uuid": "u", "n": null"#,
        ),
    ] {
        let name = kind.name().to_owned();
        let expected = format!(
            r#"[{{"hostname": "w@h", "utcoffset": -1.0, "pid": 1, "clock": 2, {expected}, "timestamp": 1767323045.5, "type": "{name}"}}]"#
        );
        assert_eq!(bodies(&[event(kind.clone())]), [("task.multi".to_owned(), expected)]);
        let message = &event::encode(&[event(kind.clone())])[0].message;
        assert_eq!(event::decode(message).unwrap(), [Ok(event(kind))]);
    }
}

#[test]
fn events_of_tasks_travel_together_and_others_alone() {
    let beat = Heartbeat { freq: 2.0, load: Some(Load::default()), software: Software::default() };
    let other = Event { hostname: "v@h".to_owned(), ..started("o") };
    let events = [
        started("a"),
        started("b"),
        event(EventKind::WorkerHeartbeat(beat)),
        event(EventKind::WorkerElectAck { id: "e".to_owned() }),
        event(EventKind::TaskSent(Box::default())),
        started("c"),
        other,
    ];
    let keys: Vec<String> = bodies(&events).into_iter().map(|(key, _)| key).collect();
    let expected =
        ["task.multi", "worker.heartbeat", "worker.elect.ack", "task.sent", "task.multi", "task.multi"];
    assert_eq!(keys, expected);
    let again: Vec<Event> = event::encode(&events)
        .iter()
        .flat_map(|message| event::decode(&message.message).unwrap())
        .map(Result::unwrap)
        .collect();
    assert_eq!(again, events);
    assert!(event::encode(&[]).is_empty());
    let many: Vec<Event> = (0..event::BATCH_MAX * 2 + 1).map(|n| started(&n.to_string())).collect();
    let sizes: Vec<usize> =
        event::encode(&many).iter().map(|message| event::decode(&message.message).unwrap().len()).collect();
    assert_eq!(sizes, [event::BATCH_MAX, event::BATCH_MAX, 1]);
}

#[test]
fn an_event_that_cannot_be_read_costs_no_other() {
    let mut message = event::encode(&[started("a"), started("b")]).remove(0).message;
    let text = String::from_utf8(message.body.to_vec()).unwrap();
    message.body = text.replace("\"uuid\": \"a\"", "\"uuid\": 5").into_bytes().into();
    let events = event::decode(&message).unwrap();
    let why = events[0].as_ref().unwrap_err().to_string();
    assert!(why.contains("event.uuid") && why.contains("a string"), "{why}");
    assert_eq!(events[1], Ok(started("b")));

    let with = |from: &str, to: &str| {
        let mut message = event::encode(&[started("a")]).remove(0).message;
        let text = String::from_utf8(message.body.to_vec()).unwrap();
        assert!(text.contains(from), "{text}");
        message.body = text.replace(from, to).into_bytes().into();
        event::decode(&message).map(|mut events| events.remove(0))
    };
    for (from, to, named) in [
        ("\"type\"", "\"kind\"", "event.type"),
        ("\"hostname\"", "\"host\"", "event.hostname"),
        ("1767323045.5", "\"now\"", "event.timestamp"),
        ("1767323045.5", "1e300", "event.timestamp"),
        ("\"uuid\"", "\"id\"", "event.uuid"),
    ] {
        let why = with(from, to).unwrap().unwrap_err().to_string();
        assert!(why.contains(named), "{why}");
    }
    // What is there for order and display only is done without; so is a counter that no other one reaches.
    for (from, to) in [
        ("\"pid\": 1, ", ""),
        ("\"clock\": 2", "\"clock\": 99999999999999999999999"),
        ("\"utcoffset\": -1.0", "\"utcoffset\": null"),
    ] {
        assert!(with(from, to).unwrap().is_ok(), "{from}");
    }
    assert!(with("[{", "[[{").is_err());
    // What a later Celery may tell is kept as it is.
    let Ok(Ok(other)) = with("task-started", "task-dreamt") else { panic!() };
    assert_eq!((other.kind.name(), &*other.kind.task_id().unwrap()), ("task-dreamt", "a"));
}

#[test]
fn events_that_break_monitors_are_not_made() {
    let custom = |name: &str, fields: &[(&str, &str)]| {
        let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), Json::parse(value).unwrap()));
        EventKind::custom(name, fields.collect()).map_err(|why| why.to_string())
    };
    assert!(custom("task-progress", &[("uuid", "\"u\""), ("id", "1")]).is_ok());
    assert!(custom("worker-mood", &[("mood", "1")]).is_ok());
    for (name, fields, named) in [
        ("task-progress", &[] as &[(&str, &str)], "uuid"),
        ("task-progress", &[("uuid", "5")], "uuid"),
        ("task-progress", &[("uuid", "\"u\""), ("clock", "1")], "clock"),
        ("worker-mood", &[("id", "1")], "id"),
        ("worker-mood", &[("alive", "1")], "alive"),
        ("worker-mood", &[("status_string", "1")], "status_string"),
        ("worker-mood", &[("heartbeat_expires", "1")], "heartbeat_expires"),
        ("progress", &[], "task-progress"),
        ("task-", &[], "task-progress"),
        ("-x", &[], "task-progress"),
    ] {
        let why = custom(name, fields).unwrap_err();
        assert!(why.contains(named) && why.contains(name), "{why}");
    }
}

#[test]
fn the_heartbeat_that_flower_accepts_is_read() {
    let vector = &vectors("flower_minimum")["heartbeat_event"];
    let mut message = event::encode(&[started("a")]).remove(0).message;
    message.body = vector.to_string().into_bytes().into();
    let event = event::decode(&message).unwrap().remove(0).unwrap();
    let EventKind::WorkerHeartbeat(beat) = event.kind else { panic!("{event:?}") };
    assert_eq!((beat.freq, &*beat.software.ident, event.utcoffset), (2.0, "rs-celery", 0.0));
}

/// Each captured command: its name, what was published, and what was answered.
fn commands() -> Vec<(String, Value)> {
    let all = vectors("pidbox");
    let commands = all["commands"].as_object().unwrap();
    commands.iter().map(|(name, vector)| (name.clone(), vector.clone())).collect()
}

#[test]
fn every_request_and_answer_of_celery_comes_out_byte_for_byte() {
    let (mut requests, mut replies) = (0, 0);
    for (name, vector) in commands() {
        let envelope = vector["request_raw"].as_str().unwrap();
        let (request, tag) = Request::decode(&raw(envelope)).unwrap();
        assert_eq!(request.encode(&tag.unwrap()).to_envelope().unwrap(), envelope, "{name}");
        assert_eq!(vector["channel"], format!("/0.{}", pidbox::EXCHANGE), "{name}");
        requests += 1;
        let reply_to = request.reply_to.as_ref().expect("the captured requests want answers");
        for answer in vector["replies"].as_array().unwrap() {
            let envelope = answer["raw"].as_str().unwrap();
            let read = Reply::decode(&raw(envelope)).unwrap();
            assert_eq!(read.len(), 1, "{name}");
            assert_eq!(Some(&read[0].ticket), request.ticket.as_ref(), "{name}");
            assert_eq!(retagged(&read[0].encode(reply_to), &raw(envelope)), envelope, "{name}");
            let queue = ReplyTo::queue_name(&reply_to.routing_key);
            assert_eq!(answer["key"], queue, "{name}");
            let member = ReplyTo::binding(&reply_to.routing_key, "\u{6}\u{16}");
            assert_eq!(reply_to.queue_of(&member, "\u{6}\u{16}"), Some(&*queue), "{name}");
            replies += 1;
        }
    }
    assert!(requests >= 60 && replies >= 60, "{requests} {replies}");
}

#[test]
fn a_request_says_for_whom_it_is() {
    let all = vectors("pidbox");
    let request =
        |name: &str| Request::decode(&raw(all["commands"][name]["request_raw"].as_str().unwrap())).unwrap().0;
    assert!(request("ping").is_for("anybody"));
    let named = request("ping_dest");
    assert_eq!(named.destination.as_deref(), Some(&["w1@host".to_owned()][..]));
    assert!(named.is_for("w1@host") && !named.is_for("w2@host"));
    let pattern = request("ping_pattern");
    assert_eq!(pattern.pattern, Some(Pattern::glob("w1@*").unwrap()));
    assert!(pattern.is_for("w1@host") && !pattern.is_for("w2@host"));
    assert!(named.expires.unwrap() > "2026-01-01T00:00:00Z".parse().unwrap());

    // A list of names goes before a pattern; one without names says nothing.
    let of = |destination: Option<&[&str]>, pattern: Option<&str>| Request {
        destination: destination.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        pattern: pattern.map(|pattern| Pattern::glob(pattern).unwrap()),
        ..Request::default()
    };
    assert!(of(Some(&["a"]), Some("b")).is_for("a") && !of(Some(&["a"]), Some("b")).is_for("b"));
    assert!(of(Some(&[]), Some("b")).is_for("b") && !of(Some(&[]), Some("b")).is_for("a"));
    assert!(of(Some(&[]), None).is_for("a"));
}

/// The captured request `ping` with its body replaced.
fn with_body(body: &Value) -> Result<Request, String> {
    let all = vectors("pidbox");
    let mut message = raw(all["commands"]["ping"]["request_raw"].as_str().unwrap());
    message.body = body.to_string().into_bytes().into();
    Request::decode(&message).map(|(request, _)| request).map_err(|why| why.to_string())
}

#[test]
fn requests_of_others_are_read_or_refused_by_name() {
    let least = with_body(&json!({ "method": "ping" })).unwrap();
    assert!(least.is_for("anybody") && least.reply_to.is_none() && least.arguments.is_empty());
    let half = with_body(&json!({ "method": "ping", "pattern": "x*", "matcher": null })).unwrap();
    assert!(half.is_for("anybody"), "as kombu: a pattern without a matcher is none");
    assert!(with_body(&json!({ "method": "ping", "arguments": null, "reply_to": null })).is_ok());
    for (body, named) in [
        (json!({}), "request.method"),
        (json!({ "method": 5 }), "request.method"),
        (json!({ "method": "ping", "destination": "w1@host" }), "request.destination"),
        (json!({ "method": "ping", "arguments": [1] }), "request.arguments"),
        (json!({ "method": "ping", "reply_to": { "exchange": "x" } }), "request.reply_to.routing_key"),
        (json!({ "method": "ping", "pattern": "(", "matcher": "pcre" }), "pattern"),
        (json!({ "method": "ping", "pattern": "x", "matcher": "sql" }), "use glob or pcre"),
        (json!([]), "request"),
    ] {
        let why = with_body(&body).unwrap_err();
        assert!(why.contains(named), "{body}: {why}");
    }
    let all = vectors("pidbox");
    let pickled = all["commands"]["ping"]["request_raw"].as_str().unwrap();
    let pickled = pickled.replace("application/json", "application/x-python-serialize");
    let why = Request::decode(&raw(&pickled)).unwrap_err().to_string();
    assert!(why.contains("pickle"), "{why}");
}

#[test]
fn a_worker_names_its_incarnation_where_python_does_not_look() {
    let to = ReplyTo { exchange: pidbox::REPLY_EXCHANGE.to_owned(), routing_key: "k".to_owned() };
    let reply = Reply {
        node: "n@h".to_owned(),
        worker: Some("n@h/1".to_owned()),
        content: pidbox::ok(&Json::string("pong")),
        ticket: "t".to_owned(),
        clock: 3,
    };
    let message = reply.encode(&to);
    assert_eq!(&*message.body, br#"{"n@h": {"ok": "pong"}}"#);
    assert_eq!(Reply::decode(&message).unwrap(), [reply]);
}

#[test]
fn an_answer_finds_its_queue() {
    let to = ReplyTo { exchange: pidbox::REPLY_EXCHANGE.to_owned(), routing_key: "k".to_owned() };
    for (member, queue) in [
        ("k\u{6}\u{16}\u{6}\u{16}q", Some("q")),
        ("k\u{6}\u{16}^p$\u{6}\u{16}q", Some("q")),
        ("other\u{6}\u{16}\u{6}\u{16}q", None),
        ("k\u{6}\u{16}\u{6}\u{16}", None),
        ("k\u{6}\u{16}q", None),
        ("k", None),
        ("", None),
    ] {
        assert_eq!(to.queue_of(member, "\u{6}\u{16}"), queue, "{member:?}");
    }
}

/// What one worker answered, as it was written.
fn answer(name: &str) -> Json {
    let all = vectors("pidbox");
    let raw = raw(all["commands"][name]["replies"][0]["raw"].as_str().expect(name));
    Reply::decode(&raw).unwrap().remove(0).content
}

/// A value as a type, and written again, is what it was.
fn same<T: Serialize + DeserializeOwned>(json: &Json) -> T {
    let value: T = json.to().unwrap_or_else(|why| panic!("{json}: {why}"));
    assert_eq!(Json::from_value(&value).unwrap(), *json);
    value
}

#[test]
fn what_workers_tell_has_celerys_form() {
    for name in ["active", "active_safe", "reserved"] {
        let tasks: Vec<TaskInfo> = same(&answer(name));
        assert!(!tasks.is_empty(), "{name}");
    }
    let scheduled: Vec<ScheduledInfo> = same(&answer("scheduled"));
    assert_eq!(scheduled[0].request.name, "wapp.add");
    let found: std::collections::BTreeMap<String, (String, TaskInfo)> = same(&answer("query_task"));
    assert_eq!(found.into_values().next().unwrap().0, "scheduled");
    let queues: Vec<QueueInfo> = same(&answer("active_queues"));
    assert_eq!(queues, [QueueInfo::direct("celery")]);
    let hello: HelloReply = same(&answer("hello"));
    assert!(hello.revoked.contains(&"r1".to_owned()) && hello.clock > 0);

    assert_eq!(answer("ping"), pidbox::ok(&Json::string("pong")));
    assert_eq!(answer("time_limit_unknown"), pidbox::error("unknown task"));
    let flagged = |ids: &[&str]| {
        let text = format!("tasks {} flagged as revoked", pidbox::set_repr(ids.iter().copied()));
        pidbox::ok(&Json::string(&text))
    };
    assert_eq!(answer("revoke"), flagged(&["abc"]));
    assert_eq!(answer("revoke_list"), flagged(&["abc", "def"]));
    assert_eq!(pidbox::set_repr([]), "set()");
}

#[test]
fn revoked_ids_are_a_list_or_the_keys_of_an_object() {
    let ids = |text: &str| pidbox::revoked_ids(&Json::parse(text).unwrap());
    assert_eq!(ids(r#"["a", "b"]"#).unwrap(), ["a", "b"]);
    assert_eq!(ids(r#"{"a": [1.5, "a"], "b": null}"#).unwrap(), ["a", "b"]);
    assert_eq!(ids("null").unwrap(), [""; 0]);
    assert!(ids("5").unwrap_err().to_string().contains("revoked"));
    assert!(ids("[5]").is_err());
    // As a worker that starts sends it.
    let all = vectors("pidbox");
    let raw = raw(all["commands"]["hello_dict"]["request_raw"].as_str().unwrap());
    let (request, _) = Request::decode(&raw).unwrap();
    assert!(ids(request.arguments.get("revoked").unwrap().as_str()).unwrap().is_empty());
}
