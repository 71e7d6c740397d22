//! The routes: one place for what is served and for how it is described.
//!
//! Routes stand in groups by the role they ask for. A group is `prompt` when its requests wait for nothing, and then has a
//! bound on their time; streams, waits and remote control have bounds of their own.

use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::access::{self, Role};
use crate::api::{
    call, dead, groups, messages, metrics, probes, problems, queues, registry, result, retry, revoke,
    schedules, submit, tasks, workers,
};
use crate::input::shown;
use crate::openapi;
use crate::problem::Problem;
use crate::server::Server;
use crate::sse;

/// The prefix of all routes but those about the process itself.
const PREFIX: &str = "/api/v1";

/// Every route of the server, with its description at `/openapi.json` and a browser for that at `/docs`.
pub fn router(server: Server) -> Router {
    let (routes, description) = described(&server);
    let docs = SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", description);
    let docs = Router::from(docs)
        .route_layer(middleware::from_fn_with_state(server.clone(), access::require_for_page));
    // Code that is the same for everybody.
    let script = Router::new().route("/celeriac.js", get(sse::script));
    let routes = routes.merge(docs).merge(script);
    let routes = access::protect(finished(routes, server.clone()), &server);
    // Outermost, so that what is refused is counted, too.
    routes.layer(middleware::from_fn_with_state(server, metrics::observe))
}

/// The routes about tasks alone, to be nested in another application under any path: `/tasks`, `/tasks/{id}`,
/// `/call/{task}` and so on.
/// They ask for tokens when the server has some; what else holds for requests is up to the application.
pub fn embedded(server: Server) -> Router {
    let (routes, _) = task_routes(&server).split_for_parts();
    finished(routes, server)
}

/// The description of every route, as `/openapi.json` has it.
pub fn description(server: &Server) -> serde_json::Value {
    described(server).1
}

fn described(server: &Server) -> (Router<Server>, serde_json::Value) {
    let routes = OpenApiRouter::with_openapi(openapi::base())
        .nest(PREFIX, task_routes(server).merge(other_routes(server)))
        .merge(process_routes(server));
    let (routes, description) = routes.split_for_parts();
    (routes, openapi::complete(&description, server.config(), server.app().registry()))
}

fn task_routes(server: &Server) -> OpenApiRouter<Server> {
    let look = OpenApiRouter::new()
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::get))
        .routes(routes!(groups::get))
        .routes(routes!(access::stream_token::issue));
    let wait = OpenApiRouter::new()
        .routes(routes!(result::get))
        .routes(routes!(messages::meta))
        .routes(routes!(sse::events));
    let act = OpenApiRouter::new()
        .routes(routes!(submit::send))
        .routes(routes!(submit::batch))
        .routes(routes!(call::send))
        .routes(routes!(messages::publish))
        .routes(routes!(groups::save))
        .routes(routes!(groups::delete))
        .routes(routes!(groups::forget))
        .routes(routes!(revoke::one))
        .routes(routes!(revoke::many))
        .routes(routes!(retry::one))
        .routes(routes!(retry::many));
    guarded(prompt(look, server), server, Role::Read).merge(guarded(wait, server, Role::Read)).merge(guarded(
        prompt(act, server),
        server,
        Role::Operate,
    ))
}

fn other_routes(server: &Server) -> OpenApiRouter<Server> {
    let look = OpenApiRouter::new()
        .routes(routes!(workers::list))
        .routes(routes!(queues::list))
        .routes(routes!(dead::list))
        .routes(routes!(registry::list))
        .routes(routes!(schedules::list));
    let wait = OpenApiRouter::new().routes(routes!(sse::feed));
    let act = OpenApiRouter::new().routes(routes!(dead::retry));
    let command = OpenApiRouter::new()
        .routes(routes!(workers::command))
        .routes(routes!(queues::pause))
        .routes(routes!(queues::resume))
        .routes(routes!(queues::purge))
        .routes(routes!(dead::drop_letters));
    guarded(prompt(look, server), server, Role::Read)
        .merge(guarded(wait, server, Role::Read))
        .merge(guarded(prompt(act, server), server, Role::Operate))
        .merge(guarded(prompt(command, server), server, Role::Admin))
}

/// Routes about the process: the probes are open to all, as what asks them has no secrets.
fn process_routes(server: &Server) -> OpenApiRouter<Server> {
    let open = OpenApiRouter::new().routes(routes!(probes::livez)).routes(routes!(probes::readyz));
    let look = OpenApiRouter::new().routes(routes!(metrics::scrape)).routes(routes!(problems::explain));
    open.merge(guarded(prompt(look, server), server, Role::Read))
}

/// Lets in whoever has `role`.
fn guarded(router: OpenApiRouter<Server>, server: &Server, role: Role) -> OpenApiRouter<Server> {
    router.route_layer(middleware::from_fn_with_state((server.clone(), role), access::require))
}

/// Gives up on a request that takes longer than the setting `request_timeout`.
fn prompt(router: OpenApiRouter<Server>, server: &Server) -> OpenApiRouter<Server> {
    router.route_layer(middleware::from_fn_with_state(server.clone(), in_time))
}

async fn in_time(State(server): State<Server>, request: Request, next: Next) -> Response {
    let bound = server.config().request_timeout;
    match tokio::time::timeout(bound, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let title = "the request took too long";
            let detail =
                format!("given up after {} s; it may or may not have been carried out", bound.as_secs_f64());
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "request-timeout", title, detail);
            Problem { retry_after: Some(1), ..problem }.into_response()
        }
    }
}

fn finished(routes: Router<Server>, server: Server) -> Router {
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(server)
}

async fn no_route(uri: Uri) -> Problem {
    let detail = format!("there is no {}; see /openapi.json for what there is", shown(uri.path()));
    Problem::not_found("no-route", detail)
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    let detail = format!(
        "{} is not for {}; the header Allow names what is",
        shown(uri.path()),
        shown(method.as_str())
    );
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "not for this method", detail)
}

#[expect(clippy::needless_pass_by_value, reason = "as the layer hands it over")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let what = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = %what, "a handler panicked");
    let title = "the server failed";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, "see the server's log").into_response()
}
