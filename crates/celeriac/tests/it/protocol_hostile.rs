//! Every parser against damaged bytes: an error is an answer, a panic is not.

use celeriac::protocol::{
    Compression, Json, Message, RawMessage, ResultMeta, ResultTuple, Serializer, Signature, event, extended,
    parse_iso8601, pidbox,
};

use crate::protocol::{FILES, bytes_of, strings_with, vectors};

/// Seeds of the mutations; each failure prints its own. Fixed, so that a failure comes back.
const SEEDS: std::ops::Range<u64> = 0..6000;

/// Feeds bytes to every parser that takes any. What can be read must be writable and readable again.
fn feed(bytes: &[u8]) {
    if let Ok(raw) = RawMessage::from_envelope(bytes) {
        let _ = raw.summary();
        let envelope = raw.to_envelope().expect("what came from an envelope fits into one");
        assert_eq!(RawMessage::from_envelope(envelope.as_bytes()).expect("our own envelope"), raw);
        feed_message(&raw);
        feed_letter(&raw);
    }
    for serializer in [Serializer::Json, Serializer::Msgpack, Serializer::Yaml] {
        if let Ok(meta) = ResultMeta::decode_as(serializer, bytes) {
            let text = meta.encode().expect("a meta can be written");
            // Dates lose what lies below microseconds when they are written, so only the second time is exact.
            let again = ResultMeta::decode(text.as_str().as_bytes()).expect("our own meta");
            assert_eq!(again.encode().unwrap(), text);
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parse_iso8601(text);
    if let Ok(json) = Json::parse(text) {
        let _ = json.to::<serde_json::Value>();
        let _ = (json.array_items(), json.entries());
        let _ = extended::check_value(&json);
        let _ = (json.to::<extended::DateTime>(), json.to::<extended::Uuid>(), json.to::<extended::Bytes>());
        let _ = (json.to::<extended::Decimal>(), json.to::<extended::Date>(), json.to::<extended::Time>());
        if let Ok(signature) = Signature::decode(&json) {
            assert_eq!(Signature::decode(&signature.encode()).expect("our own signature"), signature);
            let _ = (signature.tasks(), signature.chord_parts(), signature.map_parts());
        }
        if let Ok(tuple) = ResultTuple::decode(&json) {
            assert_eq!(ResultTuple::decode(&tuple.encode()).expect("our own tuple"), tuple);
        }
    }
}

fn feed_message(raw: &RawMessage) {
    if let Ok(message) = Message::decode(raw) {
        let again = message.encode().expect("a message can be written");
        let again = Message::decode(&again).expect("our own message");
        assert_eq!(again.body, message.body);
        assert_eq!(again.headers.id, message.headers.id);
    }
}

/// What is no task: events, requests to workers, and their answers.
fn feed_letter(raw: &RawMessage) {
    if let Ok(events) = event::decode(raw) {
        let events: Vec<_> = events.into_iter().flatten().collect();
        let read = |events: &[event::Event]| -> Vec<event::Event> {
            let messages = event::encode(events);
            let read =
                |message: &event::EventMessage| event::decode(&message.message).expect("our own message");
            messages.iter().flat_map(read).map(|event| event.expect("our own event")).collect()
        };
        // Dates lose what lies below microseconds, and names of fields may be those of every event; once.
        let again = read(&events);
        assert_eq!(format!("{:?}", read(&again)), format!("{again:?}"));
    }
    if let Ok((request, _)) = pidbox::Request::decode(raw) {
        let _ = request.is_for("w1@host");
        let again = pidbox::Request::decode(&request.encode("tag")).expect("our own request").0;
        assert_eq!((again.method, again.destination), (request.method, request.destination));
    }
    if let Ok(replies) = pidbox::Reply::decode(raw) {
        let to = pidbox::ReplyTo { exchange: "x".to_owned(), routing_key: "k".to_owned() };
        for reply in replies {
            assert_eq!(pidbox::Reply::decode(&reply.encode(&to)).expect("our own answer"), [reply]);
        }
    }
}

/// The inputs of the vectors: whole values, and bodies by themselves.
fn seeds() -> (Vec<Vec<u8>>, Vec<RawMessage>) {
    let (mut values, mut messages) = (Vec::new(), Vec::new());
    for file in FILES {
        let all = vectors(file);
        let mut texts = Vec::new();
        strings_with(&all, "", &mut texts);
        for text in texts {
            if let Ok(raw) = RawMessage::from_envelope(text.as_bytes()) {
                values.push(raw.body.to_vec());
                messages.push(raw);
            }
            values.push(text.as_bytes().to_vec());
        }
    }
    for (_, other) in vectors("results")["other_serializers"].as_object().unwrap() {
        values.push(bytes_of(&other["value"]));
    }
    (values, messages)
}

fn mutate(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..6) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes.truncate(at),
            2 => {
                bytes.remove(at);
            }
            3 => bytes.insert(at, random.u8(..)),
            4 => {
                // A piece twice, which doubles keys and brackets.
                let end = random.usize(at..bytes.len().min(at + 32));
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let piece: &[u8] = random
                    .choice([&b"null"[..], b"{", b"[", b"\"", b"NaN", b"1e9", b"-1", b"\\ud800"])
                    .unwrap();
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
}

/// Runs `case` and says which seed it was when it panics.
fn with_seed(seed: u64, case: impl FnOnce(&mut fastrand::Rng) + std::panic::UnwindSafe) {
    let outcome = std::panic::catch_unwind(|| case(&mut fastrand::Rng::with_seed(seed)));
    assert!(outcome.is_ok(), "seed {seed} makes a parser panic");
}

#[test]
fn vectors_do_not_panic() {
    let (values, messages) = seeds();
    assert!(values.len() > 500 && messages.len() > 150, "{} {}", values.len(), messages.len());
    values.iter().for_each(|value| feed(value));
    messages.iter().for_each(feed_message);
}

#[test]
fn damaged_vectors_do_not_panic() {
    let (values, messages) = seeds();
    for seed in SEEDS {
        with_seed(seed, |random| {
            let mut value = random.choice(&values).unwrap().clone();
            mutate(&mut value, random);
            feed(&value);
            // Inside an envelope base64 hides the body from mutations, so it gets its own.
            let mut raw = random.choice(&messages).unwrap().clone();
            let mut body = raw.body.to_vec();
            mutate(&mut body, random);
            raw.body = body.into();
            feed_message(&raw);
        });
    }
}

#[test]
fn damaged_compressed_bodies_do_not_panic() {
    let (_, messages) = seeds();
    let plain = messages.iter().filter_map(|raw| Message::decode(raw).ok()).next().unwrap();
    for compression in ["gzip", "bzip2", "lzma", "zstd", "brotli"] {
        let compression = Compression::from_name(compression).unwrap();
        let raw = plain.encode_with(Serializer::Json, Some(compression)).unwrap();
        for seed in 0..100 {
            with_seed(seed, |random| {
                let mut body = raw.body.to_vec();
                mutate(&mut body, random);
                feed_message(&RawMessage { head: raw.head.clone(), body: body.into() });
            });
        }
    }
}

#[test]
fn deep_and_wide_input_is_bounded() {
    for open in ["[", "{\"a\":", "[[", "- ", "{\"__type__\":"] {
        feed(open.repeat(100_000).as_bytes());
    }
    feed(&[0x91; 100_000]);
    feed(&[0x81; 100_000]);
    // Sizes that promise more than there is.
    feed(&[0xdd, 0xff, 0xff, 0xff, 0xff]);
    feed(&[0xdf, 0xff, 0xff, 0xff, 0xff]);
    feed(&[0xc6, 0xff, 0xff, 0xff, 0xff]);
    let keys: Vec<String> = (0..100_000).map(|key| format!("\"k{key}\": 1")).collect();
    feed(format!("{{{}}}", keys.join(", ")).as_bytes());
}
