//! Whether the arguments of a call fit what the task says of itself.
//!
//! Names are checked of every call, as Celery's client does. Values are looked at where the caller has the schema before
//! its eyes, in `POST /call/…`, and only as far as a schema is plain: its type, its choices, the items of a list. What a
//! schema says besides is for people, and the task's own to insist on.

use celeriac::Json;
use celeriac::protocol::JsonMap;
use celeriac::task::{Description, Parameter, ParameterKind};
use serde_json::Value;

use crate::escape::pointer;
use crate::input::{Problems, kind, shown};

/// Arguments as a message has them.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) args: Vec<Json>,
    pub(crate) kwargs: JsonMap,
}

/// Notes which arguments are missing, unknown, or one too many, of a call that has its positional arguments at the pointer
/// `args_at` and the named ones at `kwargs_at`.
pub(crate) fn check_names(
    description: &Description,
    given: &Given,
    (args_at, kwargs_at): (&str, &str),
    problems: &mut Problems,
) {
    if !description.checked {
        return;
    }
    let Given { args, kwargs } = given;
    check_count(description, args, args_at, problems);
    for name in kwargs.keys() {
        let mut places = description.parameters.iter().enumerate();
        let problem = match places.find(|(_, parameter)| parameter.name == *name) {
            Some((_, Parameter { kind: ParameterKind::Named, .. })) => continue,
            Some((index, Parameter { kind: ParameterKind::Either, .. })) if index >= args.len() => continue,
            Some((index, Parameter { kind: ParameterKind::Either, .. })) => {
                format!("given a second time: {args_at}/{index} is the same argument")
            }
            _ if description.more_kwargs => continue,
            Some(_) => "this argument is given by its position, not by name".to_owned(),
            None => unknown(description, name),
        };
        problems.add(format!("{kwargs_at}/{}", pointer(name)), problem);
    }
    for (index, parameter) in description.parameters.iter().enumerate() {
        let by_position = parameter.kind != ParameterKind::Named;
        let by_name = parameter.kind != ParameterKind::Positional;
        let is_given = by_position && index < args.len() || by_name && kwargs.contains_key(&parameter.name);
        if parameter.required && !is_given {
            let at = match parameter.kind {
                ParameterKind::Positional => format!("{args_at}/{index}"),
                _ => format!("{kwargs_at}/{}", pointer(&parameter.name)),
            };
            problems.add(at, MISSING);
        }
    }
}

/// Whether a task takes its arguments as a list, too: some can be given in no other way.
pub(crate) fn takes_list(description: &Description) -> bool {
    let by_position = |parameter: &Parameter| parameter.kind == ParameterKind::Positional;
    let needs_name = |parameter: &Parameter| parameter.kind == ParameterKind::Named && parameter.required;
    (description.more_args || description.parameters.iter().any(by_position))
        && !description.parameters.iter().any(needs_name)
}

/// Reads the arguments of a call whose body is nothing else: an object of them by name, or a list where that has a use.
pub(crate) fn read(description: Option<&Description>, body: Option<&Json>, problems: &mut Problems) -> Given {
    let Some(body) = body else { return by_name(description, JsonMap::new(), problems) };
    if let Ok(entries) = body.entries() {
        return by_name(description, entries, problems);
    }
    match (description.filter(|description| takes_list(description)), body.array_items()) {
        (Some(description), Ok(args)) => by_position(description, args, problems),
        (Some(_), Err(_)) => {
            problems.add("", format!("{} where an object or a list belongs", kind(body)));
            Given::default()
        }
        (None, _) => {
            problems.add("", format!("{} where an object belongs: the arguments by name", kind(body)));
            Given::default()
        }
    }
}

fn by_name(description: Option<&Description>, mut kwargs: JsonMap, problems: &mut Problems) -> Given {
    let Some(description) = description else { return Given { args: Vec::new(), kwargs } };
    if description.checked {
        let find = |name: &str| description.parameters.iter().find(|parameter| parameter.name == name);
        for (name, value) in &kwargs {
            let at = || format!("/{}", pointer(name));
            match find(name) {
                Some(parameter) => check_value(parameter, value, at, problems),
                None if description.more_kwargs => {}
                None => problems.add(at(), unknown(description, name)),
            }
        }
        for parameter in description.parameters.iter().filter(|parameter| parameter.required) {
            if !kwargs.contains_key(&parameter.name) {
                problems.add(format!("/{}", pointer(&parameter.name)), MISSING);
            }
        }
    }
    // Those that have no name in Python are put where they stand there; what is left out before one of them is filled in.
    let alone: Vec<&Parameter> = description
        .parameters
        .iter()
        .filter(|parameter| parameter.kind == ParameterKind::Positional)
        .collect();
    let count =
        alone.iter().rposition(|parameter| kwargs.contains_key(&parameter.name)).map_or(0, |at| at + 1);
    let mut args = Vec::with_capacity(count);
    for parameter in &alone[..count] {
        let default =
            || parameter.schema.get("default").and_then(|value| Json::parse(&value.to_string()).ok());
        match kwargs.remove(&parameter.name).or_else(default) {
            Some(value) => args.push(value),
            None if parameter.required && description.checked => {}
            None => {
                let problem = format!("missing, and {} after it is given", alone[count - 1].name);
                problems.add(format!("/{}", pointer(&parameter.name)), problem);
            }
        }
    }
    Given { args, kwargs }
}

