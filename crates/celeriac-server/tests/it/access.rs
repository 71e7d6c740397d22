//! Who is let in, and what everybody is held to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use celeriac::Celeriac;
use celeriac::testing::ManualClock;
use celeriac_server::access::{guard, protect, stream_token};
use celeriac_server::{Access, Role, Server, ServerConfig};
use futures_util::stream;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::support::{Listening, server};

const READER: &str = "reader-secret-0123456789";
const OPERATOR: &str = "operator-secret-0123456789";
const ADMIN: &str = "admin-secret-0123456789";

fn tokens() -> Access {
    let builder = Access::builder().token(Role::Read, READER).unwrap();
    let builder = builder.token(Role::Operate, OPERATOR).unwrap();
    builder.token(Role::Admin, ADMIN).unwrap().build()
}

async fn echo(body: Bytes) -> String {
    body.len().to_string()
}

/// Routes in the shape of the API's, each behind its role.
fn routes(server: &Server) -> Router {
    let look = Router::new()
        .route("/api/v1/tasks/{id}", get(async || "task"))
        .route("/api/v1/tasks/{id}/events", get(async || "events").post(async || "posted"))
        .route("/api/v1/tasks/{id}/stream-token", post(stream_token::issue))
        .route(
            "/panics",
            get(async || {
                if true {
                    panic!("secret words")
                }
            }),
        )
        .with_state(server.clone());
    let operate = Router::new().route("/operate", post(echo)).route("/seen", get(seen));
    let admin = Router::new().route("/admin", post(async || "admin"));
    guard(look, server, Role::Read)
        .merge(guard(operate, server, Role::Operate))
        .merge(guard(admin, server, Role::Admin))
        .route("/livez", get(async || "alive"))
        .route("/docs/index.html", get(async || "docs"))
}

/// What a handler could tell of a request.
async fn seen(request: Request) -> String {
    tracing::info!(uri = %request.uri(), request = ?request, "seen");
    request.uri().to_string()
}

async fn protected(access: Access, config: ServerConfig) -> Router {
    let server = server(access, config).await;
    protect(routes(&server), &server)
}

fn request(method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header(HOST, "localhost:8787")
}

fn bearing(method: Method, path: &str, token: &str) -> Request {
    request(method, path).header(AUTHORIZATION, format!("Bearer {token}")).body(Body::empty()).unwrap()
}

fn plain(method: Method, path: &str) -> Request {
    request(method, path).body(Body::empty()).unwrap()
}

async fn ask(router: &Router, request: Request) -> Response {
    router.clone().oneshot(request).await.unwrap()
}

