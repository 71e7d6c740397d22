//! Several errors at once, so that one compilation shows them all.

use quote::ToTokens;
use syn::{Error, Result};

/// The errors found so far.
#[derive(Debug, Default)]
pub(crate) struct Problems(Option<Error>);

impl Problems {
    pub(crate) fn add(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.note::<()>(Err(Error::new_spanned(tokens, message)));
    }

    /// Keeps the error, or hands on the value.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => return Some(value),
            (Err(error), Some(errors)) => errors.combine(error),
            (Err(error), none) => *none = Some(error),
        }
        None
    }

    pub(crate) fn into_result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
