//! Keeps tokens out of all that looks at a request.

use std::fmt;

use axum::extract::Request;
use axum::http::Uri;
use axum::http::header::{AUTHORIZATION, Entry};
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::Response;

/// The name of the parameter that carries a stream token.
const PARAMETER: &str = "token";

/// A stream token that came with a request: an extension of it.
#[derive(Clone)]
pub(super) struct Presented(pub(super) String);

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presented")
    }
}

/// Takes the token out of the request's URI, marks `Authorization` as secret, and logs what is left.
pub(super) async fn conceal(mut request: Request, next: Next) -> Response {
    hide(&mut request);
    let method = request.method().clone();
    let uri = request.uri().clone();
    let response = next.run(request).await;
    tracing::debug!(%method, %uri, status = response.status().as_u16(), "request");
    response
}

pub(super) fn hide(request: &mut Request) {
    if let Entry::Occupied(mut header) = request.headers_mut().entry(AUTHORIZATION) {
        header.iter_mut().for_each(|value| value.set_sensitive(true));
    }
    let (uri, token) = without_token(request.uri());
    if let Some(uri) = uri {
        *request.uri_mut() = uri;
    }
    if let Some(token) = token {
        request.extensions_mut().insert(Presented(token));
    }
}

/// The URI without its token, when it has one, and the token. Of several the first is meant and none is left.
fn without_token(uri: &Uri) -> (Option<Uri>, Option<String>) {
    let Some(query) = uri.query() else { return (None, None) };
    let value = |pair: &str| pair.strip_prefix(PARAMETER)?.strip_prefix('=').map(str::to_owned);
    let Some(token) = query.split('&').find_map(value) else { return (None, None) };
    let rest: Vec<&str> = query.split('&').filter(|pair| value(pair).is_none()).collect();
    let path = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    // What was a path and query without the token is one still.
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    (Uri::from_parts(parts).ok(), Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_leave_the_query() {
        let check = |uri: &str, left: &str, token: Option<&str>| {
            let uri: Uri = uri.parse().unwrap();
            let (without, found) = without_token(&uri);
            assert_eq!(without.unwrap_or(uri).to_string(), left);
            assert_eq!(found.as_deref(), token);
        };
        check("/events?token=abc", "/events", Some("abc"));
        check("/events?after=3&token=abc&limit=1", "/events?after=3&limit=1", Some("abc"));
        check("/events?token=abc&token=def&x", "/events?x", Some("abc"));
        check("http://host/events?token=abc", "http://host/events", Some("abc"));
        check("/events?tokens=abc", "/events?tokens=abc", None);
        check("/events", "/events", None);
    }
}