fn by_position(description: &Description, args: Vec<Json>, problems: &mut Problems) -> Given {
    if description.checked {
        check_count(description, &args, "", problems);
        for (index, parameter) in description.positional().enumerate() {
            match args.get(index) {
                Some(value) => check_value(parameter, value, || format!("/{index}"), problems),
                None if parameter.required => {
                    problems.add(format!("/{index}"), format!("missing: {}", parameter.name));
                }
                None => {}
            }
        }
    }
    Given { args, kwargs: JsonMap::new() }
}

const MISSING: &str = "missing: the task cannot be called without it";

fn unknown(description: &Description, name: &str) -> String {
    let names: Vec<&str> = description.parameters.iter().map(|parameter| &*parameter.name).collect();
    let hint = match crate::names::close(name, names.iter().copied()).first() {
        // Any letter is close to any other.
        Some(close) if name.chars().count() > 2 => format!("did you mean {close}?"),
        _ if names.is_empty() => "it takes none by name".to_owned(),
        _ => format!("there are {}", names.join(", ")),
    };
    format!("the task takes no argument of this name; {hint}")
}

fn check_count(description: &Description, args: &[Json], at: &str, problems: &mut Problems) {
    let most = description.positional().count();
    if args.len() > most && !description.more_args {
        problems.add(
            format!("{at}/{most}"),
            format!("{} positional arguments; at most {most} are taken", args.len()),
        );
    }
}

fn check_value(parameter: &Parameter, value: &Json, at: impl Fn() -> String, problems: &mut Problems) {
    if parameter.exact
        && let Some(problem) = misfit(value, &parameter.schema)
    {
        problems.add(at(), problem);
    }
}

/// What keeps a value from fitting a schema, as far as that is looked at here. A schema means no less than what is looked
/// at, so that nothing is found wrong which is not.
fn misfit(value: &Json, schema: &Value) -> Option<String> {
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        if choices.iter().any(|choice| misfit(value, choice).is_none()) {
            return None;
        }
        let types: Option<Vec<&str>> =
            choices.iter().map(|choice| Some(article(choice.get("type")?.as_str()?))).collect();
        return Some(match types {
            Some(types) => format!("{} where {} belongs", kind(value), types.join(" or ")),
            None => format!("{} fits none of what the task takes here", kind(value)),
        });
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        let found = value.to::<Value>().ok();
        if found.is_some_and(|found| !choices.iter().any(|choice| is_same(choice, &found))) {
            let choices: Vec<String> = choices.iter().take(CHOICES_SHOWN).map(Value::to_string).collect();
            return Some(format!("{} is not among {}", shown(value.as_str()), choices.join(", ")));
        }
    }
    let expected = schema.get("type").and_then(Value::as_str)?;
    if !is_of_type(value, expected) {
        // What kombu decodes to a value of another type, such as a date.
        let is_typed = value.entries().is_ok_and(|entries| entries.contains_key("__type__"));
        return (!is_typed).then(|| format!("{} where {} belongs", kind(value), article(expected)));
    }
    let items = schema.get("items").filter(|_| expected == "array")?;
    let values = value.array_items().ok()?;
    values
        .iter()
        .enumerate()
        .find_map(|(index, item)| misfit(item, items).map(|problem| format!("item {index}: {problem}")))
}

const CHOICES_SHOWN: usize = 20;

/// As JSON Schema has it: numbers are the same when their values are.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

fn is_of_type(value: &Json, expected: &str) -> bool {
    match (kind(value), expected) {
        ("a number", "integer") => {
            let text = value.as_str();
            let is_plain = !text.contains(['.', 'e', 'E']);
            // JSON Schema takes 1.0 for an integer.
            is_plain || value.to::<f64>().is_ok_and(|number| number.fract() == 0.0)
        }
        ("a number", "number")
        | ("a text", "string")
        | ("a boolean", "boolean")
        | ("a list", "array")
        | ("an object", "object")
        | ("null", "null") => true,
        (_, known) => !["integer", "number", "string", "boolean", "array", "object", "null"].contains(&known),
    }
}

fn article(kind: &str) -> &str {
    match kind {
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a text",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_fit_plain_schemas() {
        let fits = |value: &str, schema: Value| misfit(&Json::parse(value).unwrap(), &schema).is_none();
        let integer = || json!({ "type": "integer" });
        let maybe = json!({ "anyOf": [integer(), { "type": "null" }], "default": null });
        for (value, schema, expected) in [
            ("1", integer(), true),
            ("1.0", integer(), true),
            ("1e2", integer(), true),
            ("123456789012345678901234567890", integer(), true),
            ("1.5", integer(), false),
            ("true", integer(), false),
            ("\"1\"", integer(), false),
            ("1", json!({ "type": "number" }), true),
            ("\"x\"", json!({ "type": "string", "format": "uuid" }), true),
            ("7", json!({ "type": "string" }), false),
            ("null", maybe.clone(), true),
            ("3", maybe.clone(), true),
            ("\"3\"", maybe, false),
            ("[1, 2]", json!({ "type": "array", "items": integer() }), true),
            ("[1, \"2\"]", json!({ "type": "array", "items": integer() }), false),
            ("[1, \"2\"]", json!({ "type": "array" }), true),
            ("\"red\"", json!({ "enum": ["red", 1] }), true),
            ("1.0", json!({ "enum": ["red", 1] }), true),
            ("\"blue\"", json!({ "enum": ["red", 1] }), false),
            ("{}", json!({}), true),
            ("{}", json!({ "type": "object", "required": ["x"] }), true),
            ("{\"__type__\": \"datetime\", \"__value__\": \"x\"}", json!({ "type": "string" }), true),
            ("{\"x\": 1}", json!({ "type": "string" }), false),
            ("1", json!({ "type": "something new" }), true),
        ] {
            assert_eq!(fits(value, schema.clone()), expected, "{value} {schema}");
        }
    }
}
