//! What a user of Redis must be allowed to do.
//!
//! Asked for once, when a store is opened: a right that is missing is told then, by its name, and not by the first task that
//! needs it.

use std::sync::LazyLock;

use super::fault;
use super::link::Link;
use super::script::Script;
use super::value::{self, items};
use crate::store::Result;

static RIGHTS: LazyLock<Script> =
    LazyLock::new(|| Script::plain("look at the user's rights", include_str!("lua/rights.lua")));

/// The commands on keys and channels, each in a form that changes nothing of account: `K` is a key of this check's own,
/// which holds a text meanwhile, so that most of these only find it to be of another type.
const COMMANDS: [&str; 47] = [
    "SET K x PX 1000",
    "EXISTS K",
    "GET K",
    "GETBIT K 0",
    "GETRANGE K 0 1",
    "HDEL K x",
    "HEXISTS K x",
    "HGET K x",
    "HGETALL K",
    "HINCRBY K x 1",
    "HLEN K",
    "HMGET K x",
    "HSCAN K 0",
    "HSET K x x",
    "HSETNX K x x",
    "INCR K",
    "LINDEX K 0",
    "LLEN K",
    "LPUSH K x",
    "LRANGE K 0 1",
    "LREM K 1 x",
    "LTRIM K 0 1",
    "MGET K",
    "PEXPIRE K 1000",
    "PUBLISH K x",
    "RPOP K",
    "RPUSH K x",
    "SADD K x",
    "SETBIT K 0 0",
    "SMEMBERS K",
    "SREM K x",
    "TYPE K",
    "XADD K * x x",
    "XDEL K 1-1",
    "XRANGE K - + COUNT 1",
    "XREVRANGE K + - COUNT 1",
    "ZADD K 1 x",
    "ZCARD K",
    "ZCOUNT K 1 2",
    "ZMSCORE K x",
    "ZRANGE K 0 1",
    "ZRANGEBYSCORE K 1 2",
    "ZREM K x",
    "ZREMRANGEBYRANK K 0 1",
    "ZREMRANGEBYSCORE K 1 2",
    "ZSCORE K x",
    "DEL K",
];

/// Checks that the user may do what will be done.
pub(super) async fn check(link: &Link) -> Result<()> {
    // What a script cannot do. None of it changes anything, and what is denied is named by the server.
    let mut others = redis::pipe();
    others.cmd("MULTI").cmd("EXEC");
    others.cmd("SCAN").arg(0).arg("COUNT").arg(1);
    others.cmd("PUBSUB").arg("NUMSUB");
    others.cmd("CLIENT").arg("TRACKING").arg("OFF");
    link.read_all("look at the user's rights", &others).await?;
    let key = link.keys().own("rights");
    let args: Vec<&str> = std::iter::once(&*key).chain(COMMANDS).collect();
    let answer = link.run(&RIGHTS, &args).await?;
    if let Some(key) = value::text(&answer) {
        return Err(fault::locks(key, link.shown()));
    }
    let lacks: Vec<&str> = items(&answer).iter().filter_map(value::text).collect();
    if lacks.is_empty() { Ok(()) } else { Err(fault::lacks(&lacks, link.shown())) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Those that no script can try out.
    const OTHERS: [&str; 12] = [
        "CLIENT",
        "CLUSTER",
        "EVALSHA",
        "EXEC",
        "INFO",
        "MULTI",
        "PING",
        "PSUBSCRIBE",
        "PUBSUB",
        "SCAN",
        "SCRIPT",
        "SUBSCRIBE",
    ];

    fn quoted_after<'t>(text: &'t str, before: &'t str, quote: char) -> impl Iterator<Item = &'t str> {
        let found = text.split(before).skip(1).filter_map(move |rest| rest.split(quote).next());
        found.filter(|name| !name.is_empty() && name.chars().all(|character| character.is_ascii_uppercase()))
    }

    /// A command that the sources use and this list leaves out would be missed in the middle of the night.
    #[test]
    fn every_command_is_checked() {
        let mut used = BTreeSet::new();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/redis");
        for entry in [folder.clone(), folder.join("lua")].iter().flat_map(|folder| folder.read_dir().unwrap())
        {
            let path = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            if path.extension().is_some_and(|extension| extension == "lua") {
                for before in ["call('", "send('"] {
                    used.extend(quoted_after(&text, before, '\'').map(str::to_owned));
                }
            } else {
                used.extend(quoted_after(&text, "cmd(\"", '"').map(str::to_owned));
            }
        }
        assert!(used.len() > 30, "{used:?}");
        // Asked of Sentinels, which have users of their own.
        used.remove("SENTINEL");
        let checked: BTreeSet<&str> =
            COMMANDS.iter().filter_map(|command| command.split(' ').next()).chain(OTHERS).collect();
        let missing: Vec<_> = used.iter().filter(|command| !checked.contains(command.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let documented = include_str!("../../../../docs/redis.md");
        for command in checked {
            assert!(documented.contains(&format!("+{}", command.to_lowercase())), "{command}");
        }
    }
}
