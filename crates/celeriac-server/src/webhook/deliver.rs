//! One delivery: the task that the courier runs.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use celeriac::{Context, Json, Retry, Timestamp};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};

use super::address::{Private, Resolver};
use super::{parse, sign};
use crate::config::ServerConfig;

const ID: &str = "celeriac-webhook-id";
const TIMESTAMP: &str = "celeriac-webhook-timestamp";
const SIGNATURE: &str = "celeriac-webhook-signature";

/// How long after each try the next one comes, in seconds, give or take a fifth: a receiver that was restarted has it
/// soon, and one that is down for a night has it in the morning.
const DELAYS: [u32; 8] = [5, 30, 2 * 60, 10 * 60, 30 * 60, 60 * 60, 2 * 60 * 60, 4 * 60 * 60];
/// A receiver may ask for a try this early, and this late.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// Connections that are kept for the next delivery to the same receiver.
const IDLE_MAX: usize = 4;

/// What deliveries need; an extension of the courier's application.
pub(super) struct Courier {
    client: Client,
    secret: String,
    private: bool,
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").field("private", &self.private).finish_non_exhaustive()
    }
}

impl Courier {
    pub(super) fn new(secret: &str, config: &ServerConfig) -> reqwest::Result<Self> {
        // Fails only when the program has chosen one before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let private = config.webhook_private;
        let client = Client::builder()
            .user_agent(concat!("celeriac/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Resolver { private })
            // Both would lead elsewhere than where was looked.
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(config.webhook_timeout)
            .pool_max_idle_per_host(IDLE_MAX)
            .build()?;
        Ok(Self { client, secret: secret.to_owned(), private })
    }
}

/// Why something was not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undelivered {
    /// No other try would go better.
    #[error("{0}")]
    Never(String),
    /// It is to be tried again.
    #[error("not delivered yet")]
    Yet(#[from] Retry),
}

/// Delivers `told` to `url`, and gives the status that the receiver answered with.
#[celeriac::task(
    name = "celeriac.webhook",
    max_retries = 8,
    autoretry = false,
    acks_late = true,
    ignore_result = true
)]
pub(super) async fn deliver(cx: Context, url: String, told: Json) -> Result<u16, Undelivered> {
    let Some(courier) = cx.app().extension::<Courier>() else {
        return Err(Undelivered::Never("this worker is not a courier: it has no secret".to_owned()));
    };
    let url = parse(&url, courier.private).map_err(Undelivered::Never)?;
    let now = cx.app().clock().now();
    let body = body(&told);
    let signature = sign::signature(&courier.secret, cx.task_id().as_str(), now.as_second(), body.as_bytes());
    let request = courier
        .client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header(ID, cx.task_id().as_str())
        .header(TIMESTAMP, now.as_second())
        .header(SIGNATURE, signature)
        .body(body);
    let again = |why: String, wished: Option<Duration>| {
        let delay = wished.unwrap_or_else(|| delay(cx.retries(), fastrand::f64()));
        Err(Undelivered::Yet(Retry::new().countdown(delay).because(why)))
    };
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if is_private(&error) => return Err(Undelivered::Never(Private.to_string())),
        // The URL may hold a secret, so the error does not keep it.
        Err(error) => return again(causes(&error.without_url()), None),
    };
    match response.status() {
        status if status.is_success() => Ok(status.as_u16()),
        StatusCode::GONE => {
            Err(Undelivered::Never("the receiver answered 410: nobody wants it any more".to_owned()))
        }
        status => again(format!("the receiver answered {status}"), retry_after(response.headers(), now)),
    }
}

/// What is told, as JSON that everybody reads. What Python takes for JSON beyond that, as `NaN`, becomes `null`.
fn body(told: &Json) -> String {
    let strict = serde_json::from_str::<serde::de::IgnoredAny>(told.as_str()).is_ok();
    match (strict, told.to::<serde_json::Value>()) {
        (false, Ok(value)) => value.to_string(),
        _ => told.as_str().to_owned(),
    }
}

/// How long until the next try; `random` is from 0 to 1.
fn delay(retries: u32, random: f64) -> Duration {
    let at = usize::try_from(retries).unwrap_or(usize::MAX).min(DELAYS.len() - 1);
    Duration::from_secs(u64::from(DELAYS[at])).mul_f64(0.8 + 0.4 * random)
}

/// When the receiver wants to be asked again: seconds or a date, within bounds.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wished = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wished.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

fn is_private(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Private>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error with its causes, as reqwest alone says little.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_client_looks_at_addresses_itself() {
        let config = ServerConfig::default();
        let courier = Courier::new("secret-0123456789", &config).unwrap();
        let error = courier.client.get("http://localhost:9/").send().await.unwrap_err();
        assert!(is_private(&error), "{error:?}");
        let courier =
            Courier::new("secret-0123456789", &ServerConfig { webhook_private: true, ..config }).unwrap();
        let error = courier.client.get("http://localhost:9/").send().await.unwrap_err();
        assert!(!is_private(&error), "nobody listens, and that is all: {error:?}");
        assert!(!format!("{courier:?}").contains("secret-"));
    }

    #[test]
    fn tries_are_spread_over_hours() {
        assert_eq!(delay(0, 0.0), Duration::from_secs(4));
        assert_eq!(delay(0, 1.0), Duration::from_secs(6));
        assert_eq!(delay(1_000, 0.5), Duration::from_secs(4 * 60 * 60));
        let all: Duration = (0..8).map(|retries| delay(retries, 0.5)).sum();
        assert_eq!(all.as_secs() / 3600, 7);
    }

    #[test]
    fn receivers_say_when() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let wished = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers, now).map(|wished| wished.as_secs())
        };
        assert_eq!(wished("120"), Some(120));
        assert_eq!(wished("0"), Some(1));
        assert_eq!(wished("99999999999"), Some(3600));
        assert_eq!(wished("Thu, 01 Jan 2026 00:02:00 GMT"), Some(120));
        assert_eq!(wished("Wed, 31 Dec 2025 00:02:00 GMT"), Some(1), "in the past");
        assert_eq!(wished("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn bodies_are_json_for_everybody() {
        let check = |told: &str, expected: &str| assert_eq!(body(&Json::parse(told).unwrap()), expected);
        check("{\"result\": 12345678901234567890123}", "{\"result\": 12345678901234567890123}");
        check("{\"result\": [NaN, 1]}", "{\"result\":[null,1]}");
    }
}