async fn status(router: &Router, request: Request) -> u16 {
    ask(router, request).await.status().as_u16()
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The response is a problem document of this kind.
async fn is_problem(response: Response, status: u16, kind: &str) {
    assert_eq!(response.status().as_u16(), status, "{kind}");
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(problem["type"], format!("/problems/{kind}"));
    assert_eq!(problem["status"], status);
}

#[tokio::test]
async fn each_role_has_its_routes() {
    let router = protected(tokens(), ServerConfig::default()).await;
    let cases = [
        (Method::GET, "/api/v1/tasks/a", [200, 200, 200]),
        (Method::GET, "/api/v1/tasks/a/events", [200, 200, 200]),
        (Method::POST, "/operate", [403, 200, 200]),
        (Method::POST, "/admin", [403, 403, 200]),
        (Method::GET, "/livez", [200, 200, 200]),
    ];
    for (method, path, expected) in cases {
        for (token, expected) in [READER, OPERATOR, ADMIN].into_iter().zip(expected) {
            let found = status(&router, bearing(method.clone(), path, token)).await;
            assert_eq!(found, expected, "{method} {path} with {token}");
        }
        let expected = if path == "/livez" { 200 } else { 401 };
        assert_eq!(status(&router, plain(method.clone(), path)).await, expected, "{path} without a token");
        assert_eq!(status(&router, bearing(method, path, "wrong-0123456789")).await, expected, "{path}");
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let router = protected(tokens(), ServerConfig::default()).await;
    let refused = ask(&router, plain(Method::POST, "/operate")).await;
    assert!(refused.headers()[WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"));
    is_problem(refused, 401, "unauthorized").await;
    is_problem(ask(&router, bearing(Method::POST, "/admin", READER)).await, 403, "forbidden").await;
    for header in [format!("Basic {ADMIN}"), ADMIN.to_owned(), "Bearer ".to_owned(), String::new()] {
        let request = request(Method::POST, "/admin").header(AUTHORIZATION, &header);
        assert_eq!(status(&router, request.body(Body::empty()).unwrap()).await, 401, "{header:?}");
    }
    let query = format!("/operate?token={ADMIN}");
    assert_eq!(status(&router, plain(Method::POST, &query)).await, 401, "not in the query");
    let query = format!("/api/v1/tasks/a/events?token={ADMIN}");
    assert_eq!(status(&router, plain(Method::GET, &query)).await, 401, "nor for a stream");
}

#[tokio::test]
async fn a_stream_token_opens_the_events_of_its_task() {
    let clock = ManualClock::new();
    let app = Celeriac::builder().broker("memory://").clock(clock.shared()).connect().await.unwrap();
    let server = Server::new(app, tokens(), ServerConfig::default());
    let router = protect(routes(&server), &server);
    let issue = async |path: &str| {
        let response = ask(&router, bearing(Method::POST, path, READER)).await;
        assert_eq!(response.headers()["cache-control"], "no-store");
        let issued: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(issued["expires_in"], 300);
        issued["token"].as_str().unwrap().to_owned()
    };
    let token = issue("/api/v1/tasks/a/stream-token").await;
    let check = async |method: Method, path: &str, expected: u16| {
        let path = format!("{path}?after=3&token={token}");
        assert_eq!(status(&router, plain(method, &path)).await, expected, "{path}");
    };
    check(Method::GET, "/api/v1/tasks/a/events", 200).await;
    check(Method::GET, "/api/v1/tasks/b/events", 401).await;
    check(Method::POST, "/api/v1/tasks/a/events", 401).await;
    check(Method::GET, "/api/v1/tasks/a", 401).await;
    check(Method::POST, "/api/v1/tasks/a/stream-token", 401).await;
    check(Method::POST, "/operate", 401).await;
    let as_bearer = bearing(Method::GET, "/api/v1/tasks/a/events", &token);
    assert_eq!(status(&router, as_bearer).await, 401, "it is not a token for everything");
    assert_eq!(
        status(&router, plain(Method::POST, "/api/v1/tasks/a/stream-token")).await,
        401,
        "issued to those who have one"
    );
    // An id is what the path means, not how it is spelt.
    let odd = issue("/api/v1/tasks/x%2Fy%20z/stream-token").await;
    let path = format!("/api/v1/tasks/x%2fy%20z/events?token={odd}");
    assert_eq!(status(&router, plain(Method::GET, &path)).await, 200);

    clock.advance(Duration::from_secs(300));
    check(Method::GET, "/api/v1/tasks/a/events", 401).await;

    // Mounted in another application, with nothing around it.
    let token = issue("/api/v1/tasks/a/stream-token").await;
    let mounted = Router::new().nest("/jobs", routes(&server));
    let path = format!("/jobs/api/v1/tasks/a/events?token={token}");
    assert_eq!(status(&mounted, plain(Method::GET, &path)).await, 200);
    assert_eq!(status(&mounted, plain(Method::GET, "/jobs/api/v1/tasks/a/events")).await, 401);
    assert_eq!(status(&mounted, bearing(Method::POST, "/jobs/admin", ADMIN)).await, 200);
}

#[tokio::test(start_paused = true)]
async fn each_client_has_its_rate() {
    let mut config = ServerConfig::default();
    (config.rate_limit, config.rate_burst) = (Some(1), 1);
    let router = protected(tokens(), config).await;
    let from = |address: &str, token: Option<&str>| {
        let mut request = match token {
            Some(token) => bearing(Method::GET, "/api/v1/tasks/a", token),
            None => plain(Method::GET, "/livez"),
        };
        let peer: SocketAddr = address.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    };
    let one = "192.0.2.1:1000";
    for _ in 0..2 {
        assert_eq!(status(&router, from(one, None)).await, 200);
    }
    let refused = ask(&router, from("192.0.2.1:2000", None)).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    is_problem(refused, 429, "rate-limit").await;
    assert_eq!(status(&router, from("192.0.2.2:1000", None)).await, 200, "another machine");
    for _ in 0..2 {
        assert_eq!(status(&router, from(one, Some(READER))).await, 200, "a token has a share of its own");
    }
    assert_eq!(status(&router, from("192.0.2.3:1", Some(READER))).await, 429, "wherever it comes from");
    assert_eq!(status(&router, from(one, Some(ADMIN))).await, 200);
    assert_eq!(status(&router, from(one, Some("wrong-0123456789"))).await, 429, "guesses are the machine's");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(status(&router, from(one, None)).await, 200);
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_whether_they_tell_their_length_or_not() {
    let mut config = ServerConfig::default();
    config.body_bytes_max = 3 << 20;
    config.rate_limit = None;
    let stall = config.stall_timeout;
    let router = protected(Access::open(), config).await;
    let whole = |bytes: usize| request(Method::POST, "/operate").body(Body::from(vec![0; bytes])).unwrap();
    let chunked = |chunks: usize| {
        let chunks = (0..chunks).map(|_| Ok::<_, Infallible>(Bytes::from(vec![0; 1 << 20])));
        request(Method::POST, "/operate").body(Body::from_stream(stream::iter(chunks))).unwrap()
    };
    assert_eq!(text(ask(&router, whole(3 << 20)).await).await, (3 << 20).to_string());
    assert_eq!(text(ask(&router, chunked(3)).await).await, (3 << 20).to_string());
    is_problem(ask(&router, whole((3 << 20) + 1)).await, 413, "body-too-large").await;
    is_problem(ask(&router, chunked(4)).await, 413, "body-too-large").await;

    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"x")) });
    let never = futures_util::StreamExt::chain(first, stream::pending());
    let slow = request(Method::POST, "/operate").body(Body::from_stream(never)).unwrap();
    let began = tokio::time::Instant::now();
    is_problem(ask(&router, slow).await, 408, "body-timeout").await;
    assert_eq!(began.elapsed().as_secs(), stall.as_secs());
}

#[tokio::test]
async fn an_open_server_answers_under_names_of_this_machine_only() {
    let open = protected(Access::open(), ServerConfig::default()).await;
    let guarded = protected(tokens(), ServerConfig::default()).await;
    let named = protected(Access::builder().host("queue.example").build(), ServerConfig::default()).await;
    let at = |host: &str| Request::builder().uri("/livez").header(HOST, host).body(Body::empty()).unwrap();
    for host in ["localhost:8787", "127.0.0.1:8787", "[::1]:8787"] {
        assert_eq!(status(&open, at(host)).await, 200, "{host}");
    }
    // A name that was made to mean 127.0.0.1 after its page was loaded.
    is_problem(ask(&open, at("rebound.example:8787")).await, 403, "foreign-host").await;
    assert_eq!(status(&named, at("queue.example")).await, 200);
    assert_eq!(status(&named, at("other.example")).await, 403);
    assert_eq!(status(&guarded, at("queue.example")).await, 200, "with a token a name is no matter");
}

#[tokio::test]
async fn pages_of_other_origins_change_nothing_on_an_open_server() {
    let mut config = ServerConfig::default();
    config.cors_origins = vec!["https://app.example/".to_owned()];
    let open = protected(Access::open(), config.clone()).await;
    let guarded = protected(tokens(), config).await;
    let check = async |router: &Router, headers: &[(&str, &str)], expected: u16| {
        let mut builder = request(Method::POST, "/operate");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        assert_eq!(status(router, builder.body(Body::empty()).unwrap()).await, expected, "{headers:?}");
    };
    check(&open, &[], 200).await;
    check(&open, &[("origin", "http://localhost:8787")], 200).await;
    check(&open, &[("origin", "http://localhost:8787"), ("sec-fetch-site", "same-origin")], 200).await;
    check(&open, &[("sec-fetch-site", "none")], 200).await;
    check(&open, &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")], 200).await;
    check(&open, &[("origin", "https://evil.example")], 403).await;
    check(&open, &[("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")], 403).await;
    check(&open, &[("origin", "null")], 403).await;
    check(&open, &[("sec-fetch-site", "cross-site")], 403).await;
    check(&open, &[("sec-fetch-site", "same-site")], 403).await;
    let bearer = format!("Bearer {OPERATOR}");
    check(&guarded, &[("origin", "https://evil.example"), ("authorization", &bearer)], 200).await;
    let read = request(Method::GET, "/livez").header(ORIGIN, "https://evil.example");
    let read = ask(&open, read.body(Body::empty()).unwrap()).await;
    assert_eq!(read.status(), 200, "it may ask, and cannot read the answer");
    assert!(!read.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn cors_is_for_the_origins_that_are_named() {
    let preflight = |origin: &str| {
        let request = request(Method::OPTIONS, "/operate").header(ORIGIN, origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization").body(Body::empty()).unwrap()
    };
    let off = protected(tokens(), ServerConfig::default()).await;
    let answer = ask(&off, preflight("https://app.example")).await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));

    let mut config = ServerConfig::default();
    config.cors_origins = vec!["https://app.example".to_owned()];
    let on = protected(tokens(), config).await;
    let answer = ask(&on, preflight("https://app.example")).await;
    assert_eq!(answer.status(), 200, "asked without a token");
    let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_lowercase();
    assert_eq!(header(answer.headers(), "access-control-allow-origin"), "https://app.example");
    assert!(header(answer.headers(), "access-control-allow-headers").contains("authorization"));
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));
    let answer = ask(&on, preflight("https://evil.example")).await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));

    let refused = request(Method::POST, "/operate").header(ORIGIN, "https://app.example");
    let refused = ask(&on, refused.body(Body::empty()).unwrap()).await;
    assert_eq!(refused.status(), 401);
    assert_eq!(header(refused.headers(), "access-control-allow-origin"), "https://app.example");
    let exposed = header(refused.headers(), "access-control-expose-headers");
    for name in ["location", "retry-after", "idempotency-replayed"] {
        assert!(exposed.contains(name), "{exposed}");
    }
}

