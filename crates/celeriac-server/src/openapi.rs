//! The description of the API: what the handlers say, completed by what holds for all of them.

mod operations;

use celeriac::client::WEBHOOK_TASK;
use celeriac::task::Registry;
use serde_json::{Map, Value, json};
use utoipa::openapi::{ComponentsBuilder, Info, InfoBuilder, License, OpenApi, OpenApiBuilder};

use crate::api::{cursor, messages, request, workers};
use crate::config::ServerConfig;
use crate::problem::{Invalid, Problem};

/// The description before there are routes in it.
pub(crate) fn base() -> OpenApi {
    let info: Info = InfoBuilder::new()
        .title("celeriac")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "A task queue: send tasks, follow and stop them, look after workers and queues.\n\nErrors are problem \
             documents as RFC 9457 has them, `application/problem+json`.",
        ))
        .license(Some(License::new("MIT OR Apache-2.0")))
        .build();
    let components = ComponentsBuilder::new().schema_from::<Problem>().schema_from::<Invalid>().build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// Adds what holds for all routes: errors, bounds as configured, and conditions between fields, which Rust types do not
/// say; and the tasks that are known, each as an operation.
pub(crate) fn complete(openapi: &OpenApi, config: &ServerConfig, registry: &Registry) -> Value {
    let mut document = serde_json::to_value(openapi).unwrap_or_default();
    document["paths"][operations::PATH]["post"]["requestBody"] = json!({
        "description": "The arguments, by name",
        "content": { "application/json": { "schema": { "type": "object" } } },
    });
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, methods) in paths {
            for (_, operation) in methods.as_object_mut().into_iter().flatten() {
                complete_operation(path, operation, config);
            }
        }
    }
    let schemas = &mut document["components"]["schemas"];
    for name in [
        "TaskRequest",
        "BatchRequest",
        "RevokeRequest",
        "RevokeManyRequest",
        "RetryManyRequest",
        "DeadRequest",
        "Filter",
        "MessagesRequest",
        "GroupRequest",
    ] {
        schemas[name]["additionalProperties"] = json!(false);
    }
    complete_task_request(&mut schemas["TaskRequest"]);
    schemas["BatchRequest"]["properties"]["tasks"]["maxItems"] = json!(config.batch_max);
    for list in ["messages", "chords"] {
        let schema = &mut schemas["MessagesRequest"]["properties"][list];
        let item = match list {
            "messages" => "#/components/schemas/MessageRequest",
            _ => "#/components/schemas/ChordRequest",
        };
        let description = schema["description"].clone();
        *schema = json!({ "type": "array", "description": description, "items": { "$ref": item },
            "minItems": 1, "maxItems": messages::ITEMS_MAX });
    }
    let text = json!({ "type": "string", "minLength": 1 });
    let envelope = &mut schemas["MessageRequest"]["properties"]["message"];
    envelope["required"] = json!(["body", "headers", "properties"]);
    envelope["properties"] = json!({
        "body": { "type": "string" },
        "headers": { "type": "object", "required": ["task", "id"], "properties": { "task": text, "id": text } },
        // As Python's workers want them: without a tag or an exchange they lose the message.
        "properties": { "type": "object", "required": ["delivery_tag", "delivery_info"], "properties": {
            "delivery_tag": { "not": { "type": "null" } },
            "delivery_info": { "type": "object", "required": ["exchange"], "properties": {
                "exchange": { "type": ["string", "null"] },
                "routing_key": { "type": ["string", "null"] },
            } },
        } },
    });
    schemas["MessagesRequest"]["minProperties"] = json!(1);
    schemas["Filter"]["minProperties"] = json!(1);
    for list in ["state", "phase"] {
        let schema = &mut schemas["Filter"]["properties"][list];
        schema["minItems"] = json!(1);
        schema["maxItems"] = json!(50);
    }
    schemas["Filter"]["properties"]["state"]["items"] = name_schema();
    for (name, choice) in [
        ("RevokeManyRequest", &["ids", "filter", "all"][..]),
        ("RetryManyRequest", &["ids", "filter", "all"]),
        ("DeadRequest", &["ids", "all"]),
    ] {
        let one: Vec<Value> = choice.iter().map(|field| json!({ "required": [field] })).collect();
        schemas[name]["oneOf"] = json!(one);
        if let Some(schema) = schemas[name].as_object_mut() {
            schema.remove("required");
        }
        let ids = &mut schemas[name]["properties"]["ids"];
        ids["maxItems"] = json!(config.bulk_max);
        ids["items"] = name_schema();
    }
    if let Some(schema) = schemas["RevokeRequest"].as_object_mut() {
        schema.remove("required");
    }
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer", "description": "Needed where the server has tokens." },
    });
    operations::add(&mut document, registry);
    document
}

