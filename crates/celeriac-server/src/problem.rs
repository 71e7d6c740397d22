//! Errors as RFC 9457 problem documents.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request was not carried out: RFC 9457.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// Names the kind of problem; a path into the documentation of this server.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "/problems/unknown-task")]
    pub kind: Box<str>,
    /// The kind of problem in words.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// The status code.
    pub status: u16,
    /// What is wrong with this request, and what to do.
    pub detail: String,
    /// Every problem found in the input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Invalid>,
    /// The first position of the log that is still kept, when the one asked for is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// Seconds to wait before trying again.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

/// One thing that is wrong with the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Invalid {
    /// Where: a JSON pointer into the body, or the name of a parameter.
    #[schema(example = "/countdown")]
    pub at: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Problem {
    /// A problem of the kind `/problems/<slug>`.
    #[must_use]
    pub fn new(status: StatusCode, slug: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{slug}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            first: None,
            retry_after: None,
        }
    }

    /// The input is wrong in these ways; nothing was done.
    #[must_use]
    pub fn invalid(errors: Vec<Invalid>) -> Self {
        let detail = match &errors[..] {
            [one] => format!("{}: {}", one.at, one.problem),
            many => format!("{} problems in the input; nothing was done", many.len()),
        };
        let title = "the input is not valid";
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", title, detail) }
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(slug: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, slug, "not found", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"celeriac\""));
        }
        response
    }
}

impl From<celeriac::Error> for Problem {
    fn from(error: celeriac::Error) -> Self {
        use celeriac::Error;
        match error {
            Error::Store(error) => error.into(),
            Error::Invalid { what, why } => Self::invalid(vec![Invalid { at: what, problem: why }]),
            Error::Canvas(error) => {
                Self::invalid(vec![Invalid { at: "signature".to_owned(), problem: error.to_string() }])
            }
            Error::UnknownTask(id) => {
                Self::not_found("unknown-task", format!("no task {id}: never sent, or expired"))
            }
            Error::Trimmed { first, .. } => {
                let title = "the log was trimmed";
                let detail = format!("the position asked for is no longer kept; ask from {first} on");
                Self { first: Some(first), ..Self::new(StatusCode::GONE, "trimmed-log", title, detail) }
            }
            other => {
                tracing::error!(error = %other, "a request failed");
                let title = "the server failed";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, "see the server's log")
            }
        }
    }
}

impl From<celeriac::store::Error> for Problem {
    fn from(error: celeriac::store::Error) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "the store is away");
            let title = "the store cannot be reached";
            let detail = "nothing is known to have been done; try again";
            let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", title, detail);
            return Self { retry_after: Some(1), ..problem };
        }
        tracing::error!(%error, "the store failed");
        let title = "the store failed";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store", title, "see the server's log")
    }
}
