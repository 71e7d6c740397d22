//! The options in the parentheses of `#[task(…)]`.

use std::time::Duration;

use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Expr, ExprLit, Ident, Lit, LitInt, LitStr, Path, Result, Token};

use crate::problems::Problems;

const KNOWN: [&str; 17] = [
    "name",
    "max_retries",
    "default_retry_delay",
    "autoretry",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "time_limit",
    "soft_time_limit",
    "acks_late",
    "ignore_result",
    "track_started",
    "rate_limit",
    "priority",
    "queue",
    "expires",
    "crate",
];

/// No sensible limit is longer, and a time of day this far away can still be written.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What was said of a task; `None`: nothing.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) krate: Option<Path>,
    pub(crate) name: Option<String>,
    pub(crate) max_retries: Option<Retries>,
    pub(crate) default_retry_delay: Option<Duration>,
    pub(crate) autoretry: Option<bool>,
    pub(crate) retry_backoff: Option<Duration>,
    pub(crate) retry_backoff_max: Option<Duration>,
    pub(crate) retry_jitter: Option<bool>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) soft_time_limit: Option<Duration>,
    pub(crate) acks_late: Option<bool>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) track_started: Option<bool>,
    pub(crate) rate_limit: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) queue: Option<String>,
    pub(crate) expires: Option<Duration>,
}

/// How often a task may be tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Retries {
    Most(u32),
    Unlimited,
}

impl Options {
    /// Whether errors are a reason to retry: as said, or because something was said of how to retry.
    pub(crate) fn autoretry(&self) -> bool {
        self.autoretry.unwrap_or(
            self.max_retries.is_some() || self.retry_backoff.is_some() || self.default_retry_delay.is_some(),
        )
    }

    fn set(&mut self, option: &Given) -> Result<()> {
        match option.name().as_str() {
            "name" => self.name = Some(option.task_name()?),
            "max_retries" => self.max_retries = Some(option.retries()?),
            "default_retry_delay" => self.default_retry_delay = Some(option.duration()?),
            "autoretry" => self.autoretry = Some(option.flag()?),
            "retry_backoff" => self.retry_backoff = option.backoff()?,
            "retry_backoff_max" => self.retry_backoff_max = Some(option.positive_duration()?),
            "retry_jitter" => self.retry_jitter = Some(option.flag()?),
            "time_limit" => self.time_limit = Some(option.positive_duration()?),
            "soft_time_limit" => self.soft_time_limit = Some(option.positive_duration()?),
            "acks_late" => self.acks_late = Some(option.flag()?),
            "ignore_result" => self.ignore_result = Some(option.flag()?),
            "track_started" => self.track_started = Some(option.flag()?),
            "rate_limit" => self.rate_limit = Some(option.rate_limit()?),
            "priority" => self.priority = Some(option.priority()?),
            "queue" => self.queue = Some(option.filled_text()?),
            "expires" => self.expires = Some(option.positive_duration()?),
            "crate" => self.krate = Some(option.path()?),
            // Known to those who come from Celery.
            "bind" => {
                let message = "there is no option `bind`: take `cx: Context` as the first parameter instead";
                return Err(Error::new_spanned(&option.key, message));
            }
            _ => return Err(option.unknown()),
        }
        Ok(())
    }
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let given = Punctuated::<Given, Token![,]>::parse_terminated(input)?;
        let mut options = Self::default();
        let mut problems = Problems::default();
        for (index, option) in given.iter().enumerate() {
            if given.iter().take(index).any(|earlier| earlier.key == option.key) {
                problems.add(&option.key, format!("`{}` is given twice", option.key));
            } else {
                problems.note(options.set(option));
            }
        }
        if let (Some(soft), Some(hard)) = (options.soft_time_limit, options.time_limit)
            && soft >= hard
            && let Some(option) = given.iter().find(|option| option.key == "soft_time_limit")
        {
            let message = format!(
                "the soft time limit ({soft:?}) has to come before the hard one ({hard:?}), or the task is never \
                 asked to stop"
            );
            problems.add(option.place(), message);
        }
        problems.into_result().map(|()| options)
    }
}

/// One option as it was written: `key` or `key = value`.
struct Given {
    key: Ident,
    value: Option<Expr>,
}

impl Parse for Given {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key = Ident::parse_any(input)?;
        let value = if input.parse::<Option<Token![=]>>()?.is_some() { Some(input.parse()?) } else { None };
        Ok(Self { key, value })
    }
}

impl Given {
    fn name(&self) -> String {
        self.key.to_string()
    }

    /// Where the value stands, or else the name.
    fn place(&self) -> &dyn ToTokens {
        self.value.as_ref().map_or(&self.key, |value| value)
    }

    fn literal(&self) -> Option<&Lit> {
        match &self.value {
            Some(Expr::Lit(ExprLit { lit, .. })) => Some(lit),
            _ => None,
        }
    }

