//! Tasks as operations: how they are described, and that what does not fit is refused before it is sent.

use celeriac::task::{Description, KnownTask, Parameter, ParameterKind};
use celeriac::{Celeriac, TaskOptions};
use celeriac_server::{Access, ServerConfig, description};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Api};
use crate::support::server;

fn parameter(name: &str, kind: ParameterKind, schema: Value) -> Parameter {
    let required = schema.get("default").is_none();
    Parameter { name: name.to_owned(), kind, required, schema, exact: true }
}

fn known(name: &str, queue: Option<&str>, description: Option<Description>) -> KnownTask {
    let mut options = TaskOptions::default();
    options.queue = queue.map(str::to_owned);
    KnownTask { name: name.into(), options, description }
}

/// A server that knows tasks that others run, as of an application in Python.
async fn api() -> Api {
    use ParameterKind::{Either, Named, Positional};
    let integer = json!({ "type": "integer" });
    let plain = Description { checked: true, ..Description::default() };
    let search = Description {
        summary: "Searches.".to_owned(),
        details: "Far and *wide*.".to_owned(),
        parameters: vec![
            parameter("query", Either, json!({ "type": "string" })),
            parameter("limit", Either, json!({ "type": "integer", "default": 10 })),
            parameter("how", Named, json!({ "enum": ["quick", "deep"], "default": "quick" })),
            Parameter {
                exact: false,
                ..parameter("who", Named, json!({ "type": "object", "default": null }))
            },
        ],
        ..plain.clone()
    };
    let join = Description {
        parameters: vec![
            parameter("first", Positional, integer.clone()),
            parameter("second", Positional, json!({ "type": "integer", "default": 7 })),
            // Its default is nothing that JSON could hold.
            Parameter { required: false, ..parameter("third", Positional, integer.clone()) },
            parameter("fourth", Positional, json!({ "default": null })),
        ],
        more_args: true,
        ..plain.clone()
    };
    let open = Description {
        parameters: vec![parameter("x", Either, integer.clone())],
        more_kwargs: true,
        ..plain.clone()
    };
    let loose = Description { parameters: vec![parameter("x", Either, integer)], ..Description::default() };
    let builder = Celeriac::builder().broker("memory://").know([
        known("proj.search", Some("found"), Some(search)),
        known("proj.join", None, Some(join)),
        known("proj.open", None, Some(open)),
        known("proj.loose", None, Some(loose)),
        known("proj.plain", None, Some(plain)),
        known("proj.dark", None, None),
        known("odd/{name} ü?", None, None),
        known("..", None, None),
        known("celery.map", None, None),
    ]);
    Api::of(builder.connect().await.unwrap(), None, ServerConfig::default()).await
}

async fn call(api: &Api, task: &str, body: Value) -> Answer {
    api.post(&format!("/api/v1/call/{task}"), body).await
}

fn operation<'a>(document: &'a Value, task: &str) -> &'a Value {
    &document["paths"][format!("/api/v1/call/{task}")]["post"]
}

fn schema<'a>(document: &'a Value, task: &str) -> &'a Value {
    &operation(document, task)["requestBody"]["content"]["application/json"]["schema"]
}

