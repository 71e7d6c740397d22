//! Stream tokens: what a web page opens the stream of one task with, since `EventSource` sends no headers.
//!
//! A token is `v1.<expiry>.<signature>`: the second it expires at, and an HMAC-SHA256 over task and expiry in base64url,
//! under a key that is derived from the server's tokens. Nothing is stored: nodes with the same tokens honour each
//! other's, a restart changes nothing, and a change of tokens ends all of them. It is good for the events of one task,
//! for minutes, and may be used often in that time, as a reconnecting page does.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::server::Server;

/// A token that opens the stream of one task.
#[derive(Serialize, ToSchema)]
pub struct StreamToken {
    /// The token: give it as `?token=` to the task's events.
    #[schema(example = "v1.1767225900.Zm9yIHRoZSBzdHJlYW0gb2Ygb25lIHRhc2sgYWxvbmU")]
    pub token: String,
    /// For how many seconds it is good.
    #[schema(example = 300)]
    pub expires_in: u64,
}

impl std::fmt::Debug for StreamToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamToken").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Issues a token with which a web page opens the stream of this task.
///
/// It is good for the events of this task alone, and for a few minutes.
#[utoipa::path(
    post,
    path = "/tasks/{id}/stream-token",
    operation_id = "issue_stream_token",
    tag = "streams",
    params(("id" = String, Path, description = "The task's id", min_length = 1)),
    responses(
        (status = 200, description = "A token", body = StreamToken),
        (status = 401, description = "No token, or a wrong one", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many requests", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn issue(State(server): State<Server>, Path(id): Path<String>) -> Response {
    let lifetime = server.config().stream_token_lifetime.as_secs();
    let expiry = now(&server).saturating_add_unsigned(lifetime);
    let signature = URL_SAFE_NO_PAD.encode(signature(&server, &id, expiry));
    let token = StreamToken { token: format!("v1.{expiry}.{signature}"), expires_in: lifetime };
    let mut response = Json(token).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether `token` opens the events of the task.
pub(super) fn check(server: &Server, task: &str, token: &str) -> bool {
    let mut parts = token.split('.');
    let (Some("v1"), Some(expiry), Some(signed), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // A number has one spelling here.
    if !expiry.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let (Ok(expiry), Ok(signed)) = (expiry.parse::<i64>(), URL_SAFE_NO_PAD.decode(signed)) else {
        return false;
    };
    bool::from(signature(server, task, expiry)[..].ct_eq(&signed[..])) && now(server) < expiry
}

/// What is signed names its purpose, so that no other signature under the key could be taken for one of these.
fn signature(server: &Server, task: &str, expiry: i64) -> [u8; 32] {
    server.access().sign(format!("stream\0{task}\0{expiry}").as_bytes())
}

fn now(server: &Server) -> i64 {
    server.app().clock().now().as_second()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use celeriac::Celeriac;
    use celeriac::testing::ManualClock;

    use super::*;
    use crate::access::{Access, Role};
    use crate::config::ServerConfig;

    async fn server(clock: &ManualClock, secret: &str) -> Server {
        let app = Celeriac::builder().broker("memory://").clock(clock.shared()).connect().await.unwrap();
        let access = Access::builder().token(Role::Read, secret).unwrap().build();
        Server::new(app, access, ServerConfig::default())
    }

    fn token(server: &Server, task: &str) -> String {
        let expiry = now(server) + 300;
        format!("v1.{expiry}.{}", URL_SAFE_NO_PAD.encode(signature(server, task, expiry)))
    }

    #[tokio::test]
    async fn a_token_opens_one_task_for_a_while() {
        let clock = ManualClock::new();
        let here = server(&clock, "secret-0123456789").await;
        let token = token(&here, "a");
        assert!(check(&here, "a", &token));
        assert!(
            check(&server(&clock, "secret-0123456789").await, "a", &token),
            "on every node, after a restart"
        );
        assert!(!check(&here, "b", &token), "not another task");
        assert!(!check(&server(&clock, "another-0123456789").await, "a", &token), "not under other tokens");
        clock.advance(Duration::from_secs(299));
        assert!(check(&here, "a", &token));
        clock.advance(Duration::from_secs(1));
        assert!(!check(&here, "a", &token), "it has expired");
    }

    #[tokio::test]
    async fn a_token_that_was_changed_opens_nothing() {
        let clock = ManualClock::new();
        let server = server(&clock, "secret-0123456789").await;
        let token = token(&server, "a");
        let parts: Vec<&str> = token.split('.').collect();
        let later = format!("v1.{}.{}", now(&server) + 100_000, parts[2]);
        let plus = format!("v1.+{}.{}", parts[1], parts[2]);
        for wrong in ["", "v1", "v1..", "v1.9999999999.", &later, &plus, &format!("{token}.x"), &token[1..]] {
            assert!(!check(&server, "a", wrong), "{wrong:?}");
        }
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character of base64 holds bits that mean nothing; a decoder that took them would take another
            // spelling of the same signature.
            assert!(!check(&server, "a", &changed), "{changed}");
        }
    }
}
