//! `celeriac purge`: drops what waits on queues.

use std::io::{IsTerminal, Write};

use celeriac::QueueName;
use serde_json::json;

use crate::Session;
use crate::args::Purge;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: &Purge) -> Result<Exit, Problem> {
    let broker = &session.app.store().broker;
    let waiting: u64 = broker
        .queues()
        .await?
        .iter()
        .filter(|status| args.queues.iter().any(|name| *name == status.queue.as_str()))
        .map(|status| status.ready + status.delayed)
        .sum();
    if !args.force && !confirmed(waiting, &args.queues)? {
        return Err(Problem::usage("nothing was dropped").hint("use --force to purge without being asked"));
    }
    let mut dropped = 0;
    for queue in &args.queues {
        dropped += session.app.purge(&QueueName::from(queue.as_str())).await?;
    }
    session.output.data(format_args!("{dropped} messages dropped"), &json!({ "dropped": dropped }))?;
    Ok(Exit::Done)
}

/// Asks a person; a program is not asked, and has to say `--force`.
fn confirmed(waiting: u64, queues: &[String]) -> Result<bool, Problem> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("drop {waiting} waiting messages of {}? their tasks will never run [y/N] ", queues.join(", "));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
