//! Requests that web pages make: which origins may, and which never.
//!
//! With tokens a page of another origin can do no harm, since browsers add no token of their own. Without tokens being
//! able to reach the server is all it takes, and every page on the internet can make a browser on this machine send
//! something to a loopback address. So an open server answers only under names that mean this machine, as no name that a
//! page could point here does, and changes nothing for a page that is not its own.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, LOCATION, ORIGIN, RETRY_AFTER,
};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::ServerConfig;
use crate::problem::Problem;
use crate::server::Server;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How long a browser may remember what it was allowed.
const PREFLIGHT_MAX_AGE: std::time::Duration = std::time::Duration::from_secs(600);

/// What lets pages of the configured origins use the API; nothing when none is.
pub(super) fn cors(config: &ServerConfig) -> Option<CorsLayer> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let origins = if config.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(config.cors_origins.iter().filter_map(|origin| {
            let value = HeaderValue::from_str(normal(origin));
            if value.is_err() {
                tracing::error!(%origin, "not an origin, left out of cors_origins");
            }
            value.ok()
        }))
    };
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers([
                ACCEPT,
                AUTHORIZATION,
                CACHE_CONTROL,
                CONTENT_TYPE,
                IDEMPOTENCY_KEY,
                LAST_EVENT_ID,
            ])
            .expose_headers([LOCATION, RETRY_AFTER, IDEMPOTENCY_REPLAYED])
            .max_age(PREFLIGHT_MAX_AGE),
    )
}

/// Browsers send an origin without a slash at its end.
fn normal(origin: &str) -> &str {
    origin.trim_end_matches('/')
}

/// Refuses what an open server must not do for a web page.
pub(super) async fn check(State(server): State<Server>, request: Request, next: Next) -> Response {
    if server.access().is_open()
        && let Some(problem) = refusal(&server, &request)
    {
        return problem.into_response();
    }
    next.run(request).await
}

fn refusal(server: &Server, request: &Request) -> Option<Problem> {
    let header = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or(""));
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| header(HOST));
    if let Some(host) = host
        && !is_ours(host, server.access().hosts())
    {
        let detail = "without a token this server answers only under a loopback name, such as localhost; set a token, \
                      or allow the name";
        return Some(Problem::new(
            StatusCode::FORBIDDEN,
            "foreign-host",
            "not a name of this server",
            detail,
        ));
    }
    if request.method().is_safe() {
        return None;
    }
    let origin = header(ORIGIN);
    let allowed = |origin: &str| {
        let own =
            |host: &str| origin.split_once("://").is_some_and(|(_, place)| place.eq_ignore_ascii_case(host));
        host.is_some_and(own) || server.config().cors_origins.iter().any(|known| normal(known) == origin)
    };
    let foreign = match (origin, header(SEC_FETCH_SITE)) {
        (Some(origin), _) => !allowed(origin),
        (None, Some(site)) => !matches!(site, "same-origin" | "none"),
        // No browser.
        (None, None) => false,
    };
    foreign.then(|| {
        let detail =
            "pages of other origins may change nothing here; set a token, and list the origin for CORS";
        Problem::new(StatusCode::FORBIDDEN, "foreign-origin", "not a page of this server", detail)
    })
}

/// Whether a value of `Host` names this machine, whatever the port.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
        || allowed.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for ours in
            ["localhost", "LOCALHOST:8787", "app.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"]
        {
            assert!(is_ours(ours, &[]), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example:8787",
            "10.0.0.1",
            "[fe80::1]",
            "0.0.0.0",
            "127.0.0.1.evil",
        ] {
            assert!(!is_ours(other, &[]), "{other}");
        }
        assert!(is_ours("Proxy.example:443", &["proxy.example".to_owned()]));
    }
}
