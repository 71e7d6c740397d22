//! Whether this process lives, and whether it can serve. Each turns red for its own cause alone: a store that is away
//! makes no process restart, and workers elsewhere that are busy or missing take no web server out of service. A part that
//! belongs to this process tree, as the worker of `celeriac serve`, has a check of its own.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::server::Server;

/// How a process is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Whether all checks are well.
    ok: bool,
    /// What was checked.
    checks: Vec<HealthCheck>,
}

/// What was checked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthCheck {
    /// What.
    name: String,
    /// Whether it is well.
    ok: bool,
    /// What was found.
    text: String,
}

/// How long the store may take to answer before this process is not ready.
const STORE_TIME: Duration = Duration::from_secs(2);

/// Does this process live?
///
/// The event loop turned to answer this. Neither the store nor any worker is asked.
#[utoipa::path(
    get, path = "/livez", tag = "process", operation_id = "livez",
    responses((status = 200, description = "It lives", body = Health)),
)]
pub(crate) async fn livez() -> Json<Health> {
    // One turn of the loop, behind whatever else is ready to run.
    tokio::task::yield_now().await;
    let checks = vec![check("loop", true, "it turns")];
    Json(Health { ok: true, checks })
}

/// Can this process serve?
///
/// It can when its store answers within two seconds, it is not shutting down, and each part of its own process tree is
/// well, as the worker that `celeriac serve` keeps. How workers elsewhere are plays no part.
#[utoipa::path(
    get, path = "/readyz", tag = "process", operation_id = "readyz",
    responses(
        (status = 200, description = "It can", body = Health),
        (status = 503, description = "It cannot: the checks say why", body = Health),
    ),
)]
pub(crate) async fn readyz(State(server): State<Server>) -> (StatusCode, Json<Health>) {
    let asked = server.app().store().backend.feed_end();
    let store = match tokio::time::timeout(STORE_TIME, asked).await {
        Ok(Ok(_)) => check("store", true, "it answers"),
        Ok(Err(error)) => check("store", false, error.to_string()),
        Err(_) => check("store", false, format!("no answer within {} s", STORE_TIME.as_secs())),
    };
    let serving = if server.draining().is_cancelled() {
        check("shutdown", false, "it is shutting down")
    } else {
        check("shutdown", true, "it is not shutting down")
    };
    let mut checks = vec![store, serving];
    for (name, trouble) in server.parts() {
        checks.push(check(name, trouble.is_none(), trouble.unwrap_or_else(|| "it is well".to_owned())));
    }
    let ok = checks.iter().all(|check| check.ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { ok, checks }))
}

fn check(name: &str, ok: bool, text: impl Into<String>) -> HealthCheck {
    HealthCheck { name: name.to_owned(), ok, text: text.into() }
}
