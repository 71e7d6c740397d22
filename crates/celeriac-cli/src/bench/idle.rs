//! The memory of a program that has nothing to do.
//!
//! A worker or server is run from a copy of this program: of pages that it shared with the benchmark only a part would be
//! told as its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use celeriac::Celeriac;
use tokio::process::Command;
use tokio::time::Instant;

use super::pss;
use crate::output::{Exit, Problem};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long it has been idle when its memory is read: by then it has done what a start brings with it.
const IDLE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A copy of this program in `folder`.
pub(super) fn program(folder: &Path) -> Result<PathBuf, Problem> {
    let copy = folder.join("celeriac");
    if !copy.exists() {
        std::fs::copy(std::env::current_exe()?, &copy)?;
    }
    Ok(copy)
}

/// The memory of a worker of this program that waits on the application's queue, in KiB.
pub(super) async fn worker(app: &Celeriac) -> Result<f64, Problem> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(program(folder.path())?);
    command.args(["--quiet", "--broker", app.url(), "worker", "--bench-tasks"]);
    memory_of(app, command).await
}

/// The same of a worker that is a program of its own, and takes the URL of its broker.
pub(super) async fn worker_of_its_own(app: &Celeriac, program: &Path) -> Result<f64, Problem> {
    let mut command = Command::new(program);
    command.arg(app.url()).stdout(Stdio::null());
    memory_of(app, command).await
}

async fn memory_of(app: &Celeriac, mut command: Command) -> Result<f64, Problem> {
    let mut child = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while !app.workers().await?.iter().any(|card| Some(card.pid) == child.id()) {
        if let Some(status) = child.try_wait()? {
            let text = format!("the worker whose memory was to be measured has ended: {status}");
            return Err(Problem::new(Exit::Failed, text));
        }
        if Instant::now() > deadline {
            return Err(Problem::new(Exit::Failed, "a worker should have been there by now"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    tokio::time::sleep(IDLE).await;
    let memory = child.id().map_or(0.0, |id| pss(&id.to_string()));
    child.kill().await?;
    Ok(memory)
}