#[tokio::test]
async fn every_response_has_its_security_headers() {
    let router = protected(tokens(), ServerConfig::default()).await;
    for path in ["/livez", "/no/such/route", "/api/v1/tasks/a"] {
        let response = ask(&router, plain(Method::GET, path)).await;
        let headers = response.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(
            headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'",
            "{path}"
        );
    }
    let docs = ask(&router, plain(Method::GET, "/docs/index.html")).await;
    let policy = docs.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'self';") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
}

#[tokio::test]
async fn a_panic_is_a_problem_that_tells_nothing() {
    let router = protected(Access::open(), ServerConfig::default()).await;
    let response = ask(&router, plain(Method::GET, "/panics")).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let body = text(response).await;
    assert!(body.contains("/problems/internal") && !body.contains("secret words"), "{body}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    // The runtime of this test has one thread, so this is where all of it is logged.
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = server(tokens(), ServerConfig::default()).await;
    tracing::info!(?server, "the server");
    let listening = Listening::start(&server, protect(routes(&server), &server)).await;
    let secrets = [OPERATOR, READER, "wrong-secret-0123456789", "v1.1.stream-secret"];
    let paths = ["/seen?a=1&token={}", "/api/v1/tasks/a/events?token={}&b=2", "/nowhere?token={}"];
    for secret in secrets {
        for path in paths {
            let path = path.replace("{}", secret);
            let mut connection = listening.connect().await;
            connection
                .send(&format!(
                    "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\n\
                     connection: close\r\n\r\n"
                ))
                .await;
            connection.read_to_end().await;
            let mut connection = listening.connect().await;
            connection
                .send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
                .await;
            connection.read_to_end().await;
        }
    }
    // Something that is no HTTP at all.
    let mut connection = listening.connect().await;
    connection.send(&format!("NONSENSE {OPERATOR} \r\n\r\n")).await;
    connection.read_to_end().await;
    listening.stopped().await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("/seen?a=1") && log.contains("/api/v1/tasks/a/events?b=2"), "{log}");
    assert!(log.contains("Sensitive"), "the handler has shown the header");
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
}
