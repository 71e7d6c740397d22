//! What a task takes, as the zygote tells it: `python/celeriac/_worker/signature.py` has the other side.

use celeriac::task::{Description, Parameter, ParameterKind};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Told {
    summary: String,
    details: String,
    parameters: Vec<ToldParameter>,
    more_args: bool,
    more_kwargs: bool,
    checked: bool,
}

#[derive(Debug, Deserialize)]
struct ToldParameter {
    name: String,
    kind: Kind,
    required: bool,
    schema: Value,
    #[serde(default)]
    loose: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Positional,
    Either,
    Named,
}

/// Reads it. What is not understood, of another version's say, is left out: the task is then not described.
pub(crate) fn read(task: &str, told: &Value) -> Option<Description> {
    let Told { summary, details, parameters, more_args, more_kwargs, checked } = match Told::deserialize(told)
    {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(task, %error, "the task is not described");
            return None;
        }
    };
    let parameter = |told: ToldParameter| Parameter {
        name: told.name,
        kind: match told.kind {
            Kind::Positional => ParameterKind::Positional,
            Kind::Either => ParameterKind::Either,
            Kind::Named => ParameterKind::Named,
        },
        required: told.required,
        schema: told.schema,
        exact: !told.loose,
    };
    let parameters = parameters.into_iter().map(parameter).collect();
    Some(Description { summary, details, parameters, more_args, more_kwargs, checked })
}
