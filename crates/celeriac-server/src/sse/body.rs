//! The body of a stream: a watcher that is a position, a timer and little else, and so can be had by the ten thousand.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use celeriac::event::{Event, Follow};
use futures_util::{Stream, stream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::frame;
use crate::server::Server;

/// Where frames come from.
pub(super) trait Source: Send + 'static {
    /// Frames that are there at once.
    type Batch: Iterator<Item = Bytes> + Send + 'static;

    /// Waits for the next frames; `None` when nothing follows. Nothing is lost when the call is dropped.
    fn next(&mut self) -> impl Future<Output = celeriac::Result<Option<Self::Batch>>> + Send;

    /// The position that a client has reached who was sent every frame so far.
    fn position(&self) -> u64;
}

impl Source for Follow {
    type Batch = Frames;

    async fn next(&mut self) -> celeriac::Result<Option<Frames>> {
        Ok(Follow::next(self).await?.map(|batch| Frames(batch.into_iter())))
    }

    fn position(&self) -> u64 {
        Follow::position(self)
    }
}

/// The frames of records, encoded once for all watchers.
pub(super) struct Frames(std::vec::IntoIter<Arc<Event>>);

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.next().map(|event| event.form(frame::of_task).clone())
    }
}

/// A place among the streams of a server, given up when dropped.
pub(super) struct Slot {
    server: Server,
}

impl Slot {
    /// A place, if one is free.
    pub(super) fn take(server: &Server) -> Option<Self> {
        let max = server.config().streams_max;
        let more = |open: usize| (open < max).then_some(open + 1);
        let taken = server.streams().fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self { server: server.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.server.streams().fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that sends what `source` has.
pub(super) fn body<S: Source>(source: S, named_heartbeat: bool, slot: Slot) -> Body {
    Body::from_stream(frames(source, named_heartbeat, slot))
}

fn frames<S: Source>(
    source: S,
    named_heartbeat: bool,
    slot: Slot,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let server = &slot.server;
    let config = server.config();
    let now = Instant::now();
    // Streams that began together, as after a restart, do not end together.
    let closes = now + config.stream_lifetime.min(WAIT_MAX).mul_f64(0.9 + 0.1 * fastrand::f64());
    let every = config.stream_heartbeat.clamp(HEARTBEAT_MIN, WAIT_MAX);
    let watcher = Watcher {
        head: Some(frame::head(config.stream_retry.min(WAIT_MAX), source.position())),
        draining: Box::pin(server.draining().clone().cancelled_owned()),
        timer: Box::pin(sleep_until(closes.min(now + every))),
        written: now,
        source,
        batch: None,
        every,
        closes,
        named_heartbeat,
        over: false,
        slot,
    };
    stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((Ok(frame), watcher))
    })
}

/// A setting of zero would keep every watcher busy.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// A setting without end is taken for a year: instants cannot be reckoned with further off.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

struct Watcher<S: Source> {
    head: Option<Bytes>,
    source: S,
    batch: Option<S::Batch>,
    /// Set when it was made and when it fires, and never for a record: writing costs no timer.
    timer: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    written: Instant,
    every: Duration,
    closes: Instant,
    named_heartbeat: bool,
    over: bool,
    slot: Slot,
}

impl<S: Source> Watcher<S> {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        loop {
            if let Some(frame) = self.batch.as_mut().and_then(Iterator::next) {
                return Some(frame);
            }
            self.batch = None;
            if self.over {
                return None;
            }
            // A stream that always has something to send comes to no other arm than the first.
            if self.closes <= Instant::now() || self.slot.server.draining().is_cancelled() {
                return Some(self.close());
            }
            tokio::select! {
                biased;
                next = self.source.next() => match next {
                    Ok(Some(batch)) => {
                        self.batch = Some(batch);
                        self.written = Instant::now();
                    }
                    Ok(None) => self.over = true,
                    Err(error) => {
                        // The client reconnects, and is told by a status what this was.
                        tracing::debug!(%error, "a stream is closed");
                        return Some(self.close());
                    }
                },
                () = self.timer.as_mut() => {
                    let now = Instant::now();
                    let due = self.written + self.every <= now;
                    if due {
                        self.written = now;
                    }
                    let next = self.closes.min(self.written + self.every);
                    self.timer.as_mut().reset(next);
                    if due {
                        return Some(if self.named_heartbeat { frame::HEARTBEAT } else { frame::COMMENT });
                    }
                }
                () = self.draining.as_mut() => return Some(self.close()),
            }
        }
    }

    /// The last frame of a stream that the server closes before its end. Its clients come back spread over time.
    fn close(&mut self) -> Bytes {
        self.over = true;
        let retry = self.slot.server.config().stream_retry.min(WAIT_MAX).mul_f64(1.0 + fastrand::f64());
        frame::farewell(retry, self.source.position())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ServerConfig};
    use celeriac::Celeriac;

    /// Ten thousand of them are to be had without a thought.
    #[tokio::test]
    async fn a_watcher_is_small() {
        let app = Celeriac::connect("memory://").await.unwrap();
        let id = celeriac::signature("t", Vec::new()).delay(&app).await.unwrap().id();
        let server = Server::new(app.clone(), Access::default(), ServerConfig::default());
        let follow = app.follow(&id, None).await.unwrap();
        let slot = Slot::take(&server).unwrap();
        let stream = frames(follow, false, slot);
        let boxed = size_of::<Sleep>() + size_of::<WaitForCancellationFutureOwned>();
        let bytes = size_of_val(&stream) + boxed;
        assert!(bytes < 1024, "{bytes} bytes");
        assert_eq!(server.streams().load(Ordering::Relaxed), 1);
        drop(stream);
        assert_eq!(server.streams().load(Ordering::Relaxed), 0);
    }
}
