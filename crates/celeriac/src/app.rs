//! The application: registry, store and settings in one handle that is cheap to clone.

use std::sync::Arc;

use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::task::{Registry, Task, TaskFunction};

/// An application: its tasks, its store and its settings. Clones share everything.
#[derive(Debug, Clone)]
pub struct Celeriac {
    inner: Arc<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    registry: Registry,
    store: Store,
    config: Config,
    router: crate::canvas::Router,
    clock: SharedClock,
    origin: Arc<str>,
    url: Arc<str>,
}

/// Builds a [`Celeriac`].
#[derive(Debug, Default)]
pub struct Builder {
    broker: Option<String>,
    result_backend: Option<String>,
    store: Option<Store>,
    config: Config,
    clock: Option<SharedClock>,
    registry: Registry,
}

impl Celeriac {
    /// Opens the store at `url` with default settings: `sqlite://PATH`, or `memory://` for tests.
    ///
    /// # Errors
    /// When the scheme is unknown or the store cannot be opened.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder().broker(url).connect().await
    }

    /// Starts building an application.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Adds a task, named as the function that `#[celeriac::task]` was put on: `app.register(digest)`.
    #[must_use]
    pub fn register<Parameters, T: Task>(mut self, _task: impl TaskFunction<Parameters, T>) -> Self {
        Arc::make_mut(&mut self.inner).registry.register::<T>();
        self
    }

    /// The tasks this program can run.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The same application with other settings.
    #[must_use]
    pub fn with_config(mut self, config: Config) -> Self {
        let inner = Arc::make_mut(&mut self.inner);
        inner.router = router(&config);
        inner.config = config;
        self
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }

    /// The URL of the store, without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    pub(crate) fn router(&self) -> &crate::canvas::Router {
        &self.inner.router
    }

    /// Who sends: as Celery's `gen<pid>@<host>`.
    pub(crate) fn origin(&self) -> &str {
        &self.inner.origin
    }
}

impl Builder {
    /// The settings so far.
    #[must_use]
    pub fn config_ref(&self) -> &Config {
        &self.config
    }

    /// Where messages go.
    #[must_use]
    pub fn broker(mut self, url: impl Into<String>) -> Self {
        self.broker = Some(url.into());
        self
    }

    /// Where results go, when not to the broker's store. Results and acknowledgements are then two writes.
    #[must_use]
    pub fn result_backend(mut self, url: impl Into<String>) -> Self {
        self.result_backend = Some(url.into());
        self
    }

    /// A store of one's own instead of a URL.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// The settings.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The clock, for tests.
    #[must_use]
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Adds a task, as [`Celeriac::register`].
    #[must_use]
    pub fn register<Parameters, T: Task>(mut self, _task: impl TaskFunction<Parameters, T>) -> Self {
        self.registry.register::<T>();
        self
    }

    /// Opens the store.
    ///
    /// # Errors
    /// When a scheme is unknown or a store cannot be opened.
    pub async fn connect(self) -> Result<Celeriac> {
        let clock = self.clock.unwrap_or_else(SystemClock::shared);
        let url = self.broker.unwrap_or_else(|| DEFAULT_URL.to_owned());
        let store = match (self.store, self.result_backend) {
            (Some(store), _) => store,
            (None, None) => open(&url, &clock).await?,
            (None, Some(backend)) if backend == url => open(&url, &clock).await?,
            (None, Some(backend)) => Store::split(&open(&url, &clock).await?, &open(&backend, &clock).await?),
        };
        let router = router(&self.config);
        let origin = format!("gen{}@{}", std::process::id(), hostname());
        Ok(Celeriac {
            inner: Arc::new(Inner {
                registry: self.registry,
                store,
                config: self.config,
                router,
                clock,
                origin: Arc::from(origin),
                url: Arc::from(redacted(&url)),
            }),
        })
    }
}

/// The store used when nothing names one.
pub const DEFAULT_URL: &str = "sqlite://celeriac.db";

fn router(config: &Config) -> crate::canvas::Router {
    crate::canvas::Router::new(
        config.task_routes.clone(),
        config.task_default_queue.clone(),
        Some(config.task_default_priority),
    )
}

async fn open(url: &str, clock: &SharedClock) -> Result<Store> {
    match url.split_once("://") {
        Some(("memory", _)) => Ok(Store::of(crate::memory::MemoryStore::new(clock.clone()))),
        #[cfg(feature = "sqlite")]
        Some(("sqlite", path)) => {
            let path = std::path::PathBuf::from(path);
            let clock = clock.clone();
            let open = move || {
                crate::sqlite::SqliteStore::open(path, crate::sqlite::SqliteOptions::default(), clock)
            };
            let opened = tokio::task::spawn_blocking(open).await;
            let store = opened.map_err(|panic| Error::invalid(url, panic))??;
            Ok(Store::of(store))
        }
        Some((scheme, _)) => Err(Error::UnknownScheme { url: redacted(url), scheme: scheme.to_owned() }),
        None => Err(Error::UnknownScheme { url: redacted(url), scheme: String::new() }),
    }
}

/// The URL without user and password.
fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) if scheme != "sqlite" => format!("{scheme}://***@{place}"),
        _ => url.to_owned(),
    }
}

/// The machine's name, as far as a safe library can tell.
pub fn hostname() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    named.map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(redacted("redis://user:secret@host:6379/0"), "redis://***@host:6379/0");
        assert_eq!(redacted("sqlite:///home/a@b/x.db"), "sqlite:///home/a@b/x.db");
    }

    #[tokio::test]
    async fn an_unknown_scheme_is_named() {
        let error = Celeriac::connect("carrier-pigeon://coop").await.unwrap_err();
        assert!(
            matches!(error, Error::UnknownScheme { ref scheme, .. } if scheme == "carrier-pigeon"),
            "{error}"
        );
    }
}
