//! Channels subscribed to, for as long as somebody listens.
//!
//! ```text
//!   connect ─► subscribe ─► tell `Subscribed` ─► messages … ─┐
//!      ▲                                                     │ lost, or silent to a ping
//!      └──────────────── pause, with jitter ◄────────────────┘
//! ```
//!
//! What is published while the connection is down is missed; `Subscribed` says that this may be so.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::ProtocolVersion;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::connect::Connector;
use super::link::pause;
use crate::store::{Error, Result};

/// So many messages wait for a listener; past it the server's own bound counts.
const WAITING_MAX: usize = 1_000;
/// How often a silent connection is asked whether it is alive.
const PING: Duration = Duration::from_secs(5);

/// What to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The channel of this name.
    Named(String),
    /// Every channel that fits the pattern.
    Pattern(String),
}

/// What a listener is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The subscription holds, for the first time or again: what was published before may have been missed.
    Subscribed,
    /// A message.
    Message {
        /// Where it was published.
        channel: String,
        /// What.
        payload: Vec<u8>,
    },
}

/// A subscription; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    heard: mpsc::Receiver<Heard>,
    loop_: AbortHandle,
}

impl Subscription {
    pub(super) fn start(
        connector: Arc<Connector>,
        runtime: &tokio::runtime::Handle,
        channels: Vec<Channel>,
    ) -> Self {
        let (tell, heard) = mpsc::channel(WAITING_MAX);
        let listening = runtime.spawn(async move {
            let mut failures = 0;
            loop {
                match listen(&connector, &channels, &tell, &mut failures).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "a subscription was lost"),
                }
                failures += 1;
                tokio::time::sleep(pause(failures)).await;
            }
        });
        Self { heard, loop_: listening.abort_handle() }
    }

    /// The next event; `None` when the link is closed.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// The next event, if it is there.
    pub(crate) fn try_next(&mut self) -> Option<Heard> {
        self.heard.try_recv().ok()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.loop_.abort();
    }
}

/// Listens until the connection is lost, or nobody wants to hear.
async fn listen(
    connector: &Connector,
    channels: &[Channel],
    tell: &mpsc::Sender<Heard>,
    failures: &mut u32,
) -> Result<()> {
    let failed = |error: redis::RedisError| connector.error(&error, "subscribe");
    let silent = |_| Error::unavailable("subscribe", "the server does not answer");
    let client = connector.client(ProtocolVersion::RESP2).await?;
    let opening = tokio::time::timeout(connector.connect_timeout, client.get_async_pubsub());
    let (mut sink, mut stream) = opening.await.map_err(silent)?.map_err(failed)?.split();
    for channel in channels {
        let timeout = connector.response_timeout;
        let subscribed = match channel {
            Channel::Named(name) => tokio::time::timeout(timeout, sink.subscribe(name)).await,
            Channel::Pattern(pattern) => tokio::time::timeout(timeout, sink.psubscribe(pattern)).await,
        };
        subscribed.map_err(silent)?.map_err(failed)?;
    }
    *failures = 0;
    if tell.send(Heard::Subscribed).await.is_err() {
        return Ok(());
    }
    loop {
        match tokio::time::timeout(PING, stream.next()).await {
            Ok(Some(message)) => {
                let channel = message.get_channel_name().to_owned();
                let heard = Heard::Message { channel, payload: message.get_payload_bytes().to_vec() };
                if tell.send(heard).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Err(Error::unavailable("subscribe", "the connection was lost")),
            Err(_) => {
                let pong =
                    tokio::time::timeout(connector.response_timeout, sink.ping::<redis::Value>()).await;
                pong.map_err(silent)?.map_err(failed)?;
            }
        }
    }
}
