//! The `celeriac` binary: the command line with the tasks of the demonstration.

/// See `Cargo.toml` for what it brings.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    celeriac_cli::run(celeriac_cli::demo_tasks(celeriac::Celeriac::builder()))
}
