//! Where settings come from: the command line, then the environment, then the configuration file, then defaults. Each
//! remembers its place, so that a mistake is reported where it was made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use celeriac::Config;
use celeriac::config::Route;
use celeriac_python::FromApp;
use celeriac_server::ServerConfig;
use serde::Deserialize;

use crate::args::Global;
use crate::output::Problem;

/// The settings of one run of the program.
#[derive(Debug)]
pub struct Settings {
    /// Where messages are.
    pub broker: String,
    /// Who said so.
    pub broker_from: String,
    /// Where results are, when elsewhere.
    pub result_backend: Option<String>,
    /// Where messages are, with what the application says beside the address of how to get there.
    pub broker_address: String,
    /// The same for results.
    pub result_address: Option<String>,
    /// The settings of the server.
    pub server: ServerConfig,
    /// The rest.
    pub config: Config,
}

/// `celeriac.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    broker_url: Option<String>,
    result_backend: Option<String>,
    task_default_queue: Option<String>,
    task_default_priority: Option<u8>,
    task_acks_late: Option<bool>,
    task_ignore_result: Option<bool>,
    task_track_started: Option<bool>,
    task_time_limit: Option<f64>,
    task_soft_time_limit: Option<f64>,
    task_max_deliveries: Option<u32>,
    result_expires: Option<f64>,
    result_extended: Option<bool>,
    global_keyprefix: Option<String>,
    result_keyprefix: Option<String>,
    visibility_timeout: Option<f64>,
    worker_concurrency: Option<usize>,
    worker_restore_interval: Option<f64>,
    worker_heartbeat_interval: Option<f64>,
    worker_shutdown_timeout: Option<f64>,
    worker_revoke_grace: Option<f64>,
    worker_unknown_task_delay: Option<f64>,
    worker_unknown_task_timeout: Option<f64>,
    worker_seat_timeout: Option<f64>,
    task_routes: Vec<FileRoute>,
    server: FileServer,
}

/// The table `[server]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileServer {
    accept_unknown_tasks: Option<bool>,
    body_bytes_max: Option<usize>,
    connections_max: Option<usize>,
    cors_origins: Vec<String>,
    queue_bound: Option<u64>,
    rate_burst: Option<u32>,
    /// 0 means no bound.
    rate_limit: Option<u32>,
    request_timeout: Option<f64>,
    stream_lifetime: Option<f64>,
    streams_max: Option<usize>,
    webhook_private: Option<bool>,
    webhook_secret: Option<String>,
    webhook_timeout: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRoute {
    task: String,
    queue: Option<String>,
    priority: Option<u8>,
}

const FILE: &str = "celeriac.toml";

impl Settings {
    /// Gathers the settings. `app` is what a Python application says where nothing nearer does; `environment` looks up a
    /// variable.
    pub fn gather(
        global: &Global,
        base: Config,
        app: &FromApp,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problem> {
        let path = global.config.clone().or_else(|| Path::new(FILE).exists().then(|| PathBuf::from(FILE)));
        let mut file = path.as_deref().map(read).transpose()?.unwrap_or_default();
        let variable = |names: [&'static str; 2]| {
            names
                .into_iter()
                .find_map(|name| environment(name).filter(|value| !value.is_empty()).map(|v| (v, name)))
        };
        let (broker, broker_from) = if let Some(url) = &global.broker {
            (url.clone(), "--broker".to_owned())
        } else if let Some((url, name)) = variable(["CELERIAC_BROKER_URL", "CELERY_BROKER_URL"]) {
            (url, name.to_owned())
        } else if let (Some(url), Some(path)) = (&file.broker_url, &path) {
            (url.clone(), format!("broker_url in {}", path.display()))
        } else if let (Some(url), Some(name)) =
            (app.broker.as_ref().filter(|_| app.names_broker), &global.app)
        {
            (url.clone(), format!("broker_url of {name}"))
        } else {
            (celeriac::app::DEFAULT_URL.to_owned(), "the default".to_owned())
        };
        let result_backend = global
            .result_backend
            .clone()
            .or_else(|| variable(["CELERIAC_RESULT_BACKEND", "CELERY_RESULT_BACKEND"]).map(|(url, _)| url))
            .or_else(|| file.result_backend.clone())
            .or_else(|| app.result_backend.clone());
        let file_server = std::mem::take(&mut file.server);
        let wrong = |(setting, why): Wrong| {
            let path = path.as_deref().unwrap_or_else(|| Path::new(FILE));
            Problem::usage(format!("{}: {setting}: {why}", path.display()))
        };
        let mut server = file_server.over(ServerConfig::default()).map_err(wrong)?;
        if let Some((secret, _)) = variable(["CELERIAC_WEBHOOK_SECRET", "CELERIAC_WEBHOOK_SECRET"]) {
            server.webhook_secret = Some(secret);
        }
        let config = file.over(base).map_err(wrong)?;
        let broker_address = app.broker_address(&broker);
        let broker_from = if broker_address == broker || app.broker_settings().is_empty() {
            broker_from
        } else {
            format!("{broker_from}, with {} of the application", app.broker_settings().join(" and "))
        };
        let result_address = result_backend.as_ref().map(|url| app.result_address(url));
        Ok(Self { broker, broker_from, result_backend, broker_address, result_address, server, config })
    }
}

fn read(path: &Path) -> Result<File, Problem> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Problem::usage(format!("cannot read {}: {error}", path.display())))?;
    // The error has line, column and key.
    toml::from_str(&text).map_err(|error| Problem::usage(format!("{}: {error}", path.display())))
}

