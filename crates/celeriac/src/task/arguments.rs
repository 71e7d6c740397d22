//! Reading a call's arguments as the types of a task's parameters.

use serde::de::DeserializeOwned;

use super::error::TaskError;
use crate::protocol::{Json, JsonMap};

/// The arguments of a call, positional and named, as they came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments {
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: JsonMap,
}

/// Hands out arguments parameter by parameter, as Python binds them: positions first, then names, then defaults. What
/// does not fit is the TypeError that Python would raise, and names the parameter.
#[derive(Debug)]
pub struct ArgumentReader {
    task: &'static str,
    given: usize,
    positional: std::vec::IntoIter<Json>,
    named: JsonMap,
    read: usize,
}

impl ArgumentReader {
    /// Reads `arguments` for `task`.
    #[must_use]
    pub fn new(task: &'static str, arguments: Arguments) -> Self {
        Self {
            task,
            given: arguments.args.len(),
            positional: arguments.args.into_iter(),
            named: arguments.kwargs,
            read: 0,
        }
    }

    /// The value of a parameter that must be given.
    ///
    /// # Errors
    /// When it is absent, given twice, or of another type.
    pub fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, TaskError> {
        match self.next(name)? {
            Some(value) => self.convert(name, &value),
            None => {
                Err(TaskError::type_error(&format!("{}() missing required argument: '{name}'", self.task)))
            }
        }
    }

    /// The value of a parameter, or its default.
    ///
    /// # Errors
    /// When it is given twice, or of another type.
    pub fn optional<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        default: impl FnOnce() -> T,
    ) -> Result<T, TaskError> {
        match self.next(name)? {
            Some(value) => self.convert(name, &value),
            None => Ok(default()),
        }
    }

    /// Checks that nothing is left over.
    ///
    /// # Errors
    /// When there are more positions than parameters, or a name that no parameter has.
    pub fn finish(self) -> Result<(), TaskError> {
        if self.positional.len() > 0 {
            let (task, takes, given) = (self.task, self.read, self.given);
            return Err(TaskError::type_error(&format!(
                "{task}() takes {takes} arguments but {given} were given"
            )));
        }
        match self.named.iter().next() {
            Some((name, _)) => {
                let task = self.task;
                Err(TaskError::type_error(&format!("{task}() got an unexpected keyword argument '{name}'")))
            }
            None => Ok(()),
        }
    }

    fn next(&mut self, name: &'static str) -> Result<Option<Json>, TaskError> {
        self.read += 1;
        let named = self.named.remove(name);
        match self.positional.next() {
            Some(_) if named.is_some() => {
                let task = self.task;
                Err(TaskError::type_error(&format!("{task}() got multiple values for argument '{name}'")))
            }
            Some(value) => Ok(Some(value)),
            None => Ok(named),
        }
    }

    fn convert<T: DeserializeOwned>(&self, name: &'static str, value: &Json) -> Result<T, TaskError> {
        value.to().map_err(|why| TaskError::type_error(&format!("{}() argument '{name}': {why}", self.task)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(args: &[&str], kwargs: &[(&str, &str)]) -> ArgumentReader {
        let json = |text: &&str| Json::parse(text).expect("a JSON literal");
        let arguments = Arguments {
            args: args.iter().map(json).collect(),
            kwargs: kwargs.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect(),
        };
        ArgumentReader::new("add", arguments)
    }

    fn message(error: &TaskError) -> String {
        error.exception().exc_message[0].to::<String>().expect("a string")
    }

    #[test]
    fn positions_names_and_defaults() {
        let mut reader = arguments(&["1"], &[("y", "2")]);
        assert_eq!(reader.required::<i32>("x").unwrap(), 1);
        assert_eq!(reader.required::<i32>("y").unwrap(), 2);
        assert_eq!(reader.optional("z", || 9).unwrap(), 9);
        reader.finish().unwrap();
    }

    #[test]
    fn misfits_name_the_parameter() {
        let mut reader = arguments(&["\"one\""], &[]);
        assert!(message(&reader.required::<i32>("x").unwrap_err()).starts_with("add() argument 'x': "));
        let mut reader = arguments(&[], &[]);
        assert_eq!(
            message(&reader.required::<i32>("x").unwrap_err()),
            "add() missing required argument: 'x'"
        );
        let mut reader = arguments(&["1"], &[("x", "2")]);
        assert_eq!(
            message(&reader.required::<i32>("x").unwrap_err()),
            "add() got multiple values for argument 'x'"
        );
        let reader = arguments(&["1"], &[]);
        assert_eq!(message(&reader.finish().unwrap_err()), "add() takes 0 arguments but 1 were given");
        let reader = arguments(&[], &[("w", "2")]);
        assert_eq!(message(&reader.finish().unwrap_err()), "add() got an unexpected keyword argument 'w'");
    }
}
