//! What a task says of itself to those who call it by hand: what it is for, and what it takes.

use serde_json::Value;

use super::TaskOptions;

/// What a task says of itself to those who call it by hand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    /// What it does, in a line; may be empty.
    pub summary: String,
    /// The rest of what there is to say; may be empty.
    pub details: String,
    /// Its parameters, in order: those that are taken by position come first.
    pub parameters: Vec<Parameter>,
    /// It takes positional arguments beyond its parameters.
    pub more_args: bool,
    /// It takes named arguments beyond its parameters.
    pub more_kwargs: bool,
    /// Whether a call whose arguments do not fit may be refused before it is sent.
    pub checked: bool,
}

/// A parameter of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// How its argument is given.
    pub kind: ParameterKind,
    /// A call must give it.
    pub required: bool,
    /// What it may be: a JSON Schema that stands by itself, with the default where there is one that JSON can hold.
    pub schema: Value,
    /// Whether all that is accepted fits the schema. Else it is for people alone.
    pub exact: bool,
}

/// How the argument of a parameter is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// By position alone.
    Positional,
    /// By position or by name.
    Either,
    /// By name alone.
    Named,
}

/// A task that others run, of which this program knows more than the name: its options hold for those who send it by name
/// from here.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownTask {
    /// Its name.
    pub name: Box<str>,
    /// Its options.
    pub options: TaskOptions,
    /// What it says of itself.
    pub description: Option<Description>,
}

impl Description {
    /// Of a task in Rust: its documentation, and its parameters with whether they must be given. Their types are not told.
    #[must_use]
    pub fn of_function(documentation: &str, parameters: &[(&str, bool)]) -> Self {
        let (summary, details) = documentation.trim().split_once('\n').unwrap_or((documentation.trim(), ""));
        let parameter = |(name, required): &(&str, bool)| Parameter {
            name: (*name).to_owned(),
            kind: ParameterKind::Either,
            required: *required,
            schema: Value::Object(serde_json::Map::new()),
            exact: true,
        };
        Self {
            summary: summary.trim().to_owned(),
            details: details.trim().to_owned(),
            parameters: parameters.iter().map(parameter).collect(),
            checked: true,
            ..Self::default()
        }
    }

    /// The parameters that are given by position, or may be.
    pub fn positional(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(|parameter| parameter.kind != ParameterKind::Named)
    }
}
