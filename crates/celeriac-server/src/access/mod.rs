//! Who may do what, and what everybody is held to.
//!
//! [`Access`] knows the tokens. [`guard`] puts routes behind a [`Role`]; [`protect`] goes around the whole router, with
//! what holds for every request, in this order:
//!
//! ```text
//!  conceal ─► headers ─► panics ─► origin ─► CORS ─► identify ─► rate ─► body ─► routes ─► require(role) ─► handler
//! ```
//!
//! Tokens leave the request at the first of these, so that nothing behind it can log them.

mod body;
mod headers;
mod identity;
mod origin;
mod rate;
mod redact;
mod require;
pub mod stream_token;
mod token;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;

use crate::problem::Problem;
use crate::server::Server;

pub use require::{guard, require, require_for_page};
pub use token::{Access, AccessBuilder, Role, TokenError};

/// Puts around a router what holds for every request: tokens out of sight, security headers, no request from pages of
/// other origins, CORS where it is configured, bounds on rate and body, and a problem document in place of a panic.
///
/// Call it once, on the whole. Routes that only some may use are behind [`guard`] in addition.
pub fn protect(router: Router, server: &Server) -> Router {
    let config = server.config();
    let router = router
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(body::Bound::new(config), body::bound))
        .layer(from_fn_with_state(rate::Limiter::new(config), rate::limit))
        .layer(from_fn_with_state(server.clone(), identity::identify));
    let router = match origin::cors(config) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(server.clone(), origin::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(headers::add))
        .layer(from_fn(redact::conceal))
}

fn panicked(_panic: Box<dyn std::any::Any + Send>) -> Response {
    // The panic's own text went to the log by way of the panic hook; it may hold anything, so nobody else sees it.
    tracing::error!("a handler panicked");
    let detail = "see the server's log";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed", detail).into_response()
}
