//! Options of `celery worker` that have no meaning of their own here.

use clap::Args;

/// Options of `celery worker` that say how, of what is done here in a way of its own; each is answered with that.
#[derive(Debug, Args)]
pub struct Met {
    #[arg(long, hide = true)]
    prefetch_multiplier: Option<String>,
    #[arg(long, hide = true)]
    disable_prefetch: bool,
    #[arg(short = 'O', long, hide = true)]
    optimization: Option<String>,
    #[arg(short = 'S', long, hide = true)]
    statedb: Option<String>,
    #[arg(long, hide = true)]
    without_heartbeat: bool,
    #[arg(long, hide = true)]
    heartbeat_interval: Option<String>,
}

impl Met {
    /// Those that were given, and what is done instead.
    #[must_use]
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        let prefetch = "a worker never holds more than it has free slots for";
        let heartbeat =
            "whether a worker lives is told from a thread of its own, which costs next to nothing";
        [
            (self.prefetch_multiplier.is_some(), "--prefetch-multiplier", prefetch),
            (self.disable_prefetch, "--disable-prefetch", prefetch),
            (self.optimization.is_some(), "--optimization", prefetch),
            (self.statedb.is_some(), "--statedb", "what is revoked is kept in the store itself"),
            (self.without_heartbeat, "--without-heartbeat", heartbeat),
            (self.heartbeat_interval.is_some(), "--heartbeat-interval", heartbeat),
        ]
        .into_iter()
        .filter_map(|(given, name, why)| given.then_some((name, why)))
        .collect()
    }
}

/// Options of `celery worker` that are refused by name rather than ignored.
#[derive(Debug, Args)]
pub struct Refused {
    #[arg(short = 'D', long, hide = true)]
    detach: bool,
    #[arg(long, hide = true, alias = "discard")]
    purge: bool,
    #[arg(long, hide = true)]
    uid: Option<String>,
    #[arg(long, hide = true)]
    gid: Option<String>,
    #[arg(long, hide = true)]
    umask: Option<String>,
    #[arg(long, hide = true)]
    executable: Option<String>,
}

impl Refused {
    /// The first such option that was given, and why it is refused.
    #[must_use]
    pub fn given(&self) -> Option<(&'static str, &'static str)> {
        let manager = "let your service manager do it";
        [
            (self.detach, "--detach", "let your service manager run it in the background"),
            (self.purge, "--purge", "use `celeriac purge QUEUE` first"),
            (self.uid.is_some(), "--uid", manager),
            (self.gid.is_some(), "--gid", manager),
            (self.umask.is_some(), "--umask", manager),
            (self.executable.is_some(), "--executable", "use --python"),
        ]
        .into_iter()
        .find_map(|(given, name, why)| given.then_some((name, why)))
    }
}
