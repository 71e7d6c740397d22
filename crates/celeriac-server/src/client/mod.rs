//! A client of streams that does the reconnecting.
//!
//! ```no_run
//! # async fn example(id: &str) -> Result<(), celeriac_server::client::Error> {
//! let mut stream = celeriac_server::client::Stream::connect(format!("http://127.0.0.1:8787/api/v1/tasks/{id}/events"));
//! while let Some(event) = stream.next().await? {
//!     println!("{} {}", event.event, event.data);
//! }
//! # Ok(())
//! # }
//! ```

mod parser;

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, RETRY_AFTER};
use tokio::time::{sleep, timeout};

use parser::{EVENT_BYTES_MAX, Parsed, Parser};

/// What a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The position: that of the last event that had one.
    pub id: Option<String>,
    /// `token`, `progress`, `end` …; `message` where the server gave no name.
    pub event: String,
    /// The content, in JSON.
    pub data: String,
}

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refuses the request as it is; to repeat it is of no use.
    #[error("the server answered {status}: {problem}")]
    Refused {
        /// The status.
        status: u16,
        /// The problem document, or whatever else came with it.
        problem: String,
    },
    /// What was sent is not a stream of events.
    #[error("the server sent no stream of events: {0}")]
    NoStream(String),
    /// The request cannot be made: the URL or the token is not valid.
    #[error("the request cannot be made")]
    Request(#[source] reqwest::Error),
    /// So many connections in a row gave nothing.
    #[error("given up after {attempts} connections that gave nothing; the last: {last}")]
    GivenUp {
        /// How many.
        attempts: u32,
        /// What became of the last of them.
        last: String,
    },
}

/// A stream of events that outlives its connections: it reconnects after the last event it gave.
#[derive(Debug)]
pub struct Stream {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
    last_id: Option<String>,
    retry: Duration,
    idle: Duration,
    attempts_max: Option<u32>,
    /// Connections in a row that gave nothing.
    attempts: u32,
    connection: Option<(reqwest::Response, Parser)>,
    parsed: VecDeque<Parsed>,
    over: bool,
}

/// Before the server has said how long to wait.
const RETRY: Duration = Duration::from_secs(1);
/// The longest wait before a reconnect.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A connection that is silent for so long is taken for dead: a server sends a comment every 15 s.
const IDLE: Duration = Duration::from_secs(60);
/// How much of a refusal is kept.
const PROBLEM_CHARS_MAX: usize = 4_096;

impl Stream {
    /// A stream of what `url` has. It connects when it is first asked for an event.
    #[must_use]
    pub fn connect(url: impl Into<String>) -> Self {
        Self::with_client(default_client(), url)
    }

    /// The same through a client of one's own, which must not have a timeout for whole requests.
    #[must_use]
    pub fn with_client(http: reqwest::Client, url: impl Into<String>) -> Self {
        Self {
            http,
            url: url.into(),
            token: None,
            last_id: None,
            retry: RETRY,
            idle: IDLE,
            attempts_max: None,
            attempts: 0,
            connection: None,
            parsed: VecDeque::new(),
            over: false,
        }
    }

    /// Sends this token with each request.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Begins after this position.
    #[must_use]
    pub fn after(mut self, position: u64) -> Self {
        self.last_id = Some(position.to_string());
        self
    }

    /// Takes a connection that is silent for so long for dead. Default 60 s; a server says something every 15 s.
    #[must_use]
    pub fn idle_timeout(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Gives up after so many connections in a row that gave nothing. Default: never.
    #[must_use]
    pub fn attempts(mut self, max: u32) -> Self {
        self.attempts_max = Some(max.max(1));
        self
    }

    /// The id of the last event given.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Waits for the next event; `None` after `end`, or when the server says that nothing follows. A connection that
    /// breaks, or is refused for a time, is made again; no event is lost when the call is dropped before it returns.
    ///
    /// # Errors
    /// When repeating the request is of no use, or [`attempts`](Self::attempts) are used up.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while let Some(parsed) = self.parsed.pop_front() {
                match parsed {
                    Parsed::Retry(retry) => self.retry = Duration::from_millis(retry).min(RETRY_MAX),
                    Parsed::Position(id) => self.note(Some(id)),
                    Parsed::Event(event) => {
                        self.note(event.id.clone());
                        if event.event == celeriac::event::END {
                            self.over = true;
                            self.connection = None;
                            self.parsed.clear();
                        }
                        return Ok(Some(event));
                    }
                }
            }
            if self.over {
                return Ok(None);
            }
            let Some((response, parser)) = &mut self.connection else {
                self.open().await?;
                continue;
            };
            let ended = match timeout(self.idle, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    self.attempts = 0;
                    let mut parsed = Vec::new();
                    if parser.push(&bytes, &mut parsed).is_err() {
                        return Err(Error::NoStream(format!(
                            "an event of more than {EVENT_BYTES_MAX} bytes"
                        )));
                    }
                    self.parsed.extend(parsed);
                    continue;
                }
                Ok(Ok(None)) => "the connection was closed".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("the connection was silent for {:?}", self.idle),
            };
            self.connection = None;
            self.pause(None, ended).await?;
        }
    }

    fn note(&mut self, id: Option<String>) {
        // An empty id takes the position back, by the rules: then the next request names none.
        if let Some(id) = id {
            self.last_id = Some(id).filter(|id| !id.is_empty());
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut request = self.http.get(&self.url).header(ACCEPT, "text/event-stream");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = &self.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = match timeout(self.idle, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_builder() => return Err(Error::Request(error)),
            Ok(Err(error)) => return self.pause(None, error.to_string()).await,
            Err(_) => return self.pause(None, format!("no answer within {:?}", self.idle)).await,
        };
        let status = response.status();
        match status {
            StatusCode::OK => {
                let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
                let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
                    return Err(Error::NoStream(format!("its content type is {kind:?}")));
                }
                self.connection = Some((response, Parser::default()));
                Ok(())
            }
            StatusCode::NO_CONTENT => {
                self.over = true;
                Ok(())
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                let after = retry_after(&response);
                self.pause(after, status.to_string()).await
            }
            _ if status.is_server_error() => {
                let after = retry_after(&response);
                self.pause(after, status.to_string()).await
            }
            _ => {
                let problem = timeout(self.idle, response.text()).await;
                let problem = problem.ok().and_then(Result::ok).unwrap_or_default();
                let problem = problem.chars().take(PROBLEM_CHARS_MAX).collect();
                Err(Error::Refused { status: status.as_u16(), problem })
            }
        }
    }

    /// Waits before the next connection: as the server asks, longer after each that gave nothing, and never in step with
    /// other clients.
    async fn pause(&mut self, asked: Option<Duration>, last: String) -> Result<(), Error> {
        self.attempts += 1;
        if self.attempts_max.is_some_and(|max| self.attempts >= max) {
            return Err(Error::GivenUp { attempts: self.attempts, last });
        }
        tracing::debug!(url = %without_query(&self.url), attempt = self.attempts, %last, "reconnecting a stream");
        // The first of a row is as the server asks: it is what follows a connection that gave something.
        let doubled = self.retry.saturating_mul(1 << (self.attempts - 1).min(10)).min(RETRY_MAX);
        let pause = asked.unwrap_or(doubled);
        sleep(pause.mul_f64(1.0 + 0.25 * fastrand::f64())).await;
        Ok(())
    }
}

/// The URL without what may hold a token.
fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// No server is believed that asks for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

fn default_client() -> reqwest::Client {
    // A program that has chosen a provider keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
