//! The application: registry, store and settings in one handle that is cheap to clone.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::task::{KnownTask, Registry, Task, TaskFunction};

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
    extensions: Extensions,
    tails: Arc<crate::event::Tails>,
}

/// Values of an application's own, one of each type.
#[derive(Clone, Default)]
struct Extensions(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What they hold is not ours to show.
        write!(f, "{} extensions", self.0.len())
    }
}

/// Builds a [`Celeriac`].
#[derive(Default)]
pub struct Builder {
    broker: Option<String>,
    result_backend: Option<String>,
    store: Option<Store>,
    config: Config,
    clock: Option<SharedClock>,
    registry: Registry,
    extensions: Extensions,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("broker", &self.broker.as_deref().map(redacted))
            .field("result_backend", &self.result_backend.as_deref().map(redacted))
            .field("config", &self.config)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl Celeriac {
    /// Opens the store at `url` with default settings: `sqlite://PATH`, `redis://HOST:PORT/DB` (also `rediss://` and
    /// `sentinel://`), or `memory://` for tests.
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

    /// The same application with a value that its tasks find by its type, through
    /// [`Context::app`](crate::Context::app): a client, a pool, a secret. One of the same type is replaced.
    ///
    /// ```
    /// # struct Mailer;
    /// #[celeriac::task]
    /// async fn greet(cx: celeriac::Context, name: String) -> Result<(), String> {
    ///     let mailer = cx.app().extension::<Mailer>().ok_or("no Mailer was given to this worker")?;
    ///     // …
    /// #   drop((mailer, name));
    ///     Ok(())
    /// }
    /// # #[tokio::main]
    /// # async fn main() -> celeriac::Result<()> {
    /// let app = celeriac::Celeriac::connect("memory://").await?.register(greet).with_extension(Mailer);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_extension<T: Any + Send + Sync>(mut self, value: T) -> Self {
        Arc::make_mut(&mut self.inner).extensions.0.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// The value of this type, where one was given.
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let value = self.inner.extensions.0.get(&TypeId::of::<T>())?;
        Arc::clone(value).downcast().ok()
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

    pub(crate) fn tails(&self) -> &Arc<crate::event::Tails> {
        &self.inner.tails
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

    /// Notes what is known of tasks that others run: their options hold for those who send them by name.
    #[must_use]
    pub fn know(mut self, tasks: impl IntoIterator<Item = KnownTask>) -> Self {
        for task in tasks {
            self.registry.know(task);
        }
        self
    }

    /// Adds a value, as [`Celeriac::with_extension`].
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(mut self, value: T) -> Self {
        self.extensions.0.insert(TypeId::of::<T>(), Arc::new(value));
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
            (None, None) => open(&url, &clock, &self.config).await?,
            (None, Some(backend)) if backend == url => open(&url, &clock, &self.config).await?,
            (None, Some(backend)) => {
                let broker = open(&url, &clock, &self.config).await?;
                Store::split(&broker, &open(&backend, &clock, &self.config).await?)
            }
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
                extensions: self.extensions,
                tails: crate::event::Tails::new(),
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

#[cfg_attr(not(feature = "redis"), expect(unused_variables, reason = "no other store is set by it"))]
async fn open(url: &str, clock: &SharedClock, config: &Config) -> Result<Store> {
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
        #[cfg(feature = "redis")]
        Some((scheme, _)) if crate::redis::RedisStore::SCHEMES.contains(&scheme) => {
            let options = crate::redis::RedisOptions {
                global_keyprefix: config.global_keyprefix.clone(),
                result_keyprefix: config.result_keyprefix.clone(),
                result_expires: config.result_expires,
                ..crate::redis::RedisOptions::default()
            };
            Ok(Store::of(crate::redis::RedisStore::connect(url, options, clock.clone()).await?))
        }
        Some((scheme, _)) => Err(Error::UnknownScheme { url: redacted(url), scheme: scheme.to_owned() }),
        None => Err(Error::UnknownScheme { url: redacted(url), scheme: String::new() }),
    }
}

/// The URL of a store as it may be shown: without user, password and what its query says, where a password may stand too.
/// Rather too little is left of it than too much.
#[must_use]
pub fn redacted(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some(("sqlite" | "memory", _)) => return url.to_owned(),
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // A password may hold any of the characters that end an authority, so the last `@` counts.
    let place = rest.rsplit_once('@').map_or_else(|| rest.to_owned(), |(_, place)| format!("***@{place}"));
    match place.find(['?', '&']) {
        Some(end) => format!("{scheme}{}?***", &place[..end]),
        None => format!("{scheme}{place}"),
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
        assert_eq!(redacted("redis://:pa/ss?w@rd@host/0"), "redis://***@host/0");
        assert_eq!(redacted("rediss://host/0?password=secret&x=1"), "rediss://host/0?***");
        assert_eq!(redacted("redis://host/0?user=a@b&password=secret"), "redis://***@b?***");
        assert_eq!(redacted("user:secret@host:6379"), "***@host:6379");
        assert_eq!(redacted("celeriac.db"), "celeriac.db");
    }

    #[tokio::test]
    async fn a_builder_shows_no_credentials() {
        let builder =
            Celeriac::builder().broker("redis://user:secret@host").result_backend("redis://:secret@host");
        let shown = format!("{builder:?}");
        assert!(shown.contains("host") && !shown.contains("secret"), "{shown}");
        let error = builder.connect().await.unwrap_err().to_string();
        assert!(error.contains("host") && !error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn extensions_are_found_by_their_type() {
        let app = Celeriac::connect("memory://").await.unwrap();
        let with = app.clone().with_extension(7_u8).with_extension("text").with_extension(8_u8);
        assert_eq!(with.extension::<u8>().as_deref(), Some(&8));
        assert_eq!(with.extension::<&str>().as_deref(), Some(&"text"));
        assert_eq!(with.extension::<u16>(), None);
        assert_eq!(app.extension::<u8>(), None, "the other handle is as it was");
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
