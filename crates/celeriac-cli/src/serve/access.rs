//! Who may use the API: tokens from the command line, the environment and a file.

use celeriac_server::Access;

use crate::args::Serve;
use crate::output::Problem;

/// The environment variable with tokens, separated by commas.
pub(super) const TOKEN_VARIABLE: &str = "CELERIAC_TOKEN";

pub(super) fn gather(args: &Serve, environment: impl Fn(&str) -> Option<String>) -> Result<Access, Problem> {
    // What is wrong is said without saying the secret.
    let mut builder = Access::builder();
    for token in &args.token {
        builder = builder.parse(token).map_err(|why| Problem::usage(format!("--token: {why}")))?;
    }
    if let Some(list) = environment(TOKEN_VARIABLE) {
        builder = builder
            .parse_variable(TOKEN_VARIABLE, &list)
            .map_err(|why| Problem::usage(format!("{TOKEN_VARIABLE}: {why}")))?;
    }
    if let Some(path) = &args.token_file {
        builder = builder.parse_file(path).map_err(|why| Problem::usage(format!("--token-file: {why}")))?;
    }
    for host in &args.host {
        builder = builder.host(host);
    }
    Ok(builder.build())
}
