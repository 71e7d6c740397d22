//! Bounds on the body of a request: how large it may be, and how long a client may send nothing of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use crate::config::ServerConfig;
use crate::problem::Problem;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    bytes_max: usize,
    patience: Duration,
}

impl Bound {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self { bytes_max: config.body_bytes_max, patience: config.stall_timeout }
    }

    fn too_large(self) -> Response {
        let detail = format!("a body has at most {} bytes; pass what is larger by reference", self.bytes_max);
        let title = "the body is too large";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", title, detail).into_response()
    }

    fn too_slow(self) -> Response {
        let detail = format!("nothing of the body came for {:?}", self.patience);
        let title = "the body did not come";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", title, detail).into_response()
    }
}

/// Holds a request to the bounds: by its length where it tells, and else by what comes.
pub(super) async fn bound(State(bound): State<Bound>, request: Request, next: Next) -> Response {
    let hint = request.body().size_hint();
    if hint.lower() > bound.bytes_max as u64 {
        return bound.too_large();
    }
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let broken = Arc::new(AtomicU8::new(NONE));
    let request = request.map(|body| {
        Body::new(Bounded {
            body,
            left: bound.bytes_max,
            patience: bound.patience,
            timer: None,
            broken: Arc::clone(&broken),
        })
    });
    let response = next.run(request).await;
    // A handler sees only that its body ended in an error, and each says so in its own way.
    match broken.load(Ordering::Relaxed) {
        TOO_LARGE => bound.too_large(),
        TOO_SLOW => bound.too_slow(),
        _ => response,
    }
}

const NONE: u8 = 0;
const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

/// A body that ends in an error when it is out of bounds.
struct Bounded {
    body: Body,
    left: usize,
    patience: Duration,
    /// Runs only while the client is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    broken: Arc<AtomicU8>,
}

impl Bounded {
    fn fail<T>(&self, what: u8, why: &'static str) -> Poll<Option<Result<T, axum::Error>>> {
        self.broken.store(what, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(why)))))
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let patience = self.patience;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
            ready!(timer.as_mut().poll(cx));
            return self.fail(TOO_SLOW, "the body did not come");
        };
        self.timer = None;
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Poll::Ready(frame)
            }
            None => self.fail(TOO_LARGE, "the body is too large"),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
