//! What all handlers share.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use celeriac::{Celeriac, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::api::metrics::Metrics;
use crate::config::ServerConfig;
use crate::floor::{Floor, FloorCache};

/// The state of a server: the application, the settings, who may do what. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    app: Celeriac,
    config: ServerConfig,
    access: Access,
    started: Timestamp,
    draining: CancellationToken,
    streams: AtomicUsize,
    parts: Mutex<Vec<(&'static str, Health)>>,
    floor: FloorCache,
    metrics: Metrics,
}

/// What is wrong with a part of the process tree; `None` while it is well.
pub type Health = watch::Receiver<Option<String>>;

impl Server {
    /// A server of `app`'s tasks, open to those whom `access` lets in.
    #[must_use]
    pub fn new(app: Celeriac, access: Access, config: ServerConfig) -> Self {
        let started = app.clock().now();
        Self {
            inner: Arc::new(Inner {
                app,
                config,
                access,
                started,
                draining: CancellationToken::new(),
                streams: AtomicUsize::new(0),
                parts: Mutex::default(),
                floor: FloorCache::default(),
                metrics: Metrics::default(),
            }),
        }
    }

    /// The application.
    #[must_use]
    pub fn app(&self) -> &Celeriac {
        &self.inner.app
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    /// Who may do what.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.inner.access
    }

    /// When it started.
    #[must_use]
    pub fn started(&self) -> Timestamp {
        self.inner.started
    }

    /// Cancelled when the server shuts down: streams end then, so that their clients reconnect elsewhere.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    /// Counts a part of the process tree, as the worker beside the server, among what `/readyz` answers for.
    pub fn watch(&self, name: &'static str, health: Health) {
        self.inner.parts.lock().unwrap_or_else(PoisonError::into_inner).push((name, health));
    }

    /// What is wrong with each part now.
    pub(crate) fn parts(&self) -> Vec<(&'static str, Option<String>)> {
        let parts = self.inner.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, health)| (*name, health.borrow().clone())).collect()
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> &AtomicUsize {
        &self.inner.streams
    }

    /// The workers and queues, as they stood a second ago at most.
    pub(crate) async fn floor(&self) -> celeriac::store::Result<Arc<Floor>> {
        self.inner.floor.get(self.app().store()).await
    }

    /// What keeps the picture of workers and queues.
    pub(crate) fn floor_cache(&self) -> &FloorCache {
        &self.inner.floor
    }

    /// What is counted of requests.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}
