//! The `celeriac` binary: the command line with the tasks of the demonstration.

fn main() -> std::process::ExitCode {
    celeriac_cli::run(celeriac_cli::demo_tasks(celeriac::Celeriac::builder()))
}
