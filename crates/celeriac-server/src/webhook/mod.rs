//! Telling the end of tasks by HTTP.
//!
//! A task that was sent with a webhook has a message written with its end, on the queue
//! [`WEBHOOK_QUEUE`]; [`courier`] is the worker that delivers these. A delivery is a task
//! like any other: it is seen in lists, survives restarts, and is tried again when it fails.
//!
//! # What is sent
//!
//! A POST of JSON: `{"id", "task", "state", "result" | "error", "at", "attempt"}`; a result or error of more than 64 KiB is
//! left out, and `"truncated": true` says so. Its headers:
//!
//! - `Celeriac-Webhook-Id` is the same for every try, so that a receiver can tell what it has had;
//! - `Celeriac-Webhook-Timestamp` is the time of the try, in seconds since 1970: refuse what is older than minutes;
//! - `Celeriac-Webhook-Signature` is `v1=` and the HMAC-SHA256, in hex, under the configured secret, of id, `.`, timestamp,
//!   `.`, body. Compare it in constant time, and before anything is read.
//!
//! # What counts as delivered
//!
//! As with Standard Webhooks: any status of 2xx. 410 says that nobody wants it any more, and ends the delivery. Anything
//! else is tried again, since a receiver in the midst of a deployment answers 404 or 401 as readily as 503; so is no answer
//! at all. There are nine tries over about eight hours, or when `Retry-After` says, up to an hour. Redirects are not
//! followed.
//!
//! # Where it may go
//!
//! Whoever may submit a task chooses the URL, and must not reach through this server what only it can reach. So the URL
//! is `http` or `https` without credentials, and every address that its name has must be a public one, unless
//! [`webhook_private`](ServerConfig::webhook_private) is set. The connection goes to the very addresses that were looked
//! at, so a name that changes its mind changes nothing; proxies of the environment are not used.

mod address;
mod deliver;
mod sign;

use celeriac::client::WEBHOOK_QUEUE;
use celeriac::worker::hostname;
use celeriac::{Celeriac, Worker};
use reqwest::Url;

use crate::config::ServerConfig;

pub use sign::signature;

/// So many deliveries go on at once: receivers that are slow do not hold up the others for long.
const CONCURRENCY: usize = 32;
/// The longest URL, in bytes.
const URL_BYTES_MAX: usize = 2_048;
/// A shorter secret could be guessed.
const SECRET_LENGTH_MIN: usize = 16;

/// The worker that delivers webhooks; run it beside the server.
///
/// # Errors
/// When there is no [`webhook_secret`](ServerConfig::webhook_secret), or one that could be guessed; and when the system's
/// certificates cannot be read.
pub fn courier(app: &Celeriac, config: &ServerConfig) -> celeriac::Result<Worker> {
    let secret = match &config.webhook_secret {
        Some(secret) if secret.len() >= SECRET_LENGTH_MIN => secret,
        Some(_) => {
            return Err(wrong("webhook_secret", &format!("give it at least {SECRET_LENGTH_MIN} characters")));
        }
        None => return Err(wrong("webhook_secret", &NO_SECRET)),
    };
    let courier = deliver::Courier::new(secret, config).map_err(|why| wrong("webhooks", &why))?;
    Ok(app
        .clone()
        .with_extension(courier)
        .register(deliver::deliver)
        .worker()
        .name(format!("webhooks@{}", hostname()))
        .queues([WEBHOOK_QUEUE])
        .concurrency(CONCURRENCY))
}

fn wrong(what: &str, why: &dyn std::fmt::Display) -> celeriac::Error {
    celeriac::Error::Invalid { what: what.to_owned(), why: why.to_string() }
}

const NO_SECRET: &str = "set a webhook secret: webhooks are signed, and without one they are refused";

/// Whether a webhook may go to `url`, as far as can be told without asking for its addresses, which is done at each
/// delivery.
///
/// # Errors
/// Why not, and what would be right.
pub fn check_url(url: &str, config: &ServerConfig) -> Result<(), String> {
    if config.webhook_secret.is_none() {
        return Err(NO_SECRET.to_owned());
    }
    parse(url, config.webhook_private).map(drop)
}

/// Reads a URL that a webhook may go to. What is wrong with it is said without showing it, as it may hold a secret.
fn parse(url: &str, private: bool) -> Result<Url, String> {
    if url.len() > URL_BYTES_MAX {
        return Err(format!("a URL has at most {URL_BYTES_MAX} bytes"));
    }
    let url = Url::parse(url).map_err(|why| format!("not a URL: {why}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("write a URL with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("leave user and password out of the URL; the signature says who sends".to_owned());
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the URL names no host")?;
    if !private && !address::may_be_public(host) {
        return Err("the host is a private address, and webhook_private is not set".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_webhooks_may_go() {
        let config = |private| ServerConfig {
            webhook_secret: Some("secret-0123456789".to_owned()),
            webhook_private: private,
            ..ServerConfig::default()
        };
        for url in ["https://hooks.example/a?b=c", "http://192.0.1.1:8080/", "https://[2600::1]/"] {
            assert_eq!(check_url(url, &config(false)), Ok(()), "{url}");
        }
        let private = [
            "http://127.0.0.1/",
            "http://localhost:8787/api",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/latest/meta-data",
        ];
        for url in private {
            assert!(check_url(url, &config(false)).unwrap_err().contains("private"), "{url}");
            assert_eq!(check_url(url, &config(true)), Ok(()), "{url}");
        }
        let long = format!("https://hooks.example/{}", "x".repeat(URL_BYTES_MAX));
        let wrong = [
            "",
            "hooks.example",
            "ftp://hooks.example/",
            "file:///etc/passwd",
            "https://user:hunter2@hooks.example/",
            "https://hunter2@hooks.example/",
            "http://",
            &long,
        ];
        for url in wrong {
            let why = check_url(url, &config(true)).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
        let unsigned = ServerConfig::default();
        assert!(check_url("https://hooks.example/", &unsigned).unwrap_err().contains("webhook secret"));
    }
}
