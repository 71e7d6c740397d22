//! Every setting of the server, with its meaning, unit and default. Each is a bound, or something that must be asked for.

use std::time::Duration;

/// The settings of a server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The largest body of a request, in bytes. Default 16 MiB.
    pub body_bytes_max: usize,
    /// How long a request may take that waits for nothing. Default 30 s.
    pub request_timeout: Duration,
    /// The longest that `?wait=` may ask for. Default 60 s.
    pub wait_max: Duration,
    /// How many calls one batch may have. Default 10,000.
    pub batch_max: usize,
    /// How many items a page has unless it is asked for more. Default 50.
    pub page_default: usize,
    /// How many items a page has at most. Default 500.
    pub page_max: usize,
    /// How many tasks one bulk operation (revoke, retry by filter) takes at most; it says when there are more. Default
    /// 10,000.
    pub bulk_max: usize,
    /// How many messages may wait on a queue before submissions to it are refused with 429. Default 1,000,000.
    pub queue_bound: u64,
    /// Whether tasks that no worker is known to run are accepted. Default false: 404 names those that are close.
    pub accept_unknown_tasks: bool,
    /// Requests a second of one client, on average; `None` for no bound. Default 1,000.
    pub rate_limit: Option<u32>,
    /// Requests that one client may make at once on top of that. Default 2,000.
    pub rate_burst: u32,
    /// Web pages of these origins may use the API. Default none.
    pub cors_origins: Vec<String>,
    /// Connections at once. Default 20,000.
    pub connections_max: usize,
    /// How long a client may take to send the head of a request. Default 10 s.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is written to it before it is cut off. Default 30 s.
    pub stall_timeout: Duration,
    /// Streams at once. Default 15,000.
    pub streams_max: usize,
    /// How often a stream that has nothing to say sends a comment. Default 15 s.
    pub stream_heartbeat: Duration,
    /// How long a client is to wait before it reconnects a stream. Default 1 s.
    pub stream_retry: Duration,
    /// How long one connection of a stream lasts; clients then reconnect where they were. Default 1 h.
    pub stream_lifetime: Duration,
    /// How long a stream token is good for. Default 5 minutes.
    pub stream_token_lifetime: Duration,
    /// How long a shutdown waits for requests under way. Default 10 s.
    pub drain_timeout: Duration,
    /// What webhooks are signed with; without it they are refused.
    pub webhook_secret: Option<String>,
    /// Whether webhooks may go to private, loopback and link-local addresses. Default false.
    pub webhook_private: bool,
    /// How long one delivery of a webhook may take. Default 10 s.
    pub webhook_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 << 20,
            request_timeout: Duration::from_secs(30),
            wait_max: Duration::from_secs(60),
            batch_max: 10_000,
            page_default: 50,
            page_max: 500,
            bulk_max: 10_000,
            queue_bound: 1_000_000,
            accept_unknown_tasks: false,
            rate_limit: Some(1_000),
            rate_burst: 2_000,
            cors_origins: Vec::new(),
            connections_max: 20_000,
            header_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            streams_max: 15_000,
            stream_heartbeat: Duration::from_secs(15),
            stream_retry: Duration::from_secs(1),
            stream_lifetime: Duration::from_secs(3600),
            stream_token_lifetime: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(10),
            webhook_secret: None,
            webhook_private: false,
            webhook_timeout: Duration::from_secs(10),
        }
    }
}
