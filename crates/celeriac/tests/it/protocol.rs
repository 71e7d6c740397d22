//! Celery's bytes against what real Celery wrote and accepted.

use celeriac::State;
use celeriac::protocol::{
    ChordParts, Compression, DecodeError, Exception, Headers, Json, JsonMap, MapParts, Message, Properties,
    RawMessage, ResultMeta, ResultTuple, Serializer, Signature, args_repr, extended, kwargs_repr,
};
use serde_json::Value;

/// One file of vectors.
pub(crate) fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{path}: {why}"))
}

pub(crate) const FILES: [&str; 9] = [
    "task_messages",
    "canvas_messages",
    "canvas_traces",
    "retry",
    "results",
    "foreign_messages",
    "foreign_results",
    "events",
    "pidbox",
];

/// Every string in a value that begins so, at any depth.
pub(crate) fn strings_with<'a>(value: &'a Value, prefix: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if text.starts_with(prefix) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings_with(item, prefix, found)),
        Value::Object(entries) => entries.values().for_each(|item| strings_with(item, prefix, found)),
        _ => {}
    }
}

/// Bytes of a vector: text, or base64 in an object.
pub(crate) fn bytes_of(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        _ => {
            let text = value["base64"].as_str().expect("text or base64");
            let tagged = format!("{{\"__type__\": \"base64\", \"__value__\": {text:?}}}");
            Json::parse(&tagged).unwrap().to::<extended::Bytes>().unwrap().0
        }
    }
}

fn decode(envelope: &str) -> Result<Message, DecodeError> {
    Message::decode(&RawMessage::from_envelope(envelope.as_bytes())?)
}

fn task_message(name: &str) -> (RawMessage, String) {
    let envelope = vectors("task_messages")["messages"][name]["value"].as_str().expect(name).to_owned();
    (RawMessage::from_envelope(envelope.as_bytes()).unwrap(), envelope)
}