type Wrong = (&'static str, &'static str);

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn duration(name: &'static str, seconds: Option<f64>) -> Result<Option<Duration>, Wrong> {
    let convert = |seconds: f64| {
        Duration::try_from_secs_f64(seconds).map_err(|_| (name, "expected a number of seconds from 0"))
    };
    seconds.map(convert).transpose()
}

impl FileServer {
    fn over(self, mut config: ServerConfig) -> Result<ServerConfig, Wrong> {
        set(&mut config.accept_unknown_tasks, self.accept_unknown_tasks);
        set(&mut config.body_bytes_max, self.body_bytes_max);
        set(&mut config.connections_max, self.connections_max);
        config.cors_origins.extend(self.cors_origins);
        set(&mut config.queue_bound, self.queue_bound);
        set(&mut config.rate_burst, self.rate_burst);
        set(&mut config.rate_limit, self.rate_limit.map(|limit| (limit > 0).then_some(limit)));
        set(&mut config.request_timeout, duration("server.request_timeout", self.request_timeout)?);
        set(&mut config.stream_lifetime, duration("server.stream_lifetime", self.stream_lifetime)?);
        set(&mut config.streams_max, self.streams_max);
        set(&mut config.webhook_private, self.webhook_private);
        set(&mut config.webhook_secret, self.webhook_secret.map(Some));
        set(&mut config.webhook_timeout, duration("server.webhook_timeout", self.webhook_timeout)?);
        if config.connections_max == 0 {
            return Err(("server.connections_max", "expected at least 1"));
        }
        Ok(config)
    }
}