    fn takes(&self, what: &str) -> Error {
        Error::new_spanned(self.place(), format!("`{}` takes {what}", self.key))
    }

    fn unknown(&self) -> Error {
        let message = format!("there is no option `{}`; the options are {}", self.key, KNOWN.join(", "));
        Error::new_spanned(&self.key, message)
    }

    fn flag(&self) -> Result<bool> {
        match (&self.value, self.literal()) {
            (None, _) => Ok(true),
            (_, Some(Lit::Bool(value))) => Ok(value.value),
            _ => Err(self.takes("`true` or `false`, or stands alone")),
        }
    }

    fn text(&self, example: &str) -> Result<&LitStr> {
        match self.literal() {
            Some(Lit::Str(text)) => Ok(text),
            _ => Err(self.takes(&format!("a text: `{} = \"{example}\"`", self.key))),
        }
    }

    fn filled_text(&self) -> Result<String> {
        let text = self.text("slow")?.value();
        if text.trim().is_empty() { Err(self.takes("a name that is not empty")) } else { Ok(text) }
    }

    fn task_name(&self) -> Result<String> {
        let name = self.text("proj.tasks.add")?.value();
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(self.takes("a name without spaces, such as \"proj.tasks.add\""));
        }
        Ok(name)
    }

    fn retries(&self) -> Result<Retries> {
        match (&self.value, self.literal()) {
            (Some(Expr::Path(path)), _) if path.path.is_ident("unlimited") => return Ok(Retries::Unlimited),
            (_, Some(Lit::Int(count))) => {
                if let Some(count) = plain(count) {
                    return Ok(Retries::Most(count));
                }
            }
            _ => {}
        }
        Err(self.takes("a number of retries, or `unlimited`"))
    }

    fn priority(&self) -> Result<u8> {
        match self.literal() {
            Some(Lit::Int(priority)) => plain(priority).filter(|priority| *priority <= 9),
            _ => None,
        }
        .ok_or_else(|| self.takes("a number from 0 (consumed first) to 9 (last)"))
    }

    fn rate_limit(&self) -> Result<String> {
        let text = self.text("10/m")?.value();
        if is_rate_limit(&text) {
            Ok(text)
        } else {
            Err(self.takes("a number per second, or one followed by /s, /m or /h: `rate_limit = \"10/m\"`"))
        }
    }

    fn backoff(&self) -> Result<Option<Duration>> {
        match (&self.value, self.literal()) {
            (None, _) => Ok(Some(Duration::from_secs(1))),
            (_, Some(Lit::Bool(on))) => Ok(on.value.then_some(Duration::from_secs(1))),
            _ => self.positive_duration().map(Some),
        }
    }

    fn positive_duration(&self) -> Result<Duration> {
        match self.duration()? {
            Duration::ZERO => Err(self.takes("a time longer than zero; leave it out for none")),
            duration => Ok(duration),
        }
    }

    fn duration(&self) -> Result<Duration> {
        let duration = match self.literal() {
            Some(Lit::Int(seconds)) if seconds.suffix().is_empty() => {
                seconds.base10_parse().ok().map(Duration::from_secs)
            }
            Some(Lit::Float(seconds)) if seconds.suffix().is_empty() => {
                seconds.base10_parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            }
            Some(Lit::Str(text)) => duration_with_unit(&text.value()),
            _ => None,
        };
        match duration {
            Some(duration) if duration > LONGEST => Err(self.takes("at most 100 years")),
            Some(duration) => Ok(duration),
            None => {
                let what = "seconds as a number, such as 30 or 0.5, or a time with a unit in quotes, such as \"500ms\", \
                            \"30s\", \"5m\" or \"2h\"";
                Err(self.takes(what))
            }
        }
    }

    fn path(&self) -> Result<Path> {
        match &self.value {
            Some(Expr::Path(path)) if path.qself.is_none() => Ok(path.path.clone()),
            _ => Err(self.takes("the path of the library, such as `crate = ::celeriac`")),
        }
    }
}

/// A number without a suffix that fits.
fn plain<N: std::str::FromStr<Err: std::fmt::Display>>(literal: &LitInt) -> Option<N> {
    literal.base10_parse().ok().filter(|_| literal.suffix().is_empty())
}

