//! A scanner of JSON as Python reads it: it checks values and cuts arrays and objects into the slices they are made of.
//!
//! Python's reader takes more than the standard: `NaN`, `Infinity`, `-Infinity`, integers of any size, lone surrogate
//! escapes. Nothing here allocates for a value; a slice handed out is one checked value without the space around it.

use std::borrow::Cow;

use super::JsonError;

/// How deep a document may nest.
pub(super) const DOCUMENT_DEPTH_MAX: usize = 256;

/// The text of the one value that `text` holds, space taken off.
pub(super) fn value(text: &str, depth_max: usize) -> Result<&str, JsonError> {
    let mut scanner = Scanner { text, at: 0, hook: None };
    let slice = scanner.value(depth_max)?;
    scanner.end()?;
    Ok(slice)
}

/// The one value that `text` begins with; nothing where it begins with none, or with space.
#[cfg(feature = "redis")]
pub(super) fn first(text: &str) -> Option<&str> {
    let mut scanner = Scanner { text, at: 0, hook: None };
    let spaced = text.starts_with([' ', '\t', '\n', '\r']);
    scanner.value(DOCUMENT_DEPTH_MAX).ok().filter(|_| !spaced)
}

/// What to make of an object with exactly the keys `__type__` and `__value__`, given both values.
pub(super) type Hook = fn(&str, &str) -> Result<(), JsonError>;

/// Walks one value once and shows every extended type in it, at any depth, to `hook`.
pub(super) fn extended_types(text: &str, hook: Hook) -> Result<(), JsonError> {
    let mut scanner = Scanner { text, at: 0, hook: Some(hook) };
    scanner.skip(DOCUMENT_DEPTH_MAX)?;
    scanner.end()
}

/// Cuts an array.
pub(super) fn items(text: &str) -> Result<Items<'_>, JsonError> {
    let mut scanner = Scanner { text, at: 0, hook: None };
    scanner.open(b'[', "an array")?;
    Ok(Items { scanner, state: Progress::First })
}

/// Cuts an object. A key may come twice; the last one counts.
pub(super) fn entries(text: &str) -> Result<Entries<'_>, JsonError> {
    let mut scanner = Scanner { text, at: 0, hook: None };
    scanner.open(b'{', "an object")?;
    Ok(Entries { scanner, state: Progress::First })
}

/// Reads a string value; `None` when the value is of another type.
pub(super) fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    Some(unescape(inner))
}

/// What kind of value a checked text holds, for messages.
pub(super) fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Takes the escapes out of what stands between quotes. A surrogate without its other half becomes U+FFFD: a Rust
/// string cannot hold it.
pub(super) fn unescape(inner: &str) -> Cow<'_, str> {
    let Some(first) = inner.find('\\') else { return Cow::Borrowed(inner) };
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    let mut next = Some(first);
    while let Some(at) = next {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(&escape) = rest.as_bytes().first() else { break };
        if escape == b'u' {
            let (character, used) = unicode_escape(rest.as_bytes());
            out.push(character);
            rest = rest.get(used..).unwrap_or_default();
        } else {
            out.push(match escape {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                other => char::from(other),
            });
            rest = &rest[1..];
        }
        next = rest.find('\\');
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads `uXXXX`, and the second half of a pair if it follows; returns the character and how many bytes it took.
fn unicode_escape(bytes: &[u8]) -> (char, usize) {
    let Some(unit) = hex4(bytes, 1) else { return (char::REPLACEMENT_CHARACTER, bytes.len()) };
    if (0xD800..0xDC00).contains(&unit)
        && bytes.get(5..7) == Some(b"\\u")
        && let Some(low) = hex4(bytes, 7)
        && (0xDC00..0xE000).contains(&low)
    {
        let code = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
    }
    (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
}

/// How many bytes at the front of a string are neither a quote, nor a backslash, nor a control character. Most bytes of
/// most messages are looked at here, so eight are looked at together.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The high bit of each byte that is `byte`. Bytes above a hit may be marked falsely, the lowest mark is right.
        let is = |byte: u8| {
            let differs = word ^ (ONES * u64::from(byte));
            differs.wrapping_sub(ONES) & !differs & HIGH
        };
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let stop = is(b'"') | is(b'\\') | control;
        if stop != 0 {
            return index * 8 + stop.trailing_zeros() as usize / 8;
        }
    }
    let plain = |byte: &&u8| !matches!(byte, b'"' | b'\\' | ..0x20);
    bytes.len() - tail.len() + tail.iter().take_while(plain).count()
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 4)?;
    digits.iter().try_fold(0, |code, &digit| Some(code * 16 + char::from(digit).to_digit(16)?))
}

