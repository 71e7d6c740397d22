//! Logs, to stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::Global;
use crate::output::Problem;

/// Starts logging. `RUST_LOG` goes before everything; then `--loglevel`, in Celery's words; then `-v` and `-q`.
pub(crate) fn start(global: &Global, level: Option<&str>) -> Result<(), Problem> {
    let level = match level.map(str::to_lowercase).as_deref() {
        Some("debug") => "debug",
        Some("info") => "info",
        Some("warning" | "warn") => "warn",
        Some("error" | "critical" | "fatal") => "error",
        Some(other) => {
            return Err(Problem::usage(format!("unknown log level {other}"))
                .hint("use debug, info, warning, error or critical"));
        }
        None if global.quiet => "error",
        None => match global.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug",
        },
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if global.json { logs.json().try_init() } else { logs.try_init() };
    // A program that has its own subscriber keeps it.
    drop(started);
    Ok(())
}
