//! What Redis said, as an error of stores.

use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use crate::store::Error;

/// Whether the server refused before it did anything, for a reason that passes: it loads its data, it is a replica now,
/// the slot moved. A new connection, which asks again where the master is, may do.
pub(super) fn passes(error: &RedisError) -> bool {
    use ServerErrorKind as Kind;
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            Kind::BusyLoading
                | Kind::MasterDown
                | Kind::ClusterDown
                | Kind::ReadOnly
                | Kind::Moved
                | Kind::Ask
                | Kind::TryAgain
        ),
        // A script of somebody's that runs too long; ours has not begun.
        _ => error.code() == Some("BUSY"),
    }
}

/// Whether the connection is of no use any more.
pub(super) fn breaks(error: &RedisError) -> bool {
    passes(error)
        || error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
}

/// Why a transaction was refused: what the server said of the first of its commands that it did not take.
pub(super) fn cause(error: RedisError) -> RedisError {
    if error.kind() != ErrorKind::Server(ServerErrorKind::ExecAbort) {
        return error;
    }
    let refused = error.clone().into_server_errors();
    refused.and_then(|refused| Some(refused.first()?.1.clone().into())).unwrap_or(error)
}

/// Answers of which none is an error.
pub(super) fn no_error_within(answers: Vec<Value>) -> RedisResult<Vec<Value>> {
    answers.into_iter().map(Value::extract_error).collect()
}

/// The error for who called. `shown` is the server, `what` was being done.
pub(super) fn store_error(error: &RedisError, what: &str, shown: &str) -> Error {
    let text = error.to_string();
    match error.code() {
        Some("OOM") => Error::Full { what: format!("the memory of {shown} (maxmemory)") },
        Some("MISCONF") => Error::Full { what: format!("the disk of {shown}, which cannot save its data") },
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => denied(&text, shown),
        _ if error.kind() == ErrorKind::AuthenticationFailed || denies_in_script(error) => {
            denied(&text, shown)
        }
        _ if text.contains("certificate") || text.contains("Certificate") => distrusted(&text, shown),
        _ if text.contains("WRONGTYPE") => Error::Corrupt {
            what: shown.to_owned(),
            why: format!("a key is of another type than it should be ({what}: {text})"),
        },
        _ => Error::unavailable(format!("{what} ({shown})"), error.clone()),
    }
}

/// Whether a script may not do what it does, which Redis 7.0 says without the name of the command.
pub(super) fn denies_in_script(error: &RedisError) -> bool {
    let text = error.to_string();
    text.contains("The user executing the script") || text.contains("ACL failure in script")
}

fn denied(text: &str, shown: &str) -> Error {
    Error::Open {
        what: shown.to_owned(),
        why: text.to_owned(),
        remedy: "check user and password in the URL, and what the user may do: docs/redis.md has the rules (ACL LIST \
                 shows those of the server)"
            .to_owned(),
    }
}

/// Commands that the user may not have carried out.
pub(super) fn lacks(commands: &[&str], shown: &str) -> Error {
    let allow: Vec<String> = commands.iter().map(|command| format!("+{}", command.to_lowercase())).collect();
    Error::Open {
        what: shown.to_owned(),
        why: format!("the user may not run {}", commands.join(", ")),
        remedy: format!("allow it with ACL SETUSER … {} (docs/redis.md has the whole rule)", allow.join(" ")),
    }
}

/// A key that the user may not touch.
pub(super) fn locks(key: &str, shown: &str) -> Error {
    Error::Open {
        what: shown.to_owned(),
        why: format!("the user may not touch {key}"),
        remedy: "allow the keys and channels of docs/redis.md with ACL SETUSER".to_owned(),
    }
}

fn distrusted(text: &str, shown: &str) -> Error {
    Error::Open {
        what: shown.to_owned(),
        why: format!("one side does not trust the other: {text}"),
        remedy: "name the authority of the server's certificate with ssl_ca_certs=FILE, and a certificate of one's own, \
                 where the server wants one, with ssl_certfile=FILE&ssl_keyfile=FILE"
            .to_owned(),
    }
}

/// An answer that has not the form it should have.
pub(super) fn unexpected(what: &str, shown: &str) -> Error {
    Error::Corrupt { what: shown.to_owned(), why: format!("{what}: the answer has an unexpected form") }
}
