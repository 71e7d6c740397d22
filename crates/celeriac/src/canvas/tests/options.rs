//! Options and bounds.

use super::super::{Error, Given, Planner, Router, after_failure, after_success, fire, plan};
use super::build::{Ids, add, chord, decoded, items, json, linked, now, planned, planner, task, with, xsum};
use crate::backend::{ChordPart, ReadyChord};
use crate::config::Route;
use crate::id::{QueueName, TaskId};
use crate::protocol::{Exception, Json, JsonMap, Message, Signature};
use crate::state::State;

fn options(pairs: &[(&str, &str)]) -> JsonMap {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect()
}

fn plan_error(signature: &Signature) -> Error {
    let (router, ids) = (Router::default(), Ids::default());
    plan(signature, Given::default(), &planner(&router, &|| ids.next())).unwrap_err()
}

fn one(signature: &Signature) -> Message {
    let mut messages = decoded(&planned(signature));
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

#[test]
fn every_option_has_its_place() {
    let mut signature = add("[1, 2]");
    signature.options = options(&[
        ("task_id", "\"given\""),
        ("time_limit", "30"),
        ("soft_time_limit", "20.5"),
        ("countdown", "90"),
        ("expires", "3600"),
        ("shadow", "\"shown\""),
        ("retries", "2"),
        ("ignore_result", "true"),
        ("replaced_task_nesting", "1"),
        ("reply_to", "\"me\""),
        ("priority", "7"),
        ("queue", "\"fast\""),
        ("headers", r#"{"mine": [1], "id": "not this one"}"#),
        ("stamped_headers", r#"["tenant"]"#),
        ("tenant", "\"blue\""),
        ("root_id", "null"),
        ("add_to_parent", "false"),
        ("retry_policy", "{}"),
        ("max_retries", "3"),
        ("unheard_of", "true"),
    ]);
    let plan = planned(&signature);
    let routed = &plan.publish[0];
    assert_eq!((routed.queue.as_str(), routed.priority), ("fast", 7));
    assert_eq!(routed.due, Some("2026-11-24T12:01:30Z".parse().unwrap()));
    let message = Message::decode(&routed.message).unwrap();
    let headers = &message.headers;
    assert_eq!((headers.id.as_str(), headers.root_id.as_deref()), ("given", Some("given")));
    assert_eq!((headers.timelimit.hard, headers.timelimit.soft), (Some(30.0), Some(20.5)));
    assert_eq!(headers.eta, routed.due);
    assert_eq!(headers.expires, Some("2026-11-24T13:00:00Z".parse().unwrap()));
    assert_eq!((headers.shadow.as_deref(), headers.retries), (Some("shown"), 2));
    assert_eq!((headers.ignore_result, headers.replaced_task_nesting), (Some(true), 1));
    assert_eq!(headers.custom, options(&[("mine", "[1]")]));
    assert_eq!(headers.stamped_headers.as_deref(), Some(&["tenant".to_owned()][..]));
    assert_eq!(headers.stamps, options(&[("tenant", "\"blue\"")]));
    assert_eq!(message.properties.reply_to, "me");
    assert_eq!(message.properties.routing_key, "fast");
    assert_eq!(message.properties.expiration.as_deref(), Some("3600000"));
    assert_eq!(message.properties.other, options(&[("unheard_of", "true")]));
}

/// A message is in the form its signature asks for, and in JSON where that is none of ours.
#[test]
fn a_message_is_in_the_form_asked_for() {
    for (serializer, compression, content_type, compressed) in [
        ("\"msgpack\"", "null", "application/x-msgpack", None),
        #[cfg(feature = "yaml")]
        ("\"yaml\"", "null", "application/x-yaml", None),
        #[cfg(feature = "compression")]
        ("null", "\"zlib\"", "application/json", Some("application/x-gzip")),
        ("\"pickle\"", "\"lost art\"", "application/json", None),
    ] {
        let mut signature = Signature::new("t", vec![Json::string("ø")], JsonMap::new());
        signature.options = options(&[("serializer", serializer), ("compression", compression)]);
        let message = planned(&signature).publish.remove(0).message;
        assert!(message.head.contains(&format!("\"content-type\": \"{content_type}\"")), "{}", message.head);
        match compressed {
            Some(form) => assert!(message.head.contains(form), "{}", message.head),
            None => assert!(!message.head.contains("\"compression\""), "{}", message.head),
        }
        assert_eq!(Message::decode(&message).unwrap().body.args, [Json::string("ø")]);
    }
}

#[test]
fn times_in_every_form() {
    let eta = |value: &str| one(&with(add("[]"), "eta", value)).headers.eta.unwrap().to_string();
    assert_eq!(eta("\"2026-11-24T13:00:00+01:00\""), "2026-11-24T12:00:00Z");
    assert_eq!(
        eta(r#"{"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}"#),
        "2026-01-02T03:04:05Z"
    );
    let past = one(&with(add("[]"), "expires", "-10"));
    assert_eq!(past.headers.expires, Some("2026-11-24T11:59:50Z".parse().unwrap()));
    assert_eq!(past.properties.expiration.as_deref(), Some("0"));
    assert_eq!(one(&with(add("[]"), "countdown", "0")).headers.eta, None);
    let error = plan_error(&with(add("[]"), "eta", "\"soon\"")).to_string();
    assert!(error.contains("option eta") && error.contains("soon"), "{error}");
}

#[test]
fn given_options_win_but_for_the_group_and_stamps() {
    let mut signature = add("[3]");
    signature.options = options(&[
        ("group_id", "\"stored\""),
        ("priority", "1"),
        ("stamped_headers", "[\"s\"]"),
        ("s", "1"),
        ("shadow", "\"stored\""),
    ]);
    let given = options(&[
        ("group_id", "\"given\""),
        ("priority", "2"),
        ("stamped_headers", "[\"t\"]"),
        ("s", "2"),
        ("shadow", "null"),
    ]);
    let (router, ids) = (Router::default(), Ids::default());
    let given = Given { args: items("[1, 2]"), options: given, ..Given::default() };
    let plan = plan(&signature, given, &planner(&router, &|| ids.next())).unwrap();
    let message = decoded(&plan).remove(0);
    assert_eq!(message.body.args, items("[1, 2, 3]"));
    assert_eq!(message.headers.group.as_deref(), Some("stored"));
    assert_eq!(message.headers.stamps, options(&[("s", "1")]));
    assert_eq!(message.headers.shadow.as_deref(), Some("stored"));
    assert_eq!(plan.publish[0].priority, 2);
}

#[test]
fn an_immutable_signature_takes_no_arguments() {
    let mut signature = add("[3]");
    signature.immutable = true;
    let (router, ids) = (Router::default(), Ids::default());
    let given = Given { args: items("[1]"), kwargs: options(&[("x", "1")]), ..Given::default() };
    let plan = plan(&signature, given, &planner(&router, &|| ids.next())).unwrap();
    let message = decoded(&plan).remove(0);
    assert_eq!((message.body.args, message.body.kwargs.len()), (items("[3]"), 0));
}

#[test]
fn where_a_priority_comes_from() {
    let routes =
        vec![Route { pattern: "wapp.*".to_owned(), queue: Some(QueueName::from("math")), priority: Some(4) }];
    let router = Router::new(routes, QueueName::from("rest"), Some(9));
    let ids = Ids::default();
    let fresh = || ids.next();
    let mut cx = planner(&router, &fresh);
    let mut check = |signature: &Signature, inherited, queue: &str, priority| {
        cx.inherited_priority = inherited;
        let routed = plan(signature, Given::default(), &cx).unwrap().publish.remove(0);
        assert_eq!((routed.queue.as_str(), routed.priority), (queue, priority));
    };
    check(&with(add("[]"), "priority", "2"), Some(6), "math", 2);
    check(&add("[]"), Some(6), "math", 4);
    check(&task("other", "[]"), Some(6), "rest", 6);
    check(&task("other", "[]"), None, "rest", 9);
    check(&with(task("other", "[]"), "routing_key", "\"there\""), None, "there", 9);
    // A map is routed as what it maps.
    check(&Signature::xmap(&add("[]"), &items("[1]")), None, "math", 4);
}

#[test]
fn an_idempotency_key_makes_the_id_and_is_not_sent() {
    let keyed = with(add("[1]"), "idempotency_key", "\"order 7\"");
    let id = TaskId::for_key("wapp.add", "order 7");
    let plan = planned(&keyed);
    assert!(plan.publish[0].unique);
    assert_eq!((plan.publish[0].task_id.clone(), plan.result.id.as_str()), (id.clone(), id.as_str()));
    assert!(!plan.publish[0].message.head.contains("order 7"));

    // As a later step it has its id from the start, and is as unique when its turn comes.
    let message = one(&Signature::chain(&[add("[1]"), keyed]));
    let step = &message.body.embed.chain.as_ref().unwrap()[0];
    assert_eq!(step.option::<String>("task_id").unwrap().as_deref(), Some(id.as_str()));
    assert!(!step.options.contains_key("idempotency_key"));
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let follow = after_success(&message, &json("1"), &planner(&router, &fresh)).unwrap();
    assert!(follow.publish[0].unique);

    let error = plan_error(&with(Signature::group(&[add("[]")]), "idempotency_key", "\"k\""));
    assert!(error.to_string().contains("each task its own key"), "{error}");
}

#[test]
fn a_failing_chain_with_a_group_counts_every_end() {
    // chord([chain(add, group(add, add)), add], xsum): when the first step fails, both members of the group count.
    let inner = Signature::chain(&[add("[1, 1]"), Signature::group(&[add("[1]"), add("[2]")])]);
    let plan = planned(&chord(&[inner, add("[3, 3]")], &xsum()));
    assert_eq!(plan.chords[0].size, 3);
    let message = &decoded(&plan)[0];
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let follow =
        after_failure(message, &Exception::builtin("ValueError", "x"), None, &planner(&router, &fresh));
    assert_eq!(follow.parts.len(), 2);
    assert_eq!(follow.results.len(), 2);
    assert!(follow.parts.iter().all(|part| part.group_id == plan.chords[0].group_id));
}

#[test]
fn an_empty_header_sends_the_body_at_once() {
    let message = one(&chord(&[], &xsum()));
    assert_eq!((message.headers.task.as_str(), message.body.args), ("wapp.xsum", items("[[]]")));
}

#[test]
fn empty_canvases_have_an_empty_result() {
    for empty in [Signature::group(&[]), Signature::chain(&[]), Signature::chain(&[Signature::group(&[])])] {
        let plan = planned(&empty);
        assert!(plan.publish.is_empty() && plan.chords.is_empty());
        assert_eq!(plan.result.children.as_deref(), Some(&[][..]));
    }
}

#[test]
fn bounds_are_errors_that_name_themselves() {
    let mut deep = add("[]");
    for _ in 0..70 {
        deep = Signature::group(&[deep, add("[]")]);
    }
    assert_eq!(plan_error(&deep), Error::TooDeep { bound: 64 });
    let long = Signature::chain(&vec![add("[]"); 1_100]);
    assert!(plan_error(&long).to_string().contains("the steps of a chain"));
    let wide = Signature::chunks(&add("[]"), &vec![json("[]"); 100_001], 1);
    assert!(plan_error(&chord(&[wide], &xsum())).to_string().contains("the header of a chord"));
}

#[test]
fn malformed_signatures_are_errors_that_name_the_part() {
    let broken = |kwargs: &[(&str, &str)], kind: &str| {
        let mut signature = Signature::new(format!("celery.{kind}"), Vec::new(), options(kwargs));
        signature.subtask_type = Some(kind.to_owned());
        plan_error(&signature).to_string()
    };
    assert!(broken(&[], "chain").contains("celery.chain: tasks"));
    assert!(broken(&[("tasks", "[1]")], "group").contains("celery.group: tasks"));
    assert!(broken(&[("header", "[]")], "chord").contains("celery.chord: body"));
    assert!(broken(&[("task", "{}"), ("it", "[]"), ("n", "0")], "chunks").contains("at least one item"));
    let linked_group = linked(Signature::group(&[add("[]")]), "link", &[add("[]")]);
    assert!(plan_error(&linked_group).to_string().contains("header of a chord"));
}

#[test]
fn a_malformed_step_is_the_tasks_own_failure() {
    let mut message = one(&Signature::chain(&[add("[1, 1]"), add("[1]")]));
    let step = &mut message.body.embed.chain.as_mut().unwrap()[0];
    step.subtask_type = Some("chord".to_owned());
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let cx: Planner<'_> = planner(&router, &fresh);
    assert!(after_success(&message, &json("2"), &cx).is_err());
    let follow = after_failure(&message, &Exception::builtin("ValueError", "x"), None, &cx);
    assert_eq!(follow.problems.len(), 1);
}

#[test]
fn a_body_that_cannot_be_applied_fails() {
    let mut body = with(xsum(), "eta", "\"never\"");
    body.options.insert("task_id", Json::string("body"));
    let part = |id: &str| ChordPart {
        group_id: "g".into(),
        task_id: id.into(),
        index: Some(0),
        state: State::Success,
        result: json("1"),
    };
    let ready = ReadyChord { group_id: "g".into(), body: body.encode(), parts: vec![part("a")] };
    let (router, ids) = (Router::default(), Ids::default());
    let fresh = || ids.next();
    let transaction = fire(&ready, &planner(&router, &fresh)).unwrap();
    assert!(transaction.publish.is_empty());
    let meta = &transaction.record.results[0];
    assert_eq!((meta.task_id.as_str(), &meta.state, meta.date_done), ("body", &State::Failure, Some(now())));
    assert!(meta.result.as_str().contains("option eta"));
    let ready = ReadyChord { body: json("3"), ..ready };
    assert!(fire(&ready, &planner(&router, &fresh)).is_err());
}
