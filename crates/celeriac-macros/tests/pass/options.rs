//! Every option, as it reaches the worker.

use std::time::Duration;

use celeriac::task::{Task, TaskOptions};

#[celeriac::task(
    name = "all",
    max_retries = 5,
    default_retry_delay = 2.5,
    autoretry = false,
    retry_backoff = "500ms",
    retry_backoff_max = "10m",
    retry_jitter = false,
    time_limit = "1h",
    soft_time_limit = 3500,
    acks_late,
    ignore_result = false,
    track_started = true,
    rate_limit = "10/m",
    priority = 9,
    queue = "slow",
    expires = "2h"
)]
fn all() {}

#[celeriac::task(max_retries = unlimited)]
fn forever() {}

#[celeriac::task(retry_backoff)]
fn backoff() {}

#[celeriac::task()]
fn plain() {}

fn main() {
    let mut expected = TaskOptions::default();
    assert_eq!(plain::options(), expected);

    expected.max_retries = Some(5);
    expected.default_retry_delay = Duration::from_millis(2500);
    expected.retry_backoff = Some(Duration::from_millis(500));
    expected.retry_backoff_max = Duration::from_secs(600);
    expected.retry_jitter = false;
    expected.time_limit = Some(Duration::from_secs(3600));
    expected.soft_time_limit = Some(Duration::from_secs(3500));
    expected.acks_late = Some(true);
    expected.ignore_result = Some(false);
    expected.track_started = Some(true);
    expected.rate_limit = Some("10/m".parse().unwrap());
    expected.priority = Some(9);
    expected.queue = Some("slow".to_owned());
    expected.expires = Some(Duration::from_secs(7200));
    assert_eq!(all::options(), expected);

    assert_eq!(forever::options().max_retries, None);
    assert!(forever::options().autoretry);

    assert_eq!(backoff::options().retry_backoff, Some(Duration::from_secs(1)));
    assert_eq!(backoff::options().max_retries, TaskOptions::default().max_retries);
    assert!(backoff::options().autoretry);
}
