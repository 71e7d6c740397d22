//! Routes that only some may use.

use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use super::identity::{self, Identity};
use super::redact::{self, Presented};
use super::stream_token;
use super::token::Role;
use crate::problem::Problem;
use crate::server::Server;

/// Puts the routes of `router` so far behind a role. It must have some.
pub fn guard<S: Clone + Send + Sync + 'static>(router: Router<S>, server: &Server, role: Role) -> Router<S> {
    router.route_layer(from_fn_with_state((server.clone(), role), require))
}

/// Lets a request pass whose token has the role: 401 without a token or with a wrong one, 403 with a lesser role. The
/// stream of a task's events opens to a [stream token](stream_token) for that task as well, given as `?token=`.
///
/// For use as a route layer: `from_fn_with_state((server, Role::Read), access::require)`; [`guard`] is that.
pub async fn require(State((server, role)): State<(Server, Role)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let task = stream_of(&mut parts).await;
    let mut request = Request::from_parts(parts, body);
    // Where the routes are mounted in another application nothing has done so before.
    redact::hide(&mut request);
    let identity = request.extensions().get().copied().unwrap_or_else(|| identity::of(&server, &request));
    let refused = match identity {
        Identity::Everybody => None,
        Identity::Holder { role: held, .. } if held >= role => None,
        Identity::Holder { role: held, .. } => Some(forbidden(held, role)),
        Identity::Wrong => Some(unauthorized("no such token")),
        Identity::Nobody => match (request.extensions().get::<Presented>(), task) {
            (None, _) => Some(unauthorized("send a token: Authorization: Bearer TOKEN")),
            (Some(_), None) => Some(unauthorized(
                "?token= opens the events of a task alone; send Authorization: Bearer TOKEN",
            )),
            (Some(Presented(token)), Some(task)) => match stream_token::check(&server, &task, token) {
                true => None,
                false => Some(unauthorized(
                    "the stream token is not one for this task, or has expired; ask for another",
                )),
            },
        },
    };
    match refused {
        None => next.run(request).await,
        Some(problem) => problem.into_response(),
    }
}

/// Lets a request for a page pass whose token may read: as [`require`], and browsers are asked for the token, which they
/// send as a password.
pub async fn require_for_page(State(server): State<Server>, request: Request, next: Next) -> Response {
    let identity = identity::of(&server, &request);
    let known = match identity {
        Identity::Everybody | Identity::Holder { .. } => identity,
        Identity::Wrong | Identity::Nobody => identity::of_browser(&server, &request),
    };
    match known {
        Identity::Everybody | Identity::Holder { .. } => next.run(request).await,
        Identity::Wrong | Identity::Nobody => {
            let mut response =
                unauthorized("give a token: as a bearer token, or in a browser as the password")
                    .into_response();
            let ask = HeaderValue::from_static("Basic realm=\"celeriac: the token is the password\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, ask);
            response
        }
    }
}

/// The task whose stream of events a request is for, wherever the routes are mounted.
async fn stream_of(parts: &mut axum::http::request::Parts) -> Option<String> {
    if parts.method != Method::GET {
        return None;
    }
    let route = MatchedPath::from_request_parts(parts, &()).await.ok()?;
    let mut segments = route.as_str().rsplit('/');
    let (last, id, tasks) = (segments.next()?, segments.next()?, segments.next()?);
    let name = id.strip_prefix('{')?.strip_suffix('}')?.to_owned();
    if last != "events" || tasks != "tasks" {
        return None;
    }
    let parameters = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    parameters.iter().find(|(parameter, _)| *parameter == name).map(|(_, id)| id.to_owned())
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "who are you", detail)
}

fn forbidden(held: Role, role: Role) -> Problem {
    let detail = format!("this takes a token with the role {role}, and yours has the role {held}");
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "your role does not allow this", detail)
}
