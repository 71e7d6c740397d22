//! The command line of celeriac, for the `celeriac` binary and for programs with tasks of their own:
//!
//! ```no_run
//! #[celeriac::task]
//! async fn greet(name: String) -> String {
//!     format!("hello {name}")
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     celeriac_cli::run(celeriac::Celeriac::builder().register(greet))
//! }
//! ```
//!
//! Such a program has every command: `greeter worker`, `greeter call greeter.greet --args '["you"]' --wait`,
//! `greeter queues` … Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 the task or the check failed;
//! 2 usage; 3 the store cannot be reached; 4 not found; 130 interrupted.

pub mod args;
mod bench;
mod commands;
mod demo;
pub mod digest;
mod http;
mod llm;
mod logging;
pub mod output;
mod python;
mod serve;
pub mod settings;
mod signals;

use std::process::ExitCode;

use celeriac::{Builder, Celeriac};
use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::output::{Exit, Output, Problem};
use crate::settings::Settings;

pub use demo::register as demo_tasks;

/// Parses the command line and does what it says, with the tasks registered on `builder`.
#[must_use]
pub fn run(builder: Builder) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return exit(if asked { Exit::Done } else { Exit::Usage });
        }
    };
    let output = Output { json: cli.global.json, quiet: cli.global.quiet };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(dispatch(cli, builder, output));
            // A task's thread that does not return must not keep the program from ending.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(Problem::new(Exit::Failed, format!("cannot start the runtime: {error}"))),
    };
    match done {
        Ok(code) => exit(code),
        Err(problem) => {
            if problem.exit != Exit::Done {
                output.problem(&problem);
            }
            exit(problem.exit)
        }
    }
}

fn exit(code: Exit) -> ExitCode {
    ExitCode::from(code as u8)
}

/// What commands work with.
pub(crate) struct Session {
    pub(crate) app: Celeriac,
    pub(crate) output: Output,
}

async fn dispatch(cli: Cli, builder: Builder, output: Output) -> Result<Exit, Problem> {
    let level = match &cli.command {
        Command::Worker(worker) => worker.options.loglevel.clone(),
        Command::Serve(serve) => serve.worker.loglevel.clone(),
        _ => None,
    };
    logging::start(&cli.global, level.as_deref())?;
    let python = python::load(&cli.global, &cli.command).await?;
    let (mut base, from_app) = match &python {
        Some(python) => python.settings(builder.config_ref().clone())?,
        None => (builder.config_ref().clone(), celeriac_python::FromApp::default()),
    };
    if python.is_some() {
        base.global_keyprefix.clone_from(&from_app.broker_prefix);
        base.result_keyprefix.clone_from(&from_app.result_prefix);
    }
    let settings = Settings::gather(&cli.global, base, &from_app, |name| std::env::var(name).ok())?;
    // These two make stores of their own, or look at one that may not open.
    match cli.command {
        Command::Bench(bench) => return bench::run(&bench, output).await,
        Command::Doctor => return commands::doctor::run(&settings, builder, output).await,
        _ => {}
    }
    let bench_tasks = match &cli.command {
        Command::Worker(worker) => worker.options.bench_tasks,
        Command::Serve(serve) => serve.worker.bench_tasks,
        _ => false,
    };
    let builder = if bench_tasks { bench::register(builder) } else { builder };
    // What a worker knows of its own tasks its pool tells it.
    let builder = match &python {
        Some(python) if python.zygote.is_none() => builder.know(python.manifest.known_tasks()),
        _ => builder,
    };
    let app = connect(builder, &settings).await?;
    let session = Session { app, output };
    match cli.command {
        Command::Serve(serve) => serve::run(session, python, &cli.global, &settings, serve).await,
        Command::Worker(worker) => commands::worker::run(session, python, &settings, worker).await,
        Command::Call(call) => commands::call::run(&session, call).await,
        Command::Result(result) => commands::result::run(&session, &result).await,
        Command::Events(events) => commands::events::run(&session, &events).await,
        Command::Status(status) => commands::status::run(&session, &status).await,
        Command::Inspect(inspect) => commands::inspect::run(&session, inspect).await,
        Command::Control(control) => commands::control::run(&session, control).await,
        Command::Queues => commands::queues::run(&session).await,
        Command::Purge(purge) => commands::purge::run(&session, &purge).await,
        Command::Revoke(revoke) => commands::revoke::run(&session, &revoke).await,
        Command::Dead(dead) => commands::dead::run(&session, &dead).await,
        Command::Demo(demo) => demo::run(session, &demo).await,
        Command::Bench(_) | Command::Doctor => unreachable!("done above"),
    }
}

pub(crate) async fn connect(builder: Builder, settings: &Settings) -> Result<Celeriac, Problem> {
    let mut builder = builder.broker(&settings.broker_address).config(settings.config.clone());
    if let Some(backend) = &settings.result_address {
        builder = builder.result_backend(backend);
    }
    builder.connect().await.map_err(|error| {
        let problem = Problem::from(error);
        let from = &settings.broker_from;
        match problem.exit {
            Exit::Store | Exit::Usage => problem.hint(format!("the store is named by {from}")),
            _ => problem,
        }
    })
}