fn complete_operation(path: &str, operation: &mut Value, config: &ServerConfig) {
    let open = ["/livez", "/readyz"].contains(&path);
    // An empty alternative: a server on loopback may have no tokens.
    operation["security"] = if open { json!([]) } else { json!([{}, { "token": [] }]) };
    let mut errors: Vec<(&str, &str)> = Vec::new();
    if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
        errors.push(("400", "The request cannot be read"));
        // Other names of `after`, for clients that know nothing else; a description with all three would have them sent
        // together.
        parameters.retain(|parameter| {
            parameter["name"] != "last_event_id" && parameter["name"] != "starting_after"
        });
        for parameter in parameters {
            complete_parameter(parameter, config);
        }
    }
    if operation.get("requestBody").is_some() {
        errors.extend([
            ("400", "The body is not JSON"),
            ("408", "The body did not come in time"),
            ("413", "The body is too large"),
            ("415", "The body is not said to be JSON"),
            ("422", "The input is not valid: every problem is listed"),
        ]);
    }
    if !open {
        errors.extend([
            ("401", "No valid token"),
            ("403", "The token's role does not include this, or it is switched off"),
            ("429", "Too many requests, or the queue is full: see Retry-After"),
            ("500", "The server failed"),
            ("503", "The store cannot be reached, or did not answer in time"),
        ]);
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in errors {
        responses.entry(status).or_insert_with(|| json!({ "description": description }));
    }
    for (status, response) in responses {
        let described = response["description"].as_str().is_some_and(|text| !text.is_empty());
        if !described {
            response["description"] = json!(match status.as_str() {
                "404" => "No such task is known",
                _ => "The input is not valid: every problem is listed",
            });
        }
        if let Some(stream) =
            response.pointer_mut("/content/text~1event-stream").and_then(Value::as_object_mut)
        {
            // A schema would be that of a whole stream, which has no end.
            stream.remove("schema");
        }
        if status.as_str() >= "400" && response.get("content").is_none() {
            response["content"] = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        }
        if ["429", "503"].contains(&status.as_str()) && path != "/readyz" {
            response["headers"] = json!({ "Retry-After": {
                "description": "Seconds to wait before trying again",
                "schema": { "type": "integer", "minimum": 0 },
            } });
        }
    }
}

fn complete_parameter(parameter: &mut Value, config: &ServerConfig) {
    let name = parameter["name"].as_str().unwrap_or_default().to_owned();
    let schema = &mut parameter["schema"];
    // What is optional is left out; there is no null in a URL or a header.
    if let Some(types) = schema["type"].as_array() {
        let only = types.iter().find(|kind| *kind != "null").cloned();
        schema["type"] = only.unwrap_or_default();
    }
    match &*name {
        "limit" => schema["maximum"] = json!(config.page_max),
        "wait" => schema["maximum"] = json!(config.wait_max.as_secs()),
        "cursor" => schema["pattern"] = json!(cursor::PATTERN),
        "state" => {
            // A comma separates states.
            schema["items"] =
                json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^,]+$" });
            schema["maxItems"] = json!(50);
        }
        "phase" => schema["maxItems"] = json!(50),
        "tags" => {
            schema["items"] = json!({ "type": "string", "minLength": 1, "maxLength": request::TAG_MAX });
        }
        "expires" => *schema = json!({ "anyOf": [moment(), seconds()] }),
        "heartbeat" => schema["enum"] = json!(["comment", "event"]),
        "ids" => schema["pattern"] = json!("^[^,]+(,[^,]+){0,99}$"),
        "after" => schema["maximum"] = json!(i64::MAX),
        // A header without content says nothing.
        "Last-Event-ID" => {
            *schema = json!({ "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": i64::MAX },
                { "type": "string", "maxLength": 0 },
            ] });
        }
        "id" => schema["minLength"] = json!(1),
        "command" => schema["enum"] = json!(workers::COMMANDS),
        "Idempotency-Key" => schema["pattern"] = json!("^[!-~]+$"),
        _ => {}
    }
}

fn complete_task_request(schema: &mut Value) {
    schema["not"] = json!({ "anyOf": [
        both("countdown", "number", "eta", "string"),
        both("task_id", "string", "idempotency_key", "string"),
    ] });
    let properties = &mut schema["properties"];
    properties["task"]["not"] = json!({ "const": WEBHOOK_TASK });
    properties["expires"] = json!({
        "description": properties["expires"]["description"],
        "oneOf": [{ "type": "null" }, moment(), seconds()],
    });
    properties["tags"]["items"] = json!({ "type": "string", "minLength": 1, "maxLength": request::TAG_MAX });
    let mut reserved: Vec<&str> = celeriac::canvas::RESERVED_HEADERS.to_vec();
    reserved.push("tags");
    properties["headers"]["propertyNames"] =
        json!({ "not": { "anyOf": [{ "enum": reserved }, { "pattern": "^celeriac_" }] } });
    properties["webhook"]["pattern"] = json!(
        "^https?://([a-z0-9]+(-[a-z0-9]+)*\\.)*[a-z][a-z0-9]*(:[1-9][0-9]{0,3})?(/[A-Za-z0-9/._~-]*)?$"
    );
}

/// An object with two fields, neither of them null.
fn both(one: &str, one_type: &str, other: &str, other_type: &str) -> Value {
    let mut properties = Map::new();
    properties.insert(one.to_owned(), json!({ "type": one_type }));
    properties.insert(other.to_owned(), json!({ "type": other_type }));
    json!({ "required": [one, other], "properties": properties })
}

fn moment() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn seconds() -> Value {
    json!({ "type": "number", "minimum": 0, "maximum": 3_155_760_000_u64 })
}

fn name_schema() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 255 })
}
