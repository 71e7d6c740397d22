//! What a task says of itself, under Celery's names.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The options of a task. `None` leaves the application's setting.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskOptions {
    /// How often it may be tried again; `None`: without end. Default 3.
    pub max_retries: Option<u32>,
    /// How long a retry waits when nothing else is said. Default 180 s.
    pub default_retry_delay: Duration,
    /// Whether an error is a reason to retry by itself. `#[task]` sets it when a retry option is given.
    pub autoretry: bool,
    /// Base of an exponential delay: the *n*-th retry waits `base × 2ⁿ`. Default none.
    pub retry_backoff: Option<Duration>,
    /// The longest exponential delay. Default 600 s.
    pub retry_backoff_max: Duration,
    /// Whether an exponential delay is drawn at random from zero up to itself. Default true.
    pub retry_jitter: bool,
    /// After this the run is stopped, and ends in FAILURE `TimeLimitExceeded`.
    pub time_limit: Option<Duration>,
    /// After this the run is asked to stop, see [`Context::cancelled`](crate::Context::cancelled).
    pub soft_time_limit: Option<Duration>,
    /// Acknowledge after the end rather than before the start.
    pub acks_late: Option<bool>,
    /// Keep no result.
    pub ignore_result: Option<bool>,
    /// Runs a second, minute or hour, for each worker.
    pub rate_limit: Option<RateLimit>,
    /// 0 is consumed first, 9 last.
    pub priority: Option<u8>,
    /// The queue its calls go to.
    pub queue: Option<String>,
    /// A call not begun within this time is revoked.
    pub expires: Option<Duration>,
    /// Store STARTED when it begins.
    pub track_started: Option<bool>,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            max_retries: Some(3),
            default_retry_delay: Duration::from_secs(180),
            autoretry: false,
            retry_backoff: None,
            retry_backoff_max: Duration::from_secs(600),
            retry_jitter: true,
            time_limit: None,
            soft_time_limit: None,
            acks_late: None,
            ignore_result: None,
            rate_limit: None,
            priority: None,
            queue: None,
            expires: None,
            track_started: None,
        }
    }
}

impl TaskOptions {
    /// How long the retry after attempt number `retries` (from 0) waits. `random` draws from `0..=its argument`.
    // As celery/utils/time.py, get_exponential_backoff_interval: min(maximum, factor × 2^retries), then full jitter.
    pub(crate) fn retry_delay(&self, retries: u32, random: impl FnOnce(u64) -> u64) -> Duration {
        let Some(base) = self.retry_backoff else { return self.default_retry_delay };
        let factor = 2u32.checked_pow(retries).unwrap_or(u32::MAX);
        let delay = base.checked_mul(factor).unwrap_or(Duration::MAX).min(self.retry_backoff_max);
        if !self.retry_jitter {
            return delay;
        }
        Duration::from_millis(random(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A rate limit in Celery's spelling: `"10/s"`, `"100/m"`, `"1000/h"`, or a number per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    interval: Duration,
}

impl RateLimit {
    /// The time between two starts.
    #[must_use]
    pub fn interval(self) -> Duration {
        self.interval
    }
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("rate limit {text:?} is not a number per second, or one followed by /s, /m or /h");
        let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let count: f64 = count.trim().parse().map_err(|_| wrong())?;
        if !(count.is_finite() && count > 0.0) {
            return Err(wrong());
        }
        Duration::try_from_secs_f64(seconds / count).map(|interval| Self { interval }).map_err(|_| wrong())
    }
}

/// As Celery spells it, in the unit that gives a number from 1: `10/m`.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interval = self.interval.as_secs_f64();
        let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let fits = units.into_iter().find(|(_, seconds)| interval <= *seconds * (1.0 + ROUNDING));
        let (unit, seconds) = fits.unwrap_or(("h", 3600.0));
        // An interval is whole nanoseconds: 3 a second is an interval of which there are 3.000000003.
        let count = seconds / interval;
        let whole = count.round();
        if (count - whole).abs() <= whole * ROUNDING {
            write!(f, "{whole}/{unit}")
        } else {
            write!(f, "{count:.3}/{unit}")
        }
    }
}

/// How far a rate may be from a whole number and still be shown as one.
const ROUNDING: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limits_read_as_celery_reads_them() {
        let interval = |text: &str| text.parse::<RateLimit>().map(RateLimit::interval);
        assert_eq!(interval("10/m"), Ok(Duration::from_secs(6)));
        assert_eq!(interval("4"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("3600/h"), Ok(Duration::from_secs(1)));
        for wrong in ["", "0", "-1/s", "1/y", "many/m", "nan", "inf/s"] {
            assert!(interval(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rate_limits_are_shown_as_they_are_written() {
        for text in ["1/s", "3/s", "1000/s", "10/m", "59/m", "1/m", "59/h", "1/h", "0.500/h", "2.500/s"] {
            assert_eq!(text.parse::<RateLimit>().unwrap().to_string(), text);
        }
        assert_eq!("60/m".parse::<RateLimit>().unwrap().to_string(), "1/s");
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let options = TaskOptions {
            retry_backoff: Some(Duration::from_secs(2)),
            retry_jitter: false,
            retry_backoff_max: Duration::from_secs(60),
            ..TaskOptions::default()
        };
        let delays: Vec<u64> = (0..7).map(|n| options.retry_delay(n, |_| 0).as_secs()).collect();
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(options.retry_delay(4_000, |_| 0).as_secs(), 60);
        let jittered = TaskOptions { retry_jitter: true, ..options };
        assert_eq!(jittered.retry_delay(2, |bound| bound / 2).as_secs(), 4);
    }
}
