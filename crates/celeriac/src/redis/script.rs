//! Lua scripts: each is the basics, the prelude, which has the rules by which messages move, and a body of its own. Those for
//! what is usual do without the rules.

use std::sync::LazyLock;

/// A script, by name for errors.
#[derive(Debug)]
pub(crate) struct Script {
    name: &'static str,
    script: redis::Script,
    text: String,
    repeatable: bool,
}

impl Script {
    /// A script of the rules and `body`.
    pub(super) fn new(name: &'static str, body: &str) -> Self {
        Self::plain(name, &[BASICS, BATCH, PRELUDE, body].concat())
    }

    /// A script of `body` that needs no rules.
    fn usual(name: &'static str, body: &str) -> Self {
        Self::plain(name, &[BASICS, body].concat())
    }

    /// The same of one that knows batches.
    fn usual_of_batches(name: &'static str, body: &str) -> Self {
        Self::plain(name, &[BASICS, BATCH, body].concat())
    }

    /// A script of `text` alone.
    pub(crate) fn plain(name: &'static str, text: &str) -> Self {
        Self { name, script: redis::Script::new(text), text: text.to_owned(), repeatable: false }
    }

    /// Says that nothing is lost when it runs once more because its answer was lost.
    fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }

    /// Whether it may run once more when its answer was lost.
    pub(super) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// What it is called in errors.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn hash(&self) -> &str {
        self.script.get_hash()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

const BASICS: &str = include_str!("lua/basics.lua");
const BATCH: &str = include_str!("lua/batch.lua");
const PRELUDE: &str = include_str!("lua/prelude.lua");

macro_rules! scripts {
    ($($name:ident: $what:literal = $file:literal $(, $how:ident)?;)*) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($what, include_str!($file))$(.$how())?);)*
    };
}

pub(super) static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::usual_of_batches("publish", include_str!("lua/publish.lua")));
pub(super) static PUBLISH_BATCH: LazyLock<Script> =
    LazyLock::new(|| Script::usual_of_batches("publish", include_str!("lua/publish_batch.lua")));
// Where an answer is lost, what was reserved is handed back first: UNHEARD.
pub(super) static TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::usual_of_batches("reserve", include_str!("lua/take.lua")));
pub(super) static SETTLE: LazyLock<Script> =
    LazyLock::new(|| Script::usual("commit", include_str!("lua/settle.lua")));

scripts! {
    COMMIT: "commit" = "lua/commit.lua";
    // Where an answer is lost, what was reserved is handed back first: UNHEARD.
    RESERVE: "reserve" = "lua/reserve.lua";
    UNHEARD: "hand back" = "lua/unheard.lua", repeatable;
    EXTEND: "extend" = "lua/extend.lua", repeatable;
    RESTORE: "restore" = "lua/restore.lua", repeatable;
    REVOKE: "revoke" = "lua/revoke.lua";
    SEEK: "seek" = "lua/seek.lua", repeatable;
    PURGE: "purge" = "lua/purge.lua";
    DEAD: "dead letters" = "lua/dead.lua";
    OBSERVE: "note what others tell" = "lua/observe.lua";
    QUEUES: "queues" = "lua/queues.lua", repeatable;
    LOOK: "look at tasks" = "lua/look.lua", repeatable;
    SWEEP: "sweep" = "lua/sweep.lua", repeatable;
    FEED: "feed" = "lua/feed.lua", repeatable;
}