#[tokio::test]
async fn each_task_is_an_operation() {
    let api = api().await;
    let document = api.get("/openapi.json").await.expect(200).body;
    let search = operation(&document, "proj.search");
    assert_eq!(search["tags"], json!(["your tasks"]));
    assert_eq!(
        (&search["summary"], &search["description"]),
        (&json!("Searches."), &json!("Far and *wide*."))
    );
    assert_eq!(search["operationId"], "call_proj_search");
    assert_eq!(search["requestBody"]["required"], true);
    let expected = json!({
        "type": "object", "required": ["query"], "additionalProperties": false,
        "properties": {
            "query": { "type": "string" }, "limit": { "type": "integer", "default": 10 },
            "how": { "enum": ["quick", "deep"], "default": "quick" }, "who": { "type": "object", "default": null },
        },
    });
    assert_eq!(schema(&document, "proj.search"), &expected);
    // Options and answers are those of any call, and stand in the document once.
    let bare = description(&server(Access::default(), ServerConfig::default()).await);
    let general = operation(&bare, "{task}");
    assert!(general.is_object() && operation(&document, "{task}").is_null());
    let resolve =
        |value: &Value| document.pointer(value["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
    let parameters: Vec<&Value> = search["parameters"].as_array().unwrap().iter().map(resolve).collect();
    let of_general = general["parameters"].as_array().unwrap();
    let others: Vec<&Value> = of_general.iter().filter(|parameter| parameter["name"] != "task").collect();
    assert_eq!(parameters, others);
    assert_eq!(resolve(&search["responses"]["202"]), &general["responses"]["202"]);
    assert_eq!(search["security"], general["security"]);
    // Where some arguments have no name there is a list beside the object.
    let list = &schema(&document, "proj.join")["oneOf"][1];
    assert_eq!((&list["type"], &list["minItems"], list.get("maxItems")), (&json!("array"), &json!(1), None));
    assert_eq!(list["prefixItems"].as_array().unwrap().len(), 4);
    assert_eq!(schema(&document, "proj.open")["additionalProperties"], true);
    // What is not checked is not said to be needed.
    assert_eq!(
        schema(&document, "proj.loose"),
        &json!({ "type": "object", "properties": { "x": { "type": "integer" } } })
    );
    assert_eq!(operation(&document, "proj.plain")["requestBody"]["required"], false);
    assert_eq!(schema(&document, "proj.dark"), &json!({ "type": "object" }));
    assert!(operation(&document, "odd%2F%7Bname%7D%20%C3%BC%3F").is_object());
    for absent in ["..", "celery.map"] {
        assert!(operation(&document, absent).is_null(), "{absent}");
    }
    // A task in Rust has names and documentation.
    let add = operation(&document, "app.add");
    assert_eq!(
        (&add["summary"], &add["description"]),
        (&json!("Adds two numbers."), &json!("They are *whole*."))
    );
    assert_eq!(schema(&document, "app.add")["required"], json!(["x", "y"]));
    let mut ids: Vec<&str> = Vec::new();
    for item in document["paths"].as_object().unwrap().values() {
        ids.extend(
            item.as_object().unwrap().values().map(|operation| operation["operationId"].as_str().unwrap()),
        );
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids are unique");
}

#[tokio::test]
async fn the_registry_tells_what_tasks_take() {
    let api = api().await;
    let listed = api.get("/api/v1/registry").await.expect(200).body["items"].clone();
    let find =
        |name: &str| listed.as_array().unwrap().iter().find(|item| item["name"] == name).unwrap().clone();
    let search = find("proj.search");
    assert_eq!(search["options"]["queue"], "found");
    assert_eq!(search["workers"], json!([]));
    let description = &search["description"];
    assert_eq!((&description["summary"], &description["checked"]), (&json!("Searches."), &json!(true)));
    assert_eq!(
        description["parameters"][1],
        json!({ "name": "limit", "kind": "either", "required": false, "schema": { "type": "integer", "default": 10 } })
    );
    assert_eq!(find("proj.dark")["description"], Value::Null);
}

#[tokio::test]
async fn a_call_is_sent_as_any_other() {
    let api = api().await;
    let sent =
        call(&api, "proj.search?priority=3&tags=a&tags=b", json!({ "query": "bees" })).await.expect(202);
    assert_eq!(sent.headers["location"], format!("/api/v1/tasks/{}", sent.id()));
    assert_eq!(
        (&sent.body["task"], &sent.body["kwargs"]),
        (&json!("proj.search"), &json!("{'query': 'bees'}"))
    );
    assert_eq!((&sent.body["queue"], &sent.body["priority"]), (&json!("found"), &json!(3)));
    assert_eq!(sent.body["tags"], json!(["a", "b"]));
    let later = call(&api, "proj.plain?countdown=3600.5&queue=q&expires=7200&task_id=mine", json!({}))
        .await
        .expect(202);
    assert_eq!((&later.body["phase"], &later.body["id"]), (&json!("delayed"), &json!("mine")));
    // Without a body a task without arguments can be called.
    api.send(Method::POST, "/api/v1/call/proj.plain", None).await.expect(202);
    // Any name has a path.
    let odd = call(&api, "odd%2F%7Bname%7D%20%C3%BC%3F", json!({ "anything": [1] })).await.expect(202);
    assert_eq!(odd.body["task"], "odd/{name} ü?");
    // The same key and content by the other way is the same call.
    let keyed =
        |path: &str, body: Value| api.request(Method::POST, path).header("idempotency-key", "k").json(&body);
    let first =
        api.answer(keyed("/api/v1/call/proj.search?priority=1", json!({ "query": "x" }))).await.expect(202);
    let body = json!({ "task": "proj.search", "kwargs": { "query": "x" }, "priority": 1 });
    let again = api.answer(keyed("/api/v1/tasks", body)).await.expect(202);
    assert_eq!((again.id(), &again.headers["idempotency-replayed"]), (first.id(), &"true".parse().unwrap()));
    let both = api.answer(keyed("/api/v1/call/proj.plain?task_id=t", json!({}))).await.expect(409);
    assert_eq!(both.body["type"], "/problems/two-keys");
    let unknown = call(&api, "proj.serch", json!({})).await.expect(404).body;
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean proj.search"), "{unknown}");
}

#[tokio::test]
async fn arguments_without_a_name_stand_where_they_belong() {
    let api = api().await;
    let args = async |body: Value| {
        let sent = call(&api, "proj.join", body).await.expect(202).body;
        assert_eq!(sent["kwargs"], "{}");
        sent["args"].as_str().unwrap().to_owned()
    };
    assert_eq!(args(json!([1, 2, 3, "more"])).await, "(1, 2, 3, 'more')");
    assert_eq!(args(json!({ "third": 3, "first": 1 })).await, "(1, 7, 3)", "the default is filled in");
    assert_eq!(call(&api, "proj.join", json!({ "second": 1 })).await.places(), ["/first"]);
    let gap = call(&api, "proj.join", json!({ "first": 1, "fourth": 2 })).await.expect(422).body;
    assert_eq!(
        gap["errors"][0],
        json!({ "at": "/third", "problem": "missing, and fourth after it is given" })
    );
    assert_eq!(call(&api, "proj.join", json!(["x", 2, "y"])).await.places(), ["/0", "/2"]);
    assert_eq!(call(&api, "proj.join", json!([])).await.places(), ["/0"]);
    // Nobody else takes a list.
    assert_eq!(call(&api, "proj.search", json!(["x"])).await.places(), [""]);
    assert_eq!(call(&api, "proj.dark", json!(["x"])).await.places(), [""]);
}

#[tokio::test]
async fn every_problem_of_the_arguments_is_listed() {
    let api = api().await;
    let wrong = json!({ "qury": 1, "limit": "many", "how": "slow", "who": "me", "deep": [] });
    let places = call(&api, "proj.search?priority=x&countdwn=1", wrong).await.places();
    let mut sorted: Vec<&str> = places.iter().map(|place| &**place).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, ["/deep", "/how", "/limit", "/query", "/qury", "countdwn", "priority"]);
    for body in [json!(7), json!("x"), Value::Null] {
        assert_eq!(call(&api, "proj.plain", body).await.places(), [""]);
    }
    // Who takes any name still needs its own; who is not checked takes anything.
    call(&api, "proj.open", json!({ "x": 1, "y": 2 })).await.expect(202);
    assert_eq!(call(&api, "proj.open", json!({ "y": 2 })).await.places(), ["/x"]);
    call(&api, "proj.loose", json!({ "x": "y", "z": 1 })).await.expect(202);
    // What no worker could read has its place, too.
    let typed = json!({ "query": {"__type__": "pickle", "__value__": 1} });
    assert_eq!(call(&api, "proj.search", typed).await.places(), ["/query"]);
    let webhook = call(&api, "celeriac.webhook", json!({})).await;
    assert_eq!(webhook.places(), ["task"]);
    let long = call(&api, &"x".repeat(256), json!({})).await;
    assert_eq!(long.places(), ["task"]);
    assert_eq!(
        api.get("/api/v1/tasks").await.body["items"].as_array().unwrap().len(),
        2,
        "nothing else was sent"
    );
}

#[tokio::test]
async fn names_are_checked_of_any_submission() {
    let api = api().await;
    let task = async |args: Value, kwargs: Value| {
        api.task(json!({ "task": "proj.search", "args": args, "kwargs": kwargs })).await
    };
    task(json!(["x"]), json!({ "how": "anyhow" })).await.expect(202);
    task(json!([1, "x"]), json!({})).await.expect(202);
    assert_eq!(task(json!([]), json!({})).await.places(), ["/kwargs/query"]);
    assert_eq!(task(json!(["x", 1, 2]), json!({})).await.places(), ["/args/2"]);
    assert_eq!(
        task(json!(["x"]), json!({ "query": "y", "a/b": 1 })).await.places(),
        ["/kwargs/a~1b", "/kwargs/query"]
    );
    let join = api.task(json!({ "task": "proj.join", "args": [], "kwargs": { "second": 2 } })).await;
    assert_eq!(join.places(), ["/kwargs/second", "/args/0"]);
    api.task(json!({ "task": "proj.loose", "kwargs": { "z": 1 } })).await.expect(202);
    // Many are refused as a whole, each by its place.
    let batch = json!({ "tasks": [
        { "task": "proj.search", "args": ["x"] }, { "task": "proj.search" }, { "task": "app.add", "kwargs": { "x": 1, "z": 2 } },
    ] });
    let places = api.post("/api/v1/tasks/batch", batch).await.places();
    assert_eq!(places, ["/tasks/1/kwargs/query", "/tasks/2/kwargs/z", "/tasks/2/kwargs/y"]);
    // What cannot be read as arguments is all that is said of them.
    assert_eq!(task(json!(7), json!([])).await.places(), ["/args", "/kwargs"]);
    assert_eq!(api.get("/api/v1/tasks").await.body["items"].as_array().unwrap().len(), 3);
}
