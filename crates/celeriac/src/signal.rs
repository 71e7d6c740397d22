//! Signals of the operating system, by which tasks that are processes are told to stop.

use std::fmt;
use std::str::FromStr;

/// The signal that a task which is a process is stopped by. A task in Rust has no process of its own: it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessSignal(u8);

/// Those that have the same number on every system that celeriac runs on, and those that do not.
const NAMES: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("FPE", 8),
    ("KILL", 9),
    ("SEGV", 11),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("BUS", if BSD { 10 } else { 7 }),
    ("USR1", if BSD { 30 } else { 10 }),
    ("USR2", if BSD { 31 } else { 12 }),
    ("CHLD", if BSD { 20 } else { 17 }),
    ("CONT", if BSD { 19 } else { 18 }),
    ("STOP", if BSD { 17 } else { 19 }),
    ("TSTP", if BSD { 18 } else { 20 }),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", if BSD { 16 } else { 23 }),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", if BSD { 23 } else { 29 }),
];

const BSD: bool = cfg!(any(
    target_os = "macos",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly"
));

impl ProcessSignal {
    /// What is sent where none is named.
    pub const TERM: Self = Self(15);

    /// The one with this number, where the system has it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        NAMES.iter().any(|(_, known)| *known == number).then_some(Self(number))
    }

    /// Its number on this system.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// As Celery shows it: `SIGTERM`.
impl fmt::Display for ProcessSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, number)| *number == self.0).map_or("?", |(name, _)| *name);
        write!(f, "SIG{name}")
    }
}

/// As Celery takes it: `SIGUSR1`, `USR1`, or a number; in small letters too.
impl FromStr for ProcessSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| Self(*number));
        named.or_else(|| name.parse().ok().and_then(Self::from_number)).ok_or_else(|| {
            format!("{text:?} is no signal of this system; expected a name, as SIGTERM, or its number")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_celery_reads_them() {
        for text in ["SIGKILL", "KILL", "sigkill", "kill", " 9 "] {
            assert_eq!(text.parse::<ProcessSignal>().unwrap().to_string(), "SIGKILL", "{text}");
        }
        assert_eq!("USR1".parse::<ProcessSignal>().unwrap().to_string(), "SIGUSR1");
        for wrong in ["", "SIG", "SIGNONE", "0", "99", "-9"] {
            assert!(wrong.parse::<ProcessSignal>().unwrap_err().contains("SIGTERM"), "{wrong}");
        }
    }

    #[test]
    fn numbers_and_names_are_one_to_one() {
        for (name, number) in NAMES {
            assert_eq!(ProcessSignal::from_number(*number).unwrap().to_string(), format!("SIG{name}"));
        }
    }
}
