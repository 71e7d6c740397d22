//! A broker and a backend that are two stores.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Error, Outcome, Result, Transact, Transaction};
use crate::backend::Backend;
use crate::broker::Broker;

/// Orders writes over a broker and a backend that know nothing of each other.
#[derive(Debug)]
pub struct Split {
    broker: Arc<dyn Broker>,
    backend: Arc<dyn Backend>,
}

impl Split {
    /// Over these two.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>, backend: Arc<dyn Backend>) -> Self {
        Self { broker, backend }
    }
}

#[async_trait]
impl Transact for Split {
    async fn commit(&self, _transactions: Vec<Transaction>) -> Result<Vec<Outcome>> {
        let _ = (&self.broker, &self.backend);
        Err(Error::unavailable("commit", "not implemented"))
    }
}
