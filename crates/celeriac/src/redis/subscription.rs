//! Channels subscribed to, for as long as somebody listens.
//!
//! ```text
//!   connect ─► subscribe ─► tell `Subscribed` ─► messages … ─┐
//!      ▲                        ▲                            │ lost
//!      │                        └── another one made ◄───────┼─ silent to a ping
//!      └──────────────── pause, with jitter ◄────────────────┘
//! ```
//!
//! A connection that does not answer a ping is left for another one as soon as that is subscribed, and not before: a
//! server that is slow answers neither, and nothing is missed for it.
//!
//! What is published while the connection is down is missed; `Subscribed` says that this may be so.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use redis::ProtocolVersion;
use redis::aio::{PubSubSink, PubSubStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::connect::Connector;
use super::line::{SUSPICION, pause};
use crate::store::{Error, Result};

/// So many messages wait for a listener; past it the server's own bound counts.
const WAITING_MAX: usize = 1_000;
/// How often a silent connection is asked whether it is alive.
const PING: Duration = SUSPICION;

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
                    Err(error) if error.is_transient() => tracing::debug!(%error, "a subscription was lost"),
                    // It is not the path: somebody has to do something.
                    Err(error) => tracing::warn!(%error, ?channels, "cannot subscribe, trying again"),
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

/// A connection that is subscribed.
type Subscribed = (PubSubSink, PubSubStream);

async fn subscribed(connector: &Connector, channels: &[Channel]) -> Result<Subscribed> {
    let failed = |error: redis::RedisError| connector.error(&error, "subscribe");
    let subscribing = async {
        let client = connector.client(ProtocolVersion::RESP2).await?;
        let (mut sink, stream) = client.get_async_pubsub().await.map_err(failed)?.split();
        for channel in channels {
            match channel {
                Channel::Named(name) => sink.subscribe(name).await.map_err(failed)?,
                Channel::Pattern(pattern) => sink.psubscribe(pattern).await.map_err(failed)?,
            }
        }
        Ok((sink, stream))
    };
    tokio::time::timeout(connector.connect_timeout, subscribing).await.map_err(silent)?
}

fn silent(_: tokio::time::error::Elapsed) -> Error {
    Error::unavailable("subscribe", "the server does not answer")
}

/// Listens until the connection is lost, or nobody wants to hear.
async fn listen(
    connector: &Connector,
    channels: &[Channel],
    tell: &mpsc::Sender<Heard>,
    failures: &mut u32,
) -> Result<()> {
    let (mut sink, mut stream) = subscribed(connector, channels).await?;
    *failures = 0;
    if tell.send(Heard::Subscribed).await.is_err() {
        return Ok(());
    }
    loop {
        match tokio::time::timeout(PING, stream.next()).await {
            Ok(Some(message)) => {
                if tell.send(heard(&message)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Err(Error::unavailable("subscribe", "the connection was lost")),
            Err(_) => {
                let Some(other) = ask(connector, channels, &mut sink).await? else { continue };
                // What the old one has heard meanwhile. The other may have heard it too, which listeners can tell.
                while let Some(Some(message)) = stream.next().now_or_never() {
                    if tell.send(heard(&message)).await.is_err() {
                        return Ok(());
                    }
                }
                tracing::debug!(to = connector.shown(), "a subscription was dead and did not say so");
                (sink, stream) = other;
                if tell.send(Heard::Subscribed).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn heard(message: &redis::Msg) -> Heard {
    let channel = message.get_channel_name().to_owned();
    Heard::Message { channel, payload: message.get_payload_bytes().to_vec() }
}

/// Asks a connection whether it lives. One that does not say so is replaced by another, once that is subscribed.
async fn ask(
    connector: &Connector,
    channels: &[Channel],
    sink: &mut PubSubSink,
) -> Result<Option<Subscribed>> {
    let another = async {
        tokio::time::sleep(SUSPICION).await;
        let mut failures = 0;
        loop {
            match subscribed(connector, channels).await {
                Ok(subscribed) => return subscribed,
                Err(error) => tracing::debug!(%error, "cannot subscribe anew, trying again"),
            }
            failures += 1;
            tokio::time::sleep(pause(failures)).await;
        }
    };
    tokio::select! {
        biased;
        pong = sink.ping::<redis::Value>() => {
            pong.map_err(|error| connector.error(&error, "subscribe"))?;
            Ok(None)
        }
        other = another => Ok(Some(other)),
    }
}
