//! What goes where: data to stdout, everything else to stderr, hints after errors, and the exit code.

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The task failed, or the check did.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The store cannot be reached or opened.
    Store = 3,
    /// There is no such thing.
    NotFound = 4,
    /// Interrupted.
    Interrupted = 130,
}

/// An error with how the program ends for it, and what the user can do.
#[derive(Debug)]
pub struct Problem {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), hint: None }
    }

    /// A mistake on the command line or in the configuration.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl From<celeriac::Error> for Problem {
    fn from(error: celeriac::Error) -> Self {
        use celeriac::Error;
        let exit = match &error {
            Error::Store(_) => Exit::Store,
            Error::UnknownTask(_) => Exit::NotFound,
            Error::UnknownScheme { .. } | Error::Invalid { .. } | Error::Canvas(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, causes(&error))
    }
}

impl From<celeriac::store::Error> for Problem {
    fn from(error: celeriac::store::Error) -> Self {
        Self::new(Exit::Store, causes(&error))
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        // Whoever reads our output has gone: that is their way of saying "enough".
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Done } else { Exit::Failed };
        Self::new(exit, error)
    }
}

/// An error and its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Where a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Data is JSON.
    pub json: bool,
    /// Notes are left out.
    pub quiet: bool,
}

impl Output {
    /// Prints one datum: `text` for people, `json` for programs.
    pub fn data(&self, text: impl fmt::Display, json: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{json}")?;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()
    }

    /// Prints rows: a table for people, a document a row for programs.
    pub fn table(&self, header: &[&str], rows: &[Vec<Value>]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            for row in rows {
                let object: serde_json::Map<_, _> =
                    header.iter().map(|name| (*name).to_owned()).zip(row.iter().cloned()).collect();
                writeln!(out, "{}", Value::Object(object))?;
            }
            return out.flush();
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(header);
        for row in rows {
            table.add_row(row.iter().map(cell));
        }
        for line in table.to_string().lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        out.flush()
    }

    /// Says something to the person.
    pub fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Says what went wrong.
    pub fn problem(&self, problem: &Problem) {
        eprintln!("error: {}", problem.message);
        if let Some(hint) = &problem.hint {
            eprintln!("hint: {hint}");
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
