//! Gives each request its gate, and opens it when the response is out or can no longer be.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum_core::BoxError;
use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tower_layer::Layer;
use tower_service::Service;

use super::{Background, BackgroundTasks};
use crate::worker::Gate;

/// Gives requests their [`BackgroundTasks`]. Made by [`Background::layer`].
#[derive(Debug, Clone)]
pub struct BackgroundLayer {
    background: Background,
}

impl BackgroundLayer {
    pub(super) fn new(background: Background) -> Self {
        Self { background }
    }
}

impl<S> Layer<S> for BackgroundLayer {
    type Service = BackgroundService<S>;

    fn layer(&self, inner: S) -> BackgroundService<S> {
        BackgroundService { inner, background: self.background.clone() }
    }
}

/// The service that [`BackgroundLayer`] makes of another.
#[derive(Debug, Clone)]
pub struct BackgroundService<S> {
    inner: S,
    background: Background,
}

impl<S, B, R> Service<Request<B>> for BackgroundService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // With the layer on a router and on one nested in it, the outer response is the one to wait for.
        let outer = request.extensions().get::<BackgroundTasks>();
        let opener = (!outer.is_some_and(|outer| outer.is_of(&self.background))).then(|| {
            let opener = Opener { background: self.background.clone(), gate: Arc::default() };
            let tasks = BackgroundTasks::new(self.background.clone(), Arc::clone(&opener.gate));
            request.extensions_mut().insert(tasks);
            opener
        });
        let responding = self.inner.call(request);
        Box::pin(async move {
            // The opener is dropped, and so the gate opened, also with this future, and by a panic in it.
            let response = responding.await?;
            Ok(response.map(|body| {
                let body = Body::new(body);
                if opener.is_some() { Body::new(Tail { body, opener }) } else { body }
            }))
        })
    }
}

/// Opens a gate when it is dropped.
#[derive(Debug)]
struct Opener {
    background: Background,
    gate: Arc<Gate>,
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.background.open(&self.gate);
    }
}

/// The body of a response whose end, or whose being dropped before it, opens the gate.
#[derive(Debug)]
struct Tail {
    body: Body,
    opener: Option<Opener>,
}

impl http_body::Body for Tail {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum_core::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.opener = None;
        }
        Poll::Ready(frame)
    }

    // A server that knows the size does not ask for the end: it drops the body after the last frame.
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