impl File {
    fn over(self, mut config: Config) -> Result<Config, Wrong> {
        set(&mut config.task_default_queue, self.task_default_queue.map(Into::into));
        set(&mut config.task_default_priority, self.task_default_priority);
        set(&mut config.task_acks_late, self.task_acks_late);
        set(&mut config.task_ignore_result, self.task_ignore_result);
        set(&mut config.task_track_started, self.task_track_started);
        set(&mut config.task_max_deliveries, self.task_max_deliveries);
        set(&mut config.result_extended, self.result_extended);
        set(&mut config.global_keyprefix, self.global_keyprefix);
        set(&mut config.result_keyprefix, self.result_keyprefix);
        set(&mut config.worker_concurrency, self.worker_concurrency);
        set(&mut config.task_time_limit, duration("task_time_limit", self.task_time_limit)?.map(Some));
        set(
            &mut config.task_soft_time_limit,
            duration("task_soft_time_limit", self.task_soft_time_limit)?.map(Some),
        );
        set(&mut config.visibility_timeout, duration("visibility_timeout", self.visibility_timeout)?);
        set(
            &mut config.worker_restore_interval,
            duration("worker_restore_interval", self.worker_restore_interval)?,
        );
        set(
            &mut config.worker_heartbeat_interval,
            duration("worker_heartbeat_interval", self.worker_heartbeat_interval)?,
        );
        set(
            &mut config.worker_shutdown_timeout,
            duration("worker_shutdown_timeout", self.worker_shutdown_timeout)?,
        );
        set(&mut config.worker_revoke_grace, duration("worker_revoke_grace", self.worker_revoke_grace)?);
        set(
            &mut config.worker_unknown_task_delay,
            duration("worker_unknown_task_delay", self.worker_unknown_task_delay)?,
        );
        set(
            &mut config.worker_unknown_task_timeout,
            duration("worker_unknown_task_timeout", self.worker_unknown_task_timeout)?,
        );
        set(&mut config.worker_seat_timeout, duration("worker_seat_timeout", self.worker_seat_timeout)?);
        // As Celery's: 0 keeps results for ever.
        let expires = duration("result_expires", self.result_expires)?;
        set(&mut config.result_expires, expires.map(|expires| (!expires.is_zero()).then_some(expires)));
        if config.visibility_timeout < Duration::from_millis(300) {
            return Err(("visibility_timeout", "a lease is renewed at a third of it: at least 0.3 seconds"));
        }
        if config.worker_heartbeat_interval < Duration::from_millis(50) {
            return Err((
                "worker_heartbeat_interval",
                "each beat is a write to the store: at least 0.05 seconds",
            ));
        }
        if config.worker_concurrency == 0 {
            return Err(("worker_concurrency", "expected at least 1"));
        }
        config.task_routes.extend(self.task_routes.into_iter().map(|route| Route {
            pattern: route.task,
            queue: route.queue.map(Into::into),
            priority: route.priority,
        }));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn global(arguments: &[&str]) -> Global {
        let all = ["celeriac"].into_iter().chain(arguments.iter().copied()).chain(["queues"]);
        Cli::try_parse_from(all).expect("a right command line").global
    }

    fn gather(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, Problem> {
        Settings::gather(&global(arguments), Config::default(), &FromApp::default(), |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_nearest_wins_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "broker_url = \"sqlite://of-file.db\"\nvisibility_timeout = 2\n").unwrap();
        let config = ["--config", file.to_str().unwrap()];
        let settings = gather(&config, &[]).unwrap();
        assert_eq!(settings.broker, "sqlite://of-file.db");
        assert!(settings.broker_from.contains("c.toml"));
        assert_eq!(settings.config.visibility_timeout, Duration::from_secs(2));
        let celery = ("CELERY_BROKER_URL", "sqlite://celery.db");
        assert_eq!(gather(&config, &[celery]).unwrap().broker, "sqlite://celery.db");
        let own = ("CELERIAC_BROKER_URL", "sqlite://own.db");
        assert_eq!(gather(&config, &[celery, own]).unwrap().broker_from, "CELERIAC_BROKER_URL");
        let settings = gather(&["-b", "sqlite://flag.db", config[0], config[1]], &[own]).unwrap();
        assert_eq!(settings.broker, "sqlite://flag.db");
    }

    #[test]
    fn mistakes_name_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let check = |content: &str, expected: &[&str]| {
            std::fs::write(&file, content).unwrap();
            let problem = gather(&["--config", file.to_str().unwrap()], &[]).unwrap_err();
            for part in expected {
                assert!(problem.message.contains(part), "{part} in {}", problem.message);
            }
        };
        check("worker_concurency = 3\n", &["c.toml", "line 1", "worker_concurency"]);
        check("\nvisibility_timeout = -1\n", &["c.toml", "visibility_timeout", "seconds"]);
        check("worker_heartbeat_interval = 0\n", &["c.toml", "worker_heartbeat_interval", "0.05 seconds"]);
        check("task_acks_late = 3\n", &["c.toml", "line 1", "boolean"]);
    }

    #[test]
    fn a_python_application_says_what_nothing_nearer_does() {
        let app = FromApp {
            broker: Some("redis://of-app".to_owned()),
            names_broker: true,
            result_backend: Some("redis://of-app/1".to_owned()),
            ..FromApp::default()
        };
        let gather = |arguments: &[&str]| {
            Settings::gather(&global(arguments), Config::default(), &app, |_| None).unwrap()
        };
        let settings = gather(&["-A", "proj"]);
        assert_eq!((&*settings.broker, &*settings.broker_from), ("redis://of-app", "broker_url of proj"));
        assert_eq!(settings.result_backend.as_deref(), Some("redis://of-app/1"));
        assert_eq!(gather(&["-A", "proj", "-b", "redis://flag"]).broker, "redis://flag");
        // One that says nothing itself has Celery's default, which is not its own choice.
        let app = FromApp { broker: Some("amqp://guest@localhost//".to_owned()), ..FromApp::default() };
        let settings = Settings::gather(&global(&["-A", "proj"]), Config::default(), &app, |_| None).unwrap();
        assert_eq!((&*settings.broker, &*settings.broker_from), ("sqlite://celeriac.db", "the default"));
    }
}
