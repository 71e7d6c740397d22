use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum_core::extract::FromRequestParts;
use http::request::Parts;

use super::closures::{ClosureOutput, Work};
use super::{Background, Error, MissingLayer};
use crate::app::Celeriac;
use crate::canvas::Signature;
use crate::client::CallOptions;
use crate::result::AsyncResult;
use crate::task::Typed;
use crate::worker::{Full, Gate};

/// The background tasks of one request: an extractor, for handlers and for extractors of one's own.
///
/// All that one request hands out share its gate. It may be kept beyond the response; what is added then starts at once.
#[derive(Debug, Clone)]
pub struct BackgroundTasks {
    background: Background,
    gate: Arc<Gate>,
}

impl BackgroundTasks {
    pub(super) fn new(background: Background, gate: Arc<Gate>) -> Self {
        Self { background, gate }
    }

    /// Adds a registered task, which starts after the response. When this returns it is stored, as durably as the store
    /// is set to be; its id is for the response, and its handle is that of any task.
    ///
    /// Canvases are calls as well: of a chain, the first task waits for the response.
    ///
    /// # Errors
    /// [`Error::Send`] when the message cannot be made or stored, [`Error::Full`] when too many tasks wait for responses.
    pub async fn add<T: Typed>(&self, call: Signature<T>) -> Result<AsyncResult<T::Output>, Error> {
        self.add_with(call, CallOptions::default()).await
    }

    /// Adds a registered task, with options that go before those of the call: queue, priority, countdown, idempotency
    /// key, tags …
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub async fn add_with<T: Typed>(
        &self,
        call: Signature<T>,
        options: CallOptions,
    ) -> Result<AsyncResult<T::Output>, Error> {
        let inner = &self.background.inner;
        let result = call
            .apply_noting(&inner.app, options, |messages| {
                let Some(gates) = &inner.gates else { return Ok(()) };
                let ids = messages.iter().map(|message| message.task_id.clone()).collect();
                gates.shut(&self.gate, ids).map_err(|Full { max }| Error::Full { bound: "tasks_max", max })
            })
            .await?;
        inner.tasks_added.fetch_add(1, Ordering::Relaxed);
        Ok(result)
    }

    /// Adds a future that is polled after the response, on the runtime of the background work. The name is for the log:
    /// of its error, of its panic, of its blocking.
    ///
    /// It is not stored, and lost with the process.
    ///
    /// # Errors
    /// [`Error::Full`] when too many wait or run, [`Error::Closed`] after the shutdown has begun.
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> Result<(), Error>
    where
        F: Future<Output: ClosureOutput> + Send + 'static,
    {
        let work = Work::Future(Box::pin(async { future.await.error() }));
        self.background.inner.closures.add(name.into(), Arc::clone(&self.gate), work)
    }

    /// Adds a closure that is called after the response, on a thread of its own, where it may block.
    ///
    /// It is not stored, and lost with the process.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_blocking<F, R>(&self, name: impl Into<Cow<'static, str>>, function: F) -> Result<(), Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: ClosureOutput,
    {
        let work = Work::Blocking(Box::new(|| function().error()));
        self.background.inner.closures.add(name.into(), Arc::clone(&self.gate), work)
    }

    /// The application, for looking at tasks added before.
    #[must_use]
    pub fn app(&self) -> &Celeriac {
        self.background.app()
    }

    pub(super) fn is_of(&self, background: &Background) -> bool {
        self.background.is(background)
    }
}

impl<S: Sync> FromRequestParts<S> for BackgroundTasks {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingLayer> {
        parts.extensions.get::<Self>().cloned().ok_or(MissingLayer)
    }
}
