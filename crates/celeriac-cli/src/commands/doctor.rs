//! `celeriac doctor`: checks the store and the configuration, and says what to do.

use celeriac::Builder;
use serde_json::json;

use crate::output::{Exit, Output, Problem};
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings, builder: Builder, output: Output) -> Result<Exit, Problem> {
    let mut sound = true;
    let mut say = |well: bool, what: &str, text: String| {
        sound &= well;
        let mark = if well { "ok  " } else { "BAD " };
        output.data(format_args!("{mark}{what}: {text}"), &json!({ "ok": well, "check": what, "text": text }))
    };
    say(true, "version", format!("celeriac {}", env!("CARGO_PKG_VERSION")))?;
    say(true, "configuration", format!("store {} ({})", settings.broker, settings.broker_from))?;
    let app = match crate::connect(builder, settings).await {
        Ok(app) => app,
        Err(problem) => {
            say(false, "store", problem.message.clone())?;
            return Ok(problem.exit);
        }
    };
    for check in app.store().backend.check().await? {
        say(check.well, check.what, check.text)?;
    }
    let now = app.clock().now();
    for queue in app.store().broker.queues().await? {
        let age = queue.oldest.map(|oldest| celeriac::clock::until(oldest, now));
        let old = age.is_some_and(|age| age > OLD);
        let age = age.map_or_else(
            || "nothing waits".to_owned(),
            |age| format!("the oldest waits {} s", age.as_secs()),
        );
        let advice = if old { "; is a worker consuming it? start one: celeriac worker -Q " } else { "" };
        let name = if old { queue.queue.as_str() } else { "" };
        let text = format!(
            "{} ready, {} delayed, {} reserved; {age}{advice}{name}",
            queue.ready, queue.delayed, queue.reserved
        );
        say(!old, &format!("queue {}", queue.queue), text)?;
    }
    let dead = app.store().broker.dead(0, DEAD_SHOWN).await?;
    let text = match dead.len() {
        0 => "none".to_owned(),
        n if n == DEAD_SHOWN => format!("{n} or more; look at them: celeriac dead list"),
        n => format!("{n}; look at them: celeriac dead list"),
    };
    say(dead.is_empty(), "dead letters", text)?;
    Ok(if sound { Exit::Done } else { Exit::Failed })
}

/// A message that nobody takes for so long has nobody to take it.
const OLD: std::time::Duration = std::time::Duration::from_secs(300);
const DEAD_SHOWN: usize = 100;
