//! Celery's dates: ISO 8601 as Python's `datetime.fromisoformat` reads it and `isoformat` writes it.

use std::fmt::Write as _;

use jiff::civil;
use jiff::tz::Offset;

use super::DecodeError;
use crate::clock::Timestamp;

/// Reads a moment. One without an offset is UTC, which is what Celery makes of it with `enable_utc`. The fraction may
/// have any length; what lies below nanoseconds is dropped.
///
/// # Errors
/// The text is no date, or one outside the years 1 to 9999.
pub fn parse_iso8601(text: &str) -> Result<Timestamp, DecodeError> {
    read(text, Offset::UTC)
        .ok_or_else(|| DecodeError::invalid("date", format_args!("{text:?} is not ISO 8601")))
}

/// Whether a date says which offset it is in.
pub(super) fn has_offset(text: &str) -> bool {
    Parts::read(text).is_some_and(|parts| parts.offset.is_some())
}

/// Writes a moment as Python does: in UTC, with microseconds unless they are zero.
pub(super) fn iso8601(out: &mut String, at: Timestamp) {
    let at = Offset::UTC.to_datetime(at);
    let (date, time) = (at.date(), at.time());
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        date.year(),
        date.month(),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let micros = time.subsec_nanosecond() / 1000;
    if micros != 0 {
        let _ = write!(out, ".{micros:06}");
    }
    out.push_str("+00:00");
}

/// A moment as Python's `time.time()` has it: seconds since 1970, with a fraction.
pub(super) fn epoch_seconds(at: Timestamp) -> f64 {
    // Second and fraction apart: nanoseconds since 1970 are more than a float can hold, and would be rounded twice.
    at.as_second() as f64 + f64::from(at.subsec_nanosecond()) / 1e9
}

/// The moment of such a number; `None` outside the years that a timestamp reaches.
pub(super) fn from_epoch_seconds(seconds: f64) -> Option<Timestamp> {
    let whole = seconds.floor();
    if !(-377_705_023_201.0..=253_402_207_200.0).contains(&whole) {
        return None;
    }
    // In bounds, as just seen; the fraction is below one.
    let nanoseconds = ((seconds - whole) * 1e9).round() as i32;
    Timestamp::new(whole as i64, 0).ok()?.checked_add(jiff::SignedDuration::new(0, nanoseconds)).ok()
}

fn read(text: &str, naive: Offset) -> Option<Timestamp> {
    let parts = Parts::read(text)?;
    parts.offset.unwrap_or(naive).to_timestamp(parts.datetime).ok()
}

/// A date and time as written.
pub(super) struct Parts {
    pub(super) datetime: civil::DateTime,
    pub(super) offset: Option<Offset>,
}

impl Parts {
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut reader = Reader(text.as_bytes());
        let date = reader.date()?;
        if reader.0.is_empty() {
            return Some(Self { datetime: date.to_datetime(civil::Time::midnight()), offset: None });
        }
        // Python takes any one character between date and time; Celery's peers write `T` or a space.
        if !matches!(reader.0[0], b'T' | b't' | b' ') {
            return None;
        }
        reader.0 = &reader.0[1..];
        let time = reader.time()?;
        let offset = reader.offset()?;
        reader.0.is_empty().then(|| Self { datetime: date.to_datetime(time), offset })
    }
}

/// Reads a time of day without an offset.
pub(super) fn parse_time(text: &str) -> Option<civil::Time> {
    let mut reader = Reader(text.as_bytes());
    let time = reader.time()?;
    reader.0.is_empty().then_some(time)
}

