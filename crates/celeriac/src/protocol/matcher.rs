//! Patterns by which remote control names workers: as kombu's matchers `glob` and `pcre`.

use std::fmt;

use regex_lite::Regex;

use super::DecodeError;

/// The bound on a pattern: what names workers is short.
const PATTERN_BYTES_MAX: usize = 1_024;

/// A pattern for the names of workers.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Glob,
    Regex(Regex),
}

impl Pattern {
    /// A pattern of the shell: `*` is any text, `?` any character, `[abc]`, `[a-z]` and `[!a-z]` one of some.
    ///
    /// # Errors
    /// It is too long.
    pub fn glob(pattern: &str) -> Result<Self, DecodeError> {
        Self::of(pattern, "glob")
    }

    /// A pattern under the name of a matcher: `glob` or `pcre`.
    ///
    /// # Errors
    /// The matcher is unknown, or it cannot read the pattern.
    pub fn of(pattern: &str, matcher: &str) -> Result<Self, DecodeError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(DecodeError::TooLarge { part: "pattern", bound: PATTERN_BYTES_MAX });
        }
        let kind = match matcher {
            "glob" => Kind::Glob,
            // As Python's `re.match`, which begins where the text begins.
            "pcre" => Kind::Regex(Regex::new(&format!("^(?:{pattern})")).map_err(|why| {
                let remedy = "look-around and references back are not supported";
                DecodeError::invalid("pattern", format_args!("{pattern:?}: {why}; {remedy}"))
            })?),
            _ => {
                let why = format_args!("{matcher:?} is unknown; use glob or pcre");
                return Err(DecodeError::invalid("matcher", why));
            }
        };
        Ok(Self { text: pattern.to_owned(), kind })
    }

    /// Whether a name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Glob => glob_matches(&self.text, name),
            Kind::Regex(regex) => regex.is_match(name),
        }
    }

    /// The pattern as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of its matcher.
    #[must_use]
    pub fn matcher(&self) -> &'static str {
        match self.kind {
            Kind::Glob => "glob",
            Kind::Regex(_) => "pcre",
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.matcher()) == (&other.text, other.matcher())
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.matcher(), self.text)
    }
}

/// As Python's `fnmatch`. A star gives way to a later one, so the time is that of the lengths multiplied at worst.
fn glob_matches(pattern: &str, text: &str) -> bool {
    let mut pattern = pattern.chars();
    let mut text = text.chars();
    // Where to go on when what follows the last star does not fit here.
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let mut ahead = pattern.clone();
        match ahead.next() {
            Some('*') => {
                pattern = ahead;
                retry = Some((pattern.clone(), text.clone()));
                continue;
            }
            Some(first) => {
                let mut rest = text.clone();
                if let Some(character) = rest.next()
                    && one_matches(first, &mut ahead, character)
                {
                    (pattern, text) = (ahead, rest);
                    continue;
                }
            }
            None if text.as_str().is_empty() => return true,
            None => {}
        }
        let Some((after_star, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        (pattern, text) = (after_star.clone(), from.clone());
    }
}

/// Whether one character fits what the pattern says of it; a set is taken off the pattern whole.
fn one_matches(first: char, rest: &mut std::str::Chars<'_>, character: char) -> bool {
    match first {
        '?' => true,
        '[' => {
            let set = rest.as_str();
            let negated = set.starts_with('!');
            let inner = set.strip_prefix('!').unwrap_or(set);
            // A bracket that comes first is one of the set.
            let from = usize::from(inner.starts_with(']'));
            let Some(end) = inner.get(from..).and_then(|tail| tail.find(']')).map(|end| from + end) else {
                return character == '[';
            };
            *rest = inner[end + 1..].chars();
            set_matches(&inner[..end], character) != negated
        }
        literal => literal == character,
    }
}

fn set_matches(set: &str, character: char) -> bool {
    let mut characters = set.chars();
    while let Some(low) = characters.next() {
        let mut ahead = characters.clone();
        if ahead.next() == Some('-')
            && let Some(high) = ahead.next()
        {
            characters = ahead;
            if (low..=high).contains(&character) {
                return true;
            }
        } else if low == character {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matcher: &str, pattern: &str, matching: &[&str], other: &[&str]) {
        let pattern = Pattern::of(pattern, matcher).unwrap();
        for name in matching {
            assert!(pattern.matches(name), "{pattern:?} {name}");
        }
        for name in other {
            assert!(!pattern.matches(name), "{pattern:?} {name}");
        }
    }

    #[test]
    fn globs_are_fnmatch() {
        check("glob", "w1@*", &["w1@host", "w1@"], &["w1", "w2@host", "xw1@host"]);
        check("glob", "*", &["", "a"], &[]);
        check("glob", "", &[""], &["a"]);
        check("glob", "*a*b", &["ab", "xaxb", "aab b", "abab"], &["ba", "aba"]);
        check("glob", "w?@h", &["w1@h", "wø@h"], &["w@h", "w12@h"]);
        check("glob", "w[1-3x]@h", &["w1@h", "w3@h", "wx@h"], &["w4@h", "w@h", "w-@h"]);
        check("glob", "w[!1-3]", &["w4", "w!"], &["w1", "w"]);
        check("glob", "[]]x", &["]x"], &["[]x", "x"]);
        check("glob", "a[b", &["a[b"], &["ab"]);
        check("glob", "[a-]", &["a", "-"], &["b"]);
        check("glob", "[z-a]", &[], &["a", "z", "m"]);
        check("glob", "w1.h", &["w1.h"], &["w1xh"]);
        check("glob", "W1", &["W1"], &["w1"]);
    }

    #[test]
    fn a_hostile_glob_takes_no_time() {
        let pattern = Pattern::glob(&"a*".repeat(500)).unwrap();
        assert!(!pattern.matches(&("a".repeat(499) + "b")));
        assert!(pattern.matches(&"a".repeat(10_000)));
        assert!(Pattern::glob(&"a".repeat(1_025)).is_err());
    }

    #[test]
    fn regular_expressions_begin_at_the_beginning() {
        check("pcre", r"w\d+@.*", &["w1@host", "w12@"], &["xw1@host", "w@host"]);
        check("pcre", "w", &["w1@host"], &["1w"]);
        check("pcre", "a|b", &["a", "b1"], &["cb"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let why = |pattern, matcher| Pattern::of(pattern, matcher).unwrap_err().to_string();
        assert!(why("x", "sql").contains("matcher") && why("x", "sql").contains("use glob or pcre"));
        assert!(why("(", "pcre").contains("pattern") && why("(?=a)", "pcre").contains("look-around"));
    }
}