/// `"500ms"`, `"1.5s"`, `"2m"`, `"1h"`.
fn duration_with_unit(text: &str) -> Option<Duration> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let number: f64 = number.trim_end().parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether the library will read this as a rate limit. The same grammar as `RateLimit` there, which cannot be used here:
/// the library depends on this crate.
fn is_rate_limit(text: &str) -> bool {
    let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
    let seconds = match unit.trim() {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return false,
    };
    match count.trim().parse::<f64>() {
        Ok(count) if count.is_finite() && count > 0.0 => Duration::try_from_secs_f64(seconds / count).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        syn::parse_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn problem(text: &str) -> String {
        match syn::parse_str::<Options>(text) {
            Ok(_) => panic!("{text} was accepted"),
            Err(error) => error.into_iter().map(|error| error.to_string()).collect::<Vec<_>>().join("\n"),
        }
    }

    #[test]
    fn durations_are_seconds_unless_they_say_otherwise() {
        for (text, millis) in [
            ("30", 30_000),
            ("0.25", 250),
            ("1_000", 1_000_000),
            ("\"500ms\"", 500),
            ("\"10s\"", 10_000),
            ("\"1.5m\"", 90_000),
            ("\"1h\"", 3_600_000),
        ] {
            let read = options(&format!("time_limit = {text}")).time_limit;
            assert_eq!(read, Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["\"10\"", "\"10d\"", "\"ms\"", "\"-1s\"", "\"\"", "10s", "-1", "true", "1u64", "f()"] {
            let problem = problem(&format!("time_limit = {text}"));
            assert!(problem.starts_with("`time_limit` takes seconds as a number"), "{text}: {problem}");
        }
        assert!(problem("time_limit").starts_with("`time_limit` takes seconds"));
        assert!(problem("time_limit = 0").starts_with("`time_limit` takes a time longer than zero"));
        assert!(problem("expires = \"inf s\"").starts_with("`expires` takes seconds"));
        assert_eq!(problem("expires = 4_000_000_000"), "`expires` takes at most 100 years");
        assert_eq!(options("default_retry_delay = 0").default_retry_delay, Some(Duration::ZERO));
    }

    #[test]
    fn retry_options_turn_on_autoretry() {
        assert!(!options("").autoretry());
        assert!(!options("retry_jitter = false, retry_backoff = false").autoretry());
        assert!(options("max_retries = 5").autoretry());
        assert!(options("retry_backoff").autoretry());
        assert!(options("default_retry_delay = 1").autoretry());
        assert!(!options("max_retries = 5, autoretry = false").autoretry());
        assert!(options("autoretry").autoretry());
    }

    #[test]
    fn retries_are_counted_or_unlimited() {
        assert_eq!(options("max_retries = 0").max_retries, Some(Retries::Most(0)));
        assert_eq!(options("max_retries = unlimited").max_retries, Some(Retries::Unlimited));
        for wrong in ["max_retries", "max_retries = None", "max_retries = -1", "max_retries = 5_000_000_000"]
        {
            assert_eq!(problem(wrong), "`max_retries` takes a number of retries, or `unlimited`", "{wrong}");
        }
    }

    #[test]
    fn backoff_is_a_flag_or_its_base() {
        assert_eq!(options("retry_backoff").retry_backoff, Some(Duration::from_secs(1)));
        assert_eq!(options("retry_backoff = true").retry_backoff, Some(Duration::from_secs(1)));
        assert_eq!(options("retry_backoff = false").retry_backoff, None);
        assert_eq!(options("retry_backoff = \"2m\"").retry_backoff, Some(Duration::from_secs(120)));
    }

    // The cases of the library's own test of its rate limits.
    #[test]
    fn rate_limits_are_those_of_the_library() {
        for right in ["10/m", "4", "3600/h", "0.5/s"] {
            assert_eq!(options(&format!("rate_limit = {right:?}")).rate_limit.as_deref(), Some(right));
        }
        for wrong in ["", "0", "-1/s", "1/y", "many/m", "nan", "inf/s"] {
            assert!(!is_rate_limit(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn unknown_and_repeated_options_are_named() {
        assert!(
            problem("retries = 3")
                .starts_with("there is no option `retries`; the options are name, max_retries,")
        );
        assert!(!problem("retries = 3").contains("bind"));
        assert!(problem("bind = true").contains("take `cx: Context` as the first parameter"));
        assert_eq!(problem("queue = \"a\", queue = \"b\""), "`queue` is given twice");
        assert_eq!(problem("priority = 10, queue = \"\"").lines().count(), 2, "each problem is reported");
    }

    #[test]
    fn a_soft_limit_comes_before_the_hard_one() {
        assert!(
            problem("time_limit = 30, soft_time_limit = \"30s\"")
                .contains("(30s) has to come before the hard one")
        );
        options("soft_time_limit = \"29.9s\", time_limit = 30");
    }

    #[test]
    fn the_library_may_be_elsewhere() {
        for path in ["crate", "::queue", "my::reexports::celeriac"] {
            assert!(options(&format!("crate = {path}")).krate.is_some(), "{path}");
        }
        assert!(problem("crate = 3").starts_with("`crate` takes the path of the library"));
        assert!(problem("name = \"two words\"").starts_with("`name` takes a name without spaces"));
    }
}
