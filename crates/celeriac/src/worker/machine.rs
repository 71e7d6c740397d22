//! What the system tells of the machine and of this process; zero or nothing where it does not tell.

use crate::clock::Timestamp;

/// The load averages over 1, 5 and 15 minutes.
pub(super) fn load_averages() -> [f64; 3] {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut averages = text.split_whitespace().map(|word| word.parse().unwrap_or(0.0));
    std::array::from_fn(|_| averages.next().unwrap_or(0.0))
}

/// The time zone of the machine, in hours west of UTC.
pub(super) fn hours_west(at: Timestamp) -> f64 {
    let offset = jiff::tz::TimeZone::system().to_offset(at);
    // Adding zero makes a positive zero of a negative one, which looks odd on the wire.
    -f64::from(offset.seconds()) / 3600.0 + 0.0
}

/// What this process has used, under the names of `getrusage`: seconds, and kilobytes at most.
pub(super) fn usage() -> Vec<(&'static str, f64)> {
    /// Clock ticks a second, on every Linux of today.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program stands in brackets, and may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| fields.get(number).and_then(|field| field.parse::<f64>().ok());
    let used = [("utime", 11, TICKS), ("stime", 12, TICKS), ("minflt", 7, 1.0), ("majflt", 9, 1.0)];
    let mut usage: Vec<(&str, f64)> =
        used.into_iter().filter_map(|(name, number, unit)| Some((name, field(number)? / unit))).collect();
    usage.extend(status_kilobytes("VmHWM:").map(|most| ("maxrss", most)));
    usage
}

/// The memory of this process that is in use, in kilobytes.
pub(super) fn resident_kilobytes() -> Option<f64> {
    status_kilobytes("VmRSS:")
}

fn status_kilobytes(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_west_of_utc_are_positive() {
        // Where the machine is nobody knows; that it is on Earth is certain.
        let hours = hours_west(Timestamp::UNIX_EPOCH);
        assert!((-15.0..=15.0).contains(&hours) && !(hours == 0.0 && hours.is_sign_negative()), "{hours}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_knows_what_it_uses() {
        assert!(resident_kilobytes().is_some_and(|size| size > 100.0));
        let names: Vec<&str> = usage().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["utime", "stime", "minflt", "majflt", "maxrss"]);
    }
}
