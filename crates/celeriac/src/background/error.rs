use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

/// Why background work was not taken. As a response it is a 503 that says to come again, or a 500; the details are
/// logged and not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is too much of it already.
    #[error("{max} wait already: come again later, or raise `{bound}` where the background work is built")]
    Full {
        /// The setting of [`Builder`](super::Builder).
        bound: &'static str,
        /// Its value.
        max: usize,
    },
    /// The background work has ended, or is ending.
    #[error("the background work is shutting down, no more closures are taken")]
    Closed,
    /// The task could not be sent.
    #[error(transparent)]
    Send(#[from] crate::Error),
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        tracing::error!(error = %self, "background work was not taken");
        let later = match &self {
            Self::Full { .. } | Self::Closed => true,
            Self::Send(crate::Error::Store(error)) => error.is_transient(),
            Self::Send(_) => false,
        };
        if later {
            return text(StatusCode::SERVICE_UNAVAILABLE, "background work is not taken at the moment");
        }
        text(StatusCode::INTERNAL_SERVER_ERROR, "the background task could not be sent")
    }
}

/// A handler takes [`BackgroundTasks`](super::BackgroundTasks), and its router has no layer for them: a 500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the router has no background tasks: add `.layer(background.layer())` after its routes")]
pub struct MissingLayer;

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        tracing::error!(error = %self, "a handler asks for background tasks");
        text(StatusCode::INTERNAL_SERVER_ERROR, &self.to_string())
    }
}

fn text(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}
