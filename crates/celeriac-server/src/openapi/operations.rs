//! Each task that is known as an operation of its own: `POST /api/v1/call/proj.add`, with what the task says of itself.
//!
//! They are the operation of the general path with another name and body, and stand in its place; what they have in common
//! stands in the document once.

use std::collections::HashSet;

use celeriac::task::{Description, Parameter, ParameterKind, Registry};
use serde_json::{Map, Value, json};

use crate::arguments::takes_list;
use crate::escape::segment;
use crate::input::NAME_MAX;

/// The general path.
pub(super) const PATH: &str = "/api/v1/call/{task}";

const TAG: &str = "your tasks";
const DESCRIPTION: &str =
    "The tasks of the application. Others that a worker runs are called in the same way, by their names";
/// More of them than this, and a page of them is of use to nobody.
const OPERATIONS_MAX: usize = 2_000;
/// Tasks of the queue's own: Celery's are made for canvases, and every program `celeriac` has the demonstration's.
const OWN: [&str; 3] = ["celery.", "celeriac.demo.", "celeriac.webhook"];

/// Adds the tasks to the document.
pub(super) fn add(document: &mut Value, registry: &Registry) {
    let mut names: Vec<&str> =
        registry.names().map(|name| -> &str { name }).chain(registry.known_names()).collect();
    names.retain(|name| can_be_called(name));
    names.sort_unstable();
    names.dedup();
    if names.len() > OPERATIONS_MAX {
        tracing::debug!(
            tasks = names.len(),
            shown = OPERATIONS_MAX,
            "not every task is shown as an operation"
        );
        names.truncate(OPERATIONS_MAX);
    }
    if names.is_empty() {
        return;
    }
    let common = Common::take(document);
    let mut ids = operation_ids(document);
    let Some(paths) = document["paths"].as_object_mut() else { return };
    // Whoever has only the document would hold that it takes anything of any task.
    paths.remove(PATH);
    for name in names {
        let path = PATH.replace("{task}", &segment(name));
        let operation = common.operation(name, registry.description(name), &mut ids);
        paths.insert(path, json!({ "post": operation }));
    }
    document["tags"] = json!([{ "name": TAG, "description": DESCRIPTION }]);
}

fn can_be_called(name: &str) -> bool {
    // A client takes `.` and `..` out of a path, however they are written.
    let is_step = ["", ".", ".."].contains(&name);
    !is_step && name.chars().count() <= NAME_MAX && !OWN.iter().any(|own| name.starts_with(own))
}

fn operation_ids(document: &Value) -> HashSet<String> {
    let paths = document["paths"].as_object().into_iter().flat_map(Map::values);
    let operations = paths.filter_map(Value::as_object).flat_map(Map::values);
    operations.filter_map(|operation| operation["operationId"].as_str().map(str::to_owned)).collect()
}

/// What the operations have in common.
struct Common {
    parameters: Vec<Value>,
    responses: Map<String, Value>,
    security: Value,
}

impl Common {
    /// Puts what the general operation has where others can refer to it.
    fn take(document: &mut Value) -> Self {
        let general = document["paths"][PATH]["post"].clone();
        let mut refer = |kind: &str, name: String, what: &Value| {
            document["components"][kind][&name] = what.clone();
            json!({ "$ref": format!("#/components/{kind}/{name}") })
        };
        let mut parameters = Vec::new();
        for parameter in general["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] != "path" {
                let name = format!("Call.{}", parameter["name"].as_str().unwrap_or_default());
                parameters.push(refer("parameters", name, parameter));
            }
        }
        let mut responses = Map::new();
        for (status, response) in general["responses"].as_object().into_iter().flatten() {
            responses.insert(status.clone(), refer("responses", format!("Call.{status}"), response));
        }
        Self { parameters, responses, security: general["security"].clone() }
    }

    fn operation(&self, name: &str, description: Option<&Description>, ids: &mut HashSet<String>) -> Value {
        let mut operation = json!({
            "tags": [TAG],
            "operationId": operation_id(name, ids),
            "parameters": self.parameters,
            "responses": self.responses,
            "security": self.security,
            "requestBody": body(description),
        });
        let is_checked = description.is_none_or(|description| description.checked);
        let (summary, details) =
            description.map_or(("", ""), |description| (&*description.summary, &*description.details));
        let unchecked = (!is_checked).then_some("Arguments are handed on unchecked.");
        let details: Vec<&str> =
            [details].into_iter().filter(|text| !text.is_empty()).chain(unchecked).collect();
        for (field, text) in [("summary", summary), ("description", &details.join("\n\n"))] {
            if !text.is_empty() {
                operation[field] = json!(text);
            }
        }
        operation
    }
}

/// A name that programs made from the document can have for the call.
fn operation_id(name: &str, ids: &mut HashSet<String>) -> String {
    let word: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let mut id = format!("call_{word}");
    let mut count = 1;
    while !ids.insert(id.clone()) {
        count += 1;
        id = format!("call_{word}_{count}");
    }
    id
}

fn body(description: Option<&Description>) -> Value {
    let Some(description) = description else {
        return json!({
            "description": "The arguments, by name. The task is not described.",
            "content": { "application/json": { "schema": { "type": "object" } } },
        });
    };
    let is_needed = description.checked && description.parameters.iter().any(|parameter| parameter.required);
    let schema = match takes_list(description) {
        true => json!({ "oneOf": [arguments(description), list(description)] }),
        false => arguments(description),
    };
    json!({ "required": is_needed, "content": { "application/json": { "schema": schema } } })
}

/// The arguments of a call as an object.
pub(crate) fn arguments(description: &Description) -> Value {
    let properties: Map<String, Value> = description
        .parameters
        .iter()
        .map(|parameter| (parameter.name.clone(), parameter.schema.clone()))
        .collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if description.checked {
        let required: Vec<&str> =
            required(&description.parameters).map(|parameter| &*parameter.name).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        schema["additionalProperties"] = json!(description.more_kwargs);
    }
    schema
}

/// The same as a list.
fn list(description: &Description) -> Value {
    let items: Vec<&Value> = description.positional().map(|parameter| &parameter.schema).collect();
    let mut schema = json!({ "type": "array" });
    if description.checked {
        let by_position = |parameter: &&Parameter| parameter.kind != ParameterKind::Named;
        schema["minItems"] = json!(required(&description.parameters).filter(by_position).count());
        if !description.more_args {
            schema["maxItems"] = json!(items.len());
        }
    }
    if !items.is_empty() {
        schema["prefixItems"] = json!(items);
    }
    schema
}

fn required(parameters: &[Parameter]) -> impl Iterator<Item = &Parameter> {
    parameters.iter().filter(|parameter| parameter.required)
}