/// Reads a date without a time.
pub(super) fn parse_date(text: &str) -> Option<civil::Date> {
    let mut reader = Reader(text.as_bytes());
    let date = reader.date()?;
    reader.0.is_empty().then_some(date)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn number(&mut self, digits: usize) -> Option<i16> {
        let (head, rest) = self.0.split_at_checked(digits)?;
        let mut value = 0;
        for byte in head {
            value = value * 10 + i16::from(byte.is_ascii_digit().then(|| byte - b'0')?);
        }
        self.0 = rest;
        Some(value)
    }

    fn two(&mut self) -> Option<i8> {
        self.number(2)?.try_into().ok()
    }

    fn date(&mut self) -> Option<civil::Date> {
        let year = self.number(4)?;
        // Python's calendar begins with the year 1.
        if year < 1 {
            return None;
        }
        let dashes = self.eat(b'-');
        let month = self.two()?;
        if self.eat(b'-') != dashes {
            return None;
        }
        civil::Date::new(year, month, self.two()?).ok()
    }

    fn time(&mut self) -> Option<civil::Time> {
        let hour = self.two()?;
        let colons = self.eat(b':');
        let (mut minute, mut second, mut nanos) = (0, 0, 0);
        if colons || self.0.first().is_some_and(u8::is_ascii_digit) {
            minute = self.two()?;
            let more = if colons { self.eat(b':') } else { self.0.first().is_some_and(u8::is_ascii_digit) };
            if more {
                second = self.two()?;
                if self.eat(b'.') || self.eat(b',') {
                    nanos = self.fraction()?;
                }
            }
        }
        civil::Time::new(hour, minute, second, nanos).ok()
    }

    fn fraction(&mut self) -> Option<i32> {
        let length = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        let (digits, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(
            (0..9).fold(0, |nanos, place| {
                nanos * 10 + i32::from(digits.get(place).map_or(0, |byte| byte - b'0'))
            }),
        )
    }

    /// The outer `None` is an error, the inner one a date without an offset.
    fn offset(&mut self) -> Option<Option<Offset>> {
        if self.0.is_empty() {
            return Some(None);
        }
        if self.eat(b'Z') || self.eat(b'z') {
            return Some(Some(Offset::UTC));
        }
        let negative = self.eat(b'-');
        if !negative && !self.eat(b'+') {
            return None;
        }
        let hours = self.number(2)?;
        let (mut minutes, mut seconds) = (0, 0);
        if !self.0.is_empty() {
            self.eat(b':');
            minutes = self.number(2)?;
            if !self.0.is_empty() {
                self.eat(b':');
                seconds = self.number(2)?;
            }
        }
        if hours > 23 || minutes > 59 || seconds > 59 {
            return None;
        }
        let total = i32::from(hours) * 3600 + i32::from(minutes) * 60 + i32::from(seconds);
        Offset::from_seconds(if negative { -total } else { total }).ok().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let at = parse_iso8601(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(at, expected.parse::<Timestamp>().unwrap(), "{text}");
    }

    #[test]
    fn reads_what_python_reads() {
        check("2026-11-23T01:32:54.631004+00:00", "2026-11-23T01:32:54.631004Z");
        check("2030-01-02T03:04:05", "2030-01-02T03:04:05Z");
        check("2020-01-01 00:00:00+00:00", "2020-01-01T00:00:00Z");
        check("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z");
        check("2020-01-01T00:00:00.123456789123+01:00", "2019-12-31T23:00:00.123456789Z");
        check("2020-01-01T00:00:00.5-0530", "2020-01-01T05:30:00.5Z");
        check("20200101T101112", "2020-01-01T10:11:12Z");
        check("2020-01-01", "2020-01-01T00:00:00Z");
        check("2020-01-01T10:11+02", "2020-01-01T08:11:00Z");
        check("2020-01-01T10", "2020-01-01T10:00:00Z");
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "soon",
            "2020",
            "2020-13-01",
            "2020-02-30",
            "2020-0101",
            "2020-01-01T",
            "2020-01-01T25:00",
            "2020-01-01T00:00:60",
            "2020-01-01T00:00:00.",
            "2020-01-01T00:00:00+",
            "2020-01-01T00:00:00+25:00",
            "2020-01-01T00:00:00 Z",
            "0000-01-01",
            "+2020-01-01",
            "2020-01-01T00:00:00Zx",
            "２０２０-01-01",
        ] {
            assert!(parse_iso8601(text).is_err(), "{text}");
        }
        // The first moment of the calendar, moved out of it by its offset, is an error and no panic.
        let _ = parse_iso8601("9999-12-31T23:59:59-23:59");
    }

    #[test]
    fn seconds_since_1970_come_back_as_they_were() {
        for seconds in [0.0, 0.5, -1.25, 1_795_397_612.367_396_8, 1_795_397_654.859_174_7, 253_402_207_199.5]
        {
            assert_eq!(epoch_seconds(from_epoch_seconds(seconds).unwrap()), seconds);
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let seconds = 1.7e9 + random.f64() * 1e8;
            assert_eq!(epoch_seconds(from_epoch_seconds(seconds).unwrap()), seconds);
        }
        for outside in [f64::NAN, f64::INFINITY, -1e300, 1e12] {
            assert_eq!(from_epoch_seconds(outside), None, "{outside}");
        }
        assert_eq!(
            from_epoch_seconds(1.999_999_999_9).unwrap().as_second(),
            2,
            "rounded up to the next second"
        );
    }

    #[test]
    fn writes_as_python_does() {
        for text in ["2026-11-23T01:32:54.631004+00:00", "2030-01-02T03:04:05+00:00"] {
            let mut out = String::new();
            iso8601(&mut out, parse_iso8601(text).unwrap());
            assert_eq!(out, text);
        }
    }
}