/// The values of an array.
pub(super) struct Items<'a> {
    scanner: Scanner<'a>,
    state: Progress,
}

/// The keys and values of an object.
pub(super) struct Entries<'a> {
    scanner: Scanner<'a>,
    state: Progress,
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    First,
    Later,
    Over,
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<&'a str, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self
            .scanner
            .advance(&mut self.state, b']')
            .and_then(|more| if more { self.scanner.value(DOCUMENT_DEPTH_MAX).map(Some) } else { Ok(None) });
        finish(item, &mut self.state)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(Cow<'a, str>, &'a str), JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.scanner.advance(&mut self.state, b'}').and_then(|more| {
            if !more {
                return Ok(None);
            }
            let key = unescape(self.scanner.key()?);
            Ok(Some((key, self.scanner.value(DOCUMENT_DEPTH_MAX)?)))
        });
        finish(item, &mut self.state)
    }
}

/// An iterator that failed stays over.
fn finish<T>(item: Result<Option<T>, JsonError>, state: &mut Progress) -> Option<Result<T, JsonError>> {
    if item.is_err() {
        *state = Progress::Over;
    }
    item.transpose()
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    hook: Option<Hook>,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expected(&self, what: &str) -> JsonError {
        if self.at >= self.text.len() {
            JsonError(format!("the text ends where {what} should be"))
        } else {
            JsonError(format!("expected {what} at byte {}", self.at))
        }
    }

    fn open(&mut self, bracket: u8, what: &str) -> Result<(), JsonError> {
        self.space();
        if self.peek() != Some(bracket) {
            return Err(self.expected(what));
        }
        self.at += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), JsonError> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.expected("the end of the text")) }
    }

    /// Moves to the next element of the outermost container; `false` when it is closed and nothing follows.
    fn advance(&mut self, state: &mut Progress, close: u8) -> Result<bool, JsonError> {
        if *state == Progress::Over {
            return Ok(false);
        }
        let first = *state == Progress::First;
        *state = Progress::Later;
        if self.more(first, close)? {
            return Ok(true);
        }
        *state = Progress::Over;
        self.end()?;
        Ok(false)
    }

    /// Steps over the comma, or over the closing bracket.
    fn more(&mut self, first: bool, close: u8) -> Result<bool, JsonError> {
        self.space();
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(self.expected("a comma or the end of the container")),
        }
    }

    fn key(&mut self) -> Result<&'a str, JsonError> {
        self.space();
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key"));
        }
        let start = self.at + 1;
        self.string()?;
        let key = &self.text[start..self.at - 1];
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.expected("a colon"));
        }
        self.at += 1;
        Ok(key)
    }

    fn value(&mut self, depth_left: usize) -> Result<&'a str, JsonError> {
        self.space();
        let start = self.at;
        self.skip(depth_left)?;
        Ok(&self.text[start..self.at])
    }

    /// Steps over one value. Recursion is bounded by `depth_left`.
    fn skip(&mut self, depth_left: usize) -> Result<(), JsonError> {
        self.space();
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{') => {
                let left = self.deeper(depth_left)?;
                if let Some(hook) = self.hook {
                    return self.object_with_hook(left, hook);
                }
                let mut first = true;
                while self.more(first, b'}')? {
                    first = false;
                    self.key()?;
                    self.skip(left)?;
                }
                Ok(())
            }
            Some(b'[') => {
                let left = self.deeper(depth_left)?;
                let mut first = true;
                while self.more(first, b']')? {
                    first = false;
                    self.skip(left)?;
                }
                Ok(())
            }
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(b'N') => self.word("NaN"),
            Some(b'I') => self.word("Infinity"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.expected("a value")),
        }
    }

    fn object_with_hook(&mut self, depth_left: usize, hook: Hook) -> Result<(), JsonError> {
        let (mut type_name, mut content, mut others, mut first) = (None, None, false, true);
        while self.more(first, b'}')? {
            first = false;
            let key = unescape(self.key()?);
            let value = Some(self.value(depth_left)?);
            match &*key {
                "__type__" => type_name = value,
                "__value__" => content = value,
                _ => others = true,
            }
        }
        match (type_name, content) {
            (Some(type_name), Some(content)) if !others => hook(type_name, content),
            _ => Ok(()),
        }
    }

    fn deeper(&mut self, depth_left: usize) -> Result<usize, JsonError> {
        self.at += 1;
        depth_left.checked_sub(1).ok_or_else(|| JsonError("nested too deeply".to_owned()))
    }

    fn word(&mut self, word: &str) -> Result<(), JsonError> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.peek() == Some(b'I') {
                return self.word("Infinity");
            }
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.expected("a digit")) } else { Ok(()) }
    }

    /// Steps over a string, quotes included.
    fn string(&mut self) -> Result<(), JsonError> {
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            self.at += plain_run(&bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.expected("an escaped control character")),
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') if hex4(self.text.as_bytes(), self.at + 1).is_some() => self.at += 5,
            _ => return Err(self.expected("an escape")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, good: bool) {
        assert_eq!(value(text, DOCUMENT_DEPTH_MAX).is_ok(), good, "{text}");
    }

    #[test]
    fn takes_what_python_takes() {
        for text in [
            "null",
            " true ",
            "NaN",
            "-Infinity",
            "Infinity",
            "0",
            "-0",
            "-0.5e-7",
            "12345678901234567890123",
            "1E5",
            r#""\ud800""#,
            r#""é\u00e9""#,
            "[]",
            "[1 , 2]",
            "{}",
            r#"{"a" : [ ] , "a":{}}"#,
            "\t\r\n1",
        ] {
            check(text, true);
        }
        for text in [
            "",
            " ",
            "nul",
            "nan",
            "-",
            "-NaN",
            "01",
            "1.",
            ".5",
            "1e",
            "+1",
            "[1,]",
            "[,]",
            "[",
            "{",
            "{\"a\"}",
            "{a: 1}",
            "{\"a\": 1,}",
            "\"",
            "\"\n\"",
            r#""\x""#,
            r#""\u12""#,
            "1 2",
            "'a'",
            "[1}",
            "tru\u{e9}",
        ] {
            check(text, false);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(value(&deep(200), 200).is_ok());
        assert!(value(&deep(201), 200).is_err());
        assert!(value(&"[".repeat(1_000_000), 200).is_err());
        assert!(items(&"[".repeat(1_000_000)).unwrap().next().unwrap().is_err());
    }

    #[test]
    fn cuts_without_touching() {
        let all: Vec<_> =
            items(r#" [ 1, "a,]", {"b": [NaN]} ,[]] "#).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(all, ["1", "\"a,]\"", "{\"b\": [NaN]}", "[]"]);
        let all: Vec<_> = entries(r#"{"\u0061": 1,"b" :2}"#).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(all, [(Cow::from("a"), "1"), (Cow::from("b"), "2")]);
        assert!(items("[1] 2").unwrap().collect::<Result<Vec<_>, _>>().is_err());
        assert!(items("{}").is_err());
    }

    #[test]
    fn runs_end_at_the_first_special_byte() {
        for length in 0..24 {
            for fill in [b'a', 0xc3, 0x7f, b' ', b'!', b'#', b'[', b']', 0xff] {
                for stop in [b'"', b'\\', 0, 1, 0x1f] {
                    let mut bytes = vec![fill; length];
                    bytes.push(stop);
                    bytes.extend([b'"', 0, b'\\', fill, fill, fill, fill, fill, fill]);
                    assert_eq!(plain_run(&bytes), length, "{fill} {stop}");
                }
                assert_eq!(plain_run(&vec![fill; length]), length);
            }
        }
    }

    #[test]
    fn strings() {
        for (value, expected) in [
            (r#""""#, ""),
            (r#""a\n\"\\\/""#, "a\n\"\\/"),
            (r#""\ud83d\ude00x""#, "\u{1f600}x"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\udc00""#, "\u{fffd}"),
        ] {
            assert_eq!(string(value).unwrap(), expected);
        }
        assert_eq!(string("1"), None);
    }
}
