//! A bound on the requests of each client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::identity::Client;
use crate::config::ServerConfig;
use crate::problem::Problem;

/// So many clients are remembered; of more, those that made no request for longest begin anew.
const CLIENTS_MAX: usize = 10_000;

/// Lets requests pass at a rate, and a burst of them on top. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Limiter {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    /// Between two requests, at the rate.
    interval: Duration,
    /// How far ahead of the rate a client may be.
    burst: Duration,
    clients: Mutex<Clients>,
}

/// When each client would have used up its requests, had it made them at the rate.
///
/// In two halves, so that forgetting costs nothing: a client that makes a request moves to the young half, and when that
/// is full the old one is dropped whole and they change places.
#[derive(Debug, Default)]
struct Clients {
    young: HashMap<Client, Instant>,
    old: HashMap<Client, Instant>,
}

impl Limiter {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let inner = config.rate_limit.map(|rate| {
            let interval = Duration::from_secs(1) / rate.max(1);
            let burst = interval * config.rate_burst;
            Arc::new(Inner { interval, burst, clients: Mutex::default() })
        });
        Self { inner }
    }

    /// Takes one request of `client`.
    ///
    /// # Errors
    /// There is none to take: the time until there is.
    fn take(&self, client: Client) -> Result<(), Duration> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let now = Instant::now();
        let mut clients = inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let used = clients.get(client).map_or(now, |used| used.max(now));
        let over = used.duration_since(now).saturating_sub(inner.burst);
        if !over.is_zero() {
            return Err(over);
        }
        clients.put(client, used + inner.interval);
        Ok(())
    }
}

impl Clients {
    fn get(&self, client: Client) -> Option<Instant> {
        self.young.get(&client).or_else(|| self.old.get(&client)).copied()
    }

    fn put(&mut self, client: Client, used: Instant) {
        if self.young.len() >= CLIENTS_MAX / 2 && !self.young.contains_key(&client) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(client, used);
    }
}

/// Lets a request pass when its client has one left.
pub(super) async fn limit(State(limiter): State<Limiter>, request: Request, next: Next) -> Response {
    match limiter.take(Client::of(request.extensions())) {
        Ok(()) => next.run(request).await,
        Err(wait) => {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let title = "too many requests";
            let detail = format!("wait {seconds} s");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limit", title, detail);
            Problem { retry_after: Some(seconds), ..problem }.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rate: u32, burst: u32) -> Limiter {
        Limiter::new(&ServerConfig { rate_limit: Some(rate), rate_burst: burst, ..ServerConfig::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let limiter = limiter(10, 5);
        let [one, other] = [Client::Holder(0), Client::Holder(1)];
        for _ in 0..6 {
            limiter.take(one).unwrap();
        }
        assert_eq!(limiter.take(one), Err(Duration::from_millis(100)));
        limiter.take(other).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        limiter.take(one).unwrap();
        assert!(limiter.take(one).is_err(), "one a tenth of a second");
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..6 {
            limiter.take(one).unwrap();
        }
        assert!(limiter.take(one).is_err(), "what is not used does not add up");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_the_idle_first() {
        let limiter = limiter(1, 0);
        let busy = Client::Unknown;
        limiter.take(busy).unwrap();
        for number in 0..3 * CLIENTS_MAX {
            limiter.take(Client::Holder(number)).unwrap();
            if number % 1_000 == 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
                limiter.take(busy).unwrap();
                assert!(limiter.take(busy).is_err(), "who comes often is remembered");
            }
        }
        let clients = limiter.inner.unwrap();
        let clients = clients.clients.lock().unwrap();
        assert!(clients.young.len() + clients.old.len() <= CLIENTS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn no_bound_is_no_bound() {
        let limiter = Limiter::new(&ServerConfig { rate_limit: None, ..ServerConfig::default() });
        for _ in 0..100_000 {
            limiter.take(Client::Unknown).unwrap();
        }
    }
}