#[test]
fn every_message_of_celery_comes_out_byte_for_byte() {
    // What differs on purpose: other serializers are tested below, protocol 1 is never written, and a time without an
    // offset gets one.
    let apart = ["msgpack", "yaml", "pickle", "proto1", "eta_naive"];
    let mut count = 0;
    for file in ["task_messages", "canvas_messages", "canvas_traces", "retry"] {
        let mut all = vectors(file);
        if let Some(messages) = all["messages"].as_object_mut() {
            messages.retain(|name, _| !apart.contains(&name.as_str()) && !name.starts_with("compress_"));
        }
        let mut envelopes = Vec::new();
        strings_with(&all, "{\"body\"", &mut envelopes);
        assert!(!envelopes.is_empty(), "{file}");
        for envelope in envelopes {
            let raw = RawMessage::from_envelope(envelope.as_bytes()).unwrap();
            assert_eq!(raw.to_envelope().unwrap(), envelope);
            let message = Message::decode(&raw).unwrap_or_else(|why| panic!("{why}: {envelope}"));
            let again = message.encode().unwrap();
            assert_eq!(String::from_utf8_lossy(&again.body), String::from_utf8_lossy(&raw.body));
            assert_eq!(again.to_envelope().unwrap(), envelope);
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn every_serializer_and_compression_of_celery_is_read() {
    let expected = Message::decode(&task_message("json_basic").0).unwrap();
    let names = ["msgpack", "yaml"].into_iter().map(str::to_owned).chain(
        ["zlib", "gzip", "bzip2", "lzma", "xz", "zstd", "brotli"].map(|name| format!("compress_{name}")),
    );
    for name in names {
        let (raw, envelope) = task_message(&name);
        let message = Message::decode(&raw).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(
            (&message.body, &message.headers.task),
            (&expected.body, &expected.headers.task),
            "{name}"
        );
        assert!(message.headers.custom.is_empty(), "{name}");
        // As bytes on the wire it stays what it was, until it is written anew.
        assert_eq!(raw.to_envelope().unwrap(), envelope, "{name}");
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message, "{name}");
    }
}

#[test]
fn every_serializer_and_compression_is_written() {
    let (_, msgpack) = task_message("msgpack");
    let message = decode(&msgpack).unwrap();
    let again = message.encode_with(Serializer::Msgpack, None).unwrap();
    assert_eq!(again.to_envelope().unwrap(), msgpack, "msgpack is written as kombu writes it");
    for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
        for name in ["gzip", "bzip2", "lzma", "zstd", "brotli"] {
            let compression = Compression::from_name(name).unwrap();
            let raw = message.encode_with(serializer, Some(compression)).unwrap();
            let head: Value = serde_json::from_str(&raw.head).unwrap();
            assert_eq!(head["headers"]["compression"], compression.content_type());
            assert_eq!(head["content-type"], serializer.content_type());
            assert_eq!(Message::decode(&raw).unwrap(), message, "{serializer:?} {name}");
        }
    }
}

#[test]
fn options_arrive() {
    let message = |name| Message::decode(&task_message(name).0).unwrap();
    let opts = message("opts").headers;
    assert_eq!(opts.shadow.as_deref(), Some("shadowname"));
    assert_eq!((opts.timelimit.hard, opts.timelimit.soft), (Some(10.0), Some(5.0)));
    assert_eq!(opts.ignore_result, Some(true));
    assert_eq!(opts.custom, JsonMap::from([("x-custom", Json::string("v"))]));

    let times = message("countdown_expires");
    assert_eq!(times.headers.eta, Some("2026-11-23T01:32:54.631004Z".parse().unwrap()));
    assert_eq!(times.headers.expires, Some("2026-11-23T01:33:44.631004Z".parse().unwrap()));
    assert_eq!(times.properties.expiration.as_deref(), Some("60000"));
    let naive = message("eta_naive").headers;
    assert_eq!(naive.eta, Some("2030-01-02T03:04:05Z".parse().unwrap()));

    let links = message("links").body.embed;
    assert_eq!((&*links.callbacks[0].task, &*links.errbacks[0].task), ("wapp.add", "wapp.errback_old"));
    assert_eq!((links.chain, links.chord), (None, None));

    let stamped = message("stamped").headers;
    assert_eq!(stamped.stamped_headers, Some(vec!["team".to_owned(), "ids".to_owned()]));
    assert_eq!(stamped.stamps.get("ids").unwrap().as_str(), "[1, 2]");

    let sent = message("send_task");
    assert_eq!((sent.headers.ignore_result, sent.headers.retries, sent.properties.priority), (None, 2, 4));
    assert_eq!(message("priority_10").properties.priority, 10);
}

#[test]
fn extended_types_arrive_as_types() {
    let kwargs = Message::decode(&task_message("types").0).unwrap().body.kwargs;
    let moment: extended::DateTime = kwargs.get("x").unwrap().to().unwrap();
    assert_eq!(moment.0, "2026-01-02T03:04:05.678901Z".parse().unwrap());
    assert_eq!(kwargs.get("b").unwrap().to::<extended::Bytes>().unwrap().0, [0xff, 0]);
    assert_eq!(kwargs.get("bt").unwrap().to::<extended::Bytes>().unwrap().0, b"abc");
    assert_eq!(kwargs.get("dec").unwrap().to::<extended::Decimal>().unwrap().0, "1.50");
    assert_eq!(kwargs.get("u").unwrap().to::<extended::Uuid>().unwrap().0.as_u128(), 1);
    assert_eq!(kwargs.get("d").unwrap().to::<extended::Date>().unwrap().0.to_string(), "2026-01-02");
    assert_eq!(kwargs.get("t").unwrap().to::<extended::Time>().unwrap().0.to_string(), "03:04:05");
    let naive: extended::NaiveDateTime = kwargs.get("naive").unwrap().to().unwrap();
    assert_eq!(naive.0.to_string(), "2026-01-02T03:04:05");
}

#[test]
fn protocol_1_and_the_mixture_are_read() {
    let (raw, _) = task_message("proto1");
    let message = Message::decode(&raw).unwrap();
    assert_eq!((&*message.headers.task, message.headers.group.as_deref()), ("wapp.add", None));
    assert_eq!(message.headers.eta, Some("2026-11-23T01:32:54.645717Z".parse().unwrap()));
    assert_eq!(Json::array(&message.body.args).as_str(), "[2, 3]");
    assert_eq!(message.body.embed.callbacks[0].task, "wapp.add");
    assert!(message.headers.custom.is_empty());
    // Written, it is protocol 2.
    assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);

    let with = |headers: &str, body: &str| {
        let head = raw.head.replace("\"headers\": {}", &format!("\"headers\": {headers}"));
        assert_ne!(*head, *raw.head);
        Message::decode(&RawMessage { head: head.into(), body: body.to_owned().into() })
    };
    let mixed = with(
        r#"{"task": "a", "id": "1", "x": 1}"#,
        r#"{"args": [1], "task": "b", "retries": 2, "taskset": "g", "group": null}"#,
    );
    let headers = mixed.unwrap().headers;
    assert_eq!((&*headers.task, &*headers.id, headers.retries), ("a", "1", 2));
    assert_eq!(headers.group.as_deref(), Some("g"));
    assert!(headers.custom.contains_key("x"));
    // A time of which nobody can say when it is.
    let why =
        with("null", r#"{"args": [], "task": "a", "id": "1", "utc": false, "eta": "2026-01-02T03:04:05"}"#);
    assert!(why.unwrap_err().to_string().contains("enable_utc"));
    assert!(with("null", r#"{"args": [], "task": "a", "id": "1", "utc": false, "eta": null}"#).is_ok());
    assert!(with("null", r#"{"kwargs": {}, "task": "a", "id": "1"}"#).is_err());
}

#[test]
fn foreign_messages_are_read_or_refused_as_by_python() {
    // Python runs these into a TypeError of the task; here the last has no meaning and is refused.
    let readable = ["executed", "REVOKED expired", "FAILURE TypeError"];
    let mut counts = [0, 0];
    for case in vectors("foreign_messages")["cases"].as_array().unwrap() {
        let (name, outcome) = (case["name"].as_str().unwrap(), case["outcome"].as_str().unwrap());
        let message = decode(case["raw"].as_str().unwrap());
        if readable.contains(&outcome) && name != "args object" {
            let message = message.unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(message.headers.id, case["task_id"], "{name}");
            assert_eq!(message.properties.correlation_id, message.headers.id, "{name}");
            counts[0] += 1;
        } else {
            let why = message.map(|_| ()).expect_err(name).to_string();
            assert!(why.len() > 10, "{name}: {why}");
            counts[1] += 1;
        }
    }
    assert_eq!(counts, [16, 19]);
}

#[test]
fn refusals_name_the_part_and_the_remedy() {
    let foreign = vectors("foreign_messages");
    let check = |name: &str, expected: &str| {
        let case = foreign["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).expect(name);
        let why = decode(case["raw"].as_str().unwrap()).unwrap_err().to_string();
        assert!(why.contains(expected), "{name}: {why}");
    };
    check("no id", "headers.id is missing");
    check("kwargs null", "body.kwargs");
    check(
        "args object",
        "body.args cannot be read: expected a list of positional arguments, found an object",
    );
    check("unknown __type__", "\"zz\"");
    check("unknown compression", "application/x-foo is not accepted");
    check("untrusted content type", "application/x-foo is not accepted; use application/json");
    check("timelimit length 1", "headers.timelimit");
    check("eta garbage", "headers.eta cannot be read: \"soon\" is not ISO 8601");
    check("body pair", "found 2 parts");
    check("bad base64", "base64");
    check("no content-type", "content-type is missing");
    check("not json", "envelope");
    let why = Message::decode(&task_message("pickle").0).unwrap_err().to_string();
    assert!(why.contains("pickle") && why.contains("task_serializer"), "{why}");
    assert!(RawMessage::from_envelope(b"{\"body\": \"\xff\"}").is_err());
    assert!(RawMessage::from_envelope(br#"{"body": {"a": 1}, "properties": {}}"#).is_err());
}

#[test]
fn text_bodies_and_unknown_fields_travel_on_untouched() {
    let text = r#"{"body": "[[\"\u00e9\"], {}, null]", "x-unknown": [1,  2], "headers":  {"task" : "a","id":"1"}, "content-type": "application/json", "properties": {"delivery_info": {"exchange": ""}, "delivery_tag": 1, "body_encoding": "utf-8"}}"#;
    let raw = RawMessage::from_envelope(text.as_bytes()).unwrap();
    assert_eq!(raw.to_envelope().unwrap(), text.replace("\"headers\":  {", "\"headers\": {"));
    let message = Message::decode(&raw).unwrap();
    assert_eq!(message.body.args, [Json::parse("\"é\"").unwrap()]);
    assert_eq!(message.properties.delivery_tag, "1");
}

#[test]
fn pythons_liberties_travel_in_arguments() {
    let args = Json::parse(r#"[NaN, "\ud800", 123456789012345678901234567890, {"a": 1, "a": 2}]"#).unwrap();
    let mut message = Message {
        headers: Headers { task: "a".to_owned(), id: "1".to_owned(), ..Headers::default() },
        properties: Properties::new("1", "celery"),
        body: Default::default(),
    };
    message.body.args = args.array_items().unwrap();
    message.headers.custom.insert("limit".to_owned(), Json::parse("-Infinity").unwrap());
    let envelope = message.encode().unwrap().to_envelope().unwrap();
    let back = decode(&envelope).unwrap();
    assert_eq!(back, message);
    assert_eq!(Json::array(&back.body.args), args);
}

#[test]
fn the_head_alone_says_where_a_message_goes() {
    let summary = task_message("send_task").0.summary().unwrap();
    assert_eq!((summary.task.as_deref(), &*summary.queue, summary.priority), (Some("wapp.add"), "celery", 4));
    let summary = task_message("countdown_expires").0.summary().unwrap();
    assert!(summary.eta.is_some() && summary.expires.is_some());
    let summary = task_message("proto1").0.summary().unwrap();
    assert_eq!((summary.task, summary.id.as_deref()), (None, Some("11111111-1111-4111-8111-111111111111")));
    assert_eq!(task_message("pickle").0.summary().unwrap().content_type, "application/x-python-serialize");
}

#[test]
fn arguments_are_printed_as_celery_does() {
    let mut count = 0;
    for file in ["task_messages", "canvas_messages", "canvas_traces", "retry"] {
        let all = vectors(file);
        let mut envelopes = Vec::new();
        strings_with(&all, "{\"body\"", &mut envelopes);
        // Python's tuples and objects are lists by the time they arrive, so only plain arguments can be compared.
        for message in envelopes.into_iter().filter_map(|envelope| decode(envelope).ok()) {
            let Headers { argsrepr, kwargsrepr, .. } = &message.headers;
            if !argsrepr.is_empty() && !kwargsrepr.contains(['(', '<']) && !argsrepr.contains("((") {
                assert_eq!(args_repr(&message.body.args), *argsrepr);
                assert_eq!(kwargs_repr(&message.body.kwargs), *kwargsrepr);
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn canvas_signatures_are_built_as_celery_builds_them() {
    let all = vectors("canvas_messages");
    let message = |canvas: &str| {
        let mut envelopes = Vec::new();
        strings_with(&all["canvas"][canvas], "{\"body\"", &mut envelopes);
        decode(envelopes[0]).unwrap()
    };
    // A chain in embed: last step first.
    let chain = message("chain3").body.embed.chain.unwrap();
    assert_eq!(chain.iter().map(|step| step.args[0].as_str()).collect::<Vec<_>>(), ["4", "3"]);

    let chord = message("chain_group_chain").body.embed.chain.unwrap().remove(1);
    assert!(chord.is_composite("chord"));
    let ChordParts { header, group, body } = chord.chord_parts().unwrap();
    let group = group.unwrap();
    let rebuilt = Signature { options: group.options.clone(), ..Signature::group(&header) };
    assert_eq!(rebuilt.encode(), group.encode());
    let rebuilt = Signature { options: chord.options.clone(), ..Signature::chord(&rebuilt, &body) };
    assert_eq!(rebuilt.encode(), chord.encode());

    let chain = *message("chord_chain_body").body.embed.chord.unwrap();
    let rebuilt = Signature { options: chain.options.clone(), ..Signature::chain(&chain.tasks().unwrap()) };
    assert_eq!(rebuilt.encode(), chain.encode());

    // Maps travel as tasks, whose named arguments are the parts of the signature.
    for (canvas, build) in [
        ("map", Signature::xmap as fn(&Signature, &[Json]) -> Signature),
        ("starmap", Signature::xstarmap),
        ("chunks", Signature::xstarmap),
    ] {
        let message = message(canvas);
        let sent = Signature::new(&message.headers.task, message.body.args, message.body.kwargs);
        let MapParts { task, items, chunk } = sent.map_parts().unwrap();
        let rebuilt = build(&task, &items);
        assert_eq!(
            (&rebuilt.task, rebuilt.kwargs.to_json()),
            (&sent.task, sent.kwargs.to_json()),
            "{canvas}"
        );
        assert_eq!(chunk, None);
    }
    let mut signature = Signature::new("a", Vec::new(), JsonMap::new());
    signature.set_option("countdown", &1.5).unwrap();
    assert_eq!(signature.option::<f64>("countdown").unwrap(), Some(1.5));
    assert!(signature.option::<u32>("countdown").unwrap_err().0.contains("countdown"));
}

#[test]
fn every_result_of_celery_comes_out_byte_for_byte() {
    let mut count = 0;
    for file in ["results", "retry", "canvas_traces"] {
        let all = vectors(file);
        let mut metas = Vec::new();
        strings_with(&all, "{\"status\"", &mut metas);
        for text in metas {
            let meta = ResultMeta::decode(text.as_bytes()).unwrap_or_else(|why| panic!("{why}: {text}"));
            if text.contains("+01:00") {
                // The same moment, in UTC.
                assert_eq!(ResultMeta::decode(meta.encode().unwrap().as_str().as_bytes()).unwrap(), meta);
            } else {
                assert_eq!(meta.encode().unwrap().as_str(), text);
            }
            count += 1;
        }
        let mut groups = Vec::new();
        strings_with(&all, "{\"result\"", &mut groups);
        for text in groups {
            let group = Json::parse(text).unwrap().entries().unwrap().remove("result").unwrap();
            assert_eq!(ResultTuple::decode(&group).unwrap().encode(), group);
        }
    }
    assert!(count > 90, "{count}");
}

#[test]
fn results_in_other_serializers() {
    let all = vectors("results");
    let value = |name: &str| bytes_of(&all["other_serializers"][name]["value"]);
    let plain = ResultMeta::decode(&value("default_json")).unwrap();
    for name in ["compression_gzip", "compression_zstd"] {
        let meta = ResultMeta::decode(&value(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!((meta.state, meta.result), (State::Success, plain.result.clone()), "{name}");
    }
    let meta = ResultMeta::decode_as(Serializer::Msgpack, &value("serializer_msgpack")).unwrap();
    assert_eq!(meta.result.as_str().replace("base64", "bytes").replace("eA==", "x"), plain.result.as_str());
    assert_eq!(meta.encode_with(Serializer::Msgpack, None).unwrap(), value("serializer_msgpack"));
    let meta = ResultMeta::decode_as(Serializer::Yaml, &value("serializer_yaml")).unwrap();
    assert_eq!((meta.task_id.as_str(), meta.state), ("22222222-2222-4222-8222-222222222223", State::Success));
    assert!(ResultMeta::decode(&value("serializer_pickle")).is_err());
    for compression in [None, Some(Compression::Zlib), Some(Compression::Zstd)] {
        for serializer in [Serializer::Json, Serializer::Yaml] {
            let bytes = plain.encode_with(serializer, compression).unwrap();
            let back = ResultMeta::decode_as(serializer, &bytes).unwrap();
            assert_eq!((&back.task_id, &back.date_done), (&plain.task_id, &plain.date_done));
        }
    }
}

#[test]
fn extended_results_keep_their_stamps() {
    let all = vectors("results");
    let meta = ResultMeta::decode(&bytes_of(&all["result_extended_with_stamps"]["value"])).unwrap();
    let extended = meta.extended.unwrap();
    assert_eq!((&*extended.name, &*extended.worker, extended.retries), ("wapp.add", "p1@host", 0));
    assert_eq!((extended.args.as_str(), extended.queue.as_deref()), ("[2, 3]", Some("celery")));
    assert_eq!(extended.other.get("team").unwrap().as_str(), "\"a\"");
}

#[test]
fn celerys_own_failures_are_written_as_celery_writes_them() {
    let finals = &vectors("results")["final"];
    let check = |name: &str, expected: Exception| {
        let meta = ResultMeta::decode(&bytes_of(&finals[name]["value"])).unwrap();
        assert_eq!(expected.encode(), meta.result, "{name}");
        assert_eq!(meta.exception(), Some(expected), "{name}");
    };
    check("revoked", Exception::revoked());
    check("terminated", Exception::terminated());
    check("expired", Exception::expired());
    check("limited", Exception::soft_time_limit());
    check("limited_hard", Exception::time_limit(2.0));
    check("killme", Exception::worker_lost("Worker exited prematurely: signal 9 (SIGKILL) Job: 13."));
    check("unregistered", Exception::not_registered("nope.nope"));
    check("rejecter", Exception::reject("nope", false));
    check("fail", Exception::builtin("ValueError", "boom"));
    let mut chord_errors = Vec::new();
    let traces = vectors("canvas_traces");
    strings_with(
        &traces,
        "{\"status\": \"FAILURE\", \"result\": {\"exc_type\": \"ChordError\"",
        &mut chord_errors,
    );
    for text in chord_errors {
        let exception = ResultMeta::decode(text.as_bytes()).unwrap().exception().unwrap();
        let message = exception.message().unwrap();
        let (id, error) = message.strip_prefix("Dependency ").unwrap().split_once(" raised ").unwrap();
        assert_eq!(Exception::chord(id, error), exception);
    }
}

#[test]
fn foreign_results_are_tolerated_as_by_python() {
    for case in vectors("foreign_results")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let meta = ResultMeta::decode(case["value"].as_str().unwrap().as_bytes());
        match name {
            "no task_id" => assert_eq!(meta.unwrap_err(), DecodeError::Missing { part: "task_id" }),
            "unknown __type__" => assert!(meta.unwrap_err().to_string().contains("\"rust\"")),
            _ => {
                let meta = meta.unwrap_or_else(|why| panic!("{name}: {why}"));
                let failed = meta.state == State::Failure;
                assert_eq!(meta.exception().is_some(), failed, "{name}");
                assert_eq!(meta.date_done.is_none(), name == "no date_done", "{name}");
            }
        }
    }
    let garbage = br#"{"status": "SUCCESS", "result": NaN, "date_done": "yesterday", "task_id": "1"}"#;
    let meta = ResultMeta::decode(garbage).unwrap();
    assert_eq!((meta.date_done, meta.result.as_str()), (None, "NaN"));
}
