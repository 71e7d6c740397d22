//! Server-sent events out of bytes, however they are cut: the rules of the WHATWG's text. Pure.

use super::Event;

/// An event has at most so many bytes; a server that sends more is not one of ours.
pub(super) const EVENT_BYTES_MAX: usize = 32 << 20;

/// What the parser tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// An event, complete.
    Event(Event),
    /// The position has moved without an event.
    Position(String),
    /// How long to wait before a reconnect, in milliseconds.
    Retry(u64),
}

/// An event grew past [`EVENT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Reads one connection. Another needs another parser, since half an event is lost with its connection.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line begun, without its end.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
    /// A line was read: a byte order mark can no longer come.
    begun: bool,
    event: String,
    data: Option<String>,
    /// The last id seen, which holds until there is another.
    id: Option<String>,
    /// The id of the event that was dispatched last.
    noted: Option<String>,
}

impl Parser {
    /// Takes the next bytes, and tells in `out` what they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<Parsed>) -> Result<(), TooLarge> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&line, out);
            self.line = line;
            self.line.clear();
        }
        let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if held > EVENT_BYTES_MAX { Err(TooLarge) } else { Ok(()) }
    }

    fn line(&mut self, mut line: &[u8], out: &mut Vec<Parsed>) {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(out);
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            // A comment.
            Some(0) => return,
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                let data = self.data.get_or_insert_default();
                data.push_str(&String::from_utf8_lossy(value));
                data.push('\n');
            }
            b"id" if !value.contains(&0) => self.id = Some(String::from_utf8_lossy(value).into_owned()),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let retry = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                out.extend(retry.map(Parsed::Retry));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, out: &mut Vec<Parsed>) {
        let event = std::mem::take(&mut self.event);
        let moved = self.id != self.noted;
        if moved {
            self.noted.clone_from(&self.id);
        }
        match self.data.take() {
            Some(mut data) => {
                data.pop();
                let event = if event.is_empty() { "message".to_owned() } else { event };
                out.push(Parsed::Event(Event { id: self.id.clone(), event, data }));
            }
            None if moved => out.extend(self.id.clone().map(Parsed::Position)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Parsed> {
        let mut parser = Parser::default();
        let mut out = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut out).unwrap();
        }
        out
    }

    fn event(id: Option<&str>, event: &str, data: &str) -> Parsed {
        Parsed::Event(Event { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() })
    }

    #[test]
    fn the_rules_of_the_text() {
        let cases: &[(&str, &[Parsed])] = &[
            ("data: a\n\n", &[event(None, "message", "a")]),
            ("data\n\n", &[event(None, "message", "")]),
            ("data\ndata\n\ndata:", &[event(None, "message", "\n")]),
            (
                "data:test\n\ndata: test\n\n",
                &[event(None, "message", "test"), event(None, "message", "test")],
            ),
            ("data:  two\n\n", &[event(None, "message", " two")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[event(None, "message", "a")]),
            (": a comment\n\n:\n\n", &[]),
            (
                "event: add\ndata: 1\ndata: 2\n\ndata: 3\n\n",
                &[event(None, "add", "1\n2"), event(None, "message", "3")],
            ),
            ("event: lost\n\ndata: 3\n\n", &[event(None, "message", "3")]),
            (
                "id: 1\ndata: a\n\ndata: b\n\n",
                &[event(Some("1"), "message", "a"), event(Some("1"), "message", "b")],
            ),
            ("id: 1\n\ndata: b\n\n", &[Parsed::Position("1".to_owned()), event(Some("1"), "message", "b")]),
            (
                "id: 1\ndata: a\n\nid\ndata: b\n\n",
                &[event(Some("1"), "message", "a"), event(Some(""), "message", "b")],
            ),
            ("id: 1\0\ndata: a\n\n", &[event(None, "message", "a")]),
            ("retry: 250\nretry: 2s\nretry\nretry: -1\n\n", &[Parsed::Retry(250)]),
            ("unknown: 1\ndata: a: b\n\n", &[event(None, "message", "a: b")]),
            (
                "data: a\r\rdata: b\r\n\r\ndata: c\n\n",
                &[event(None, "message", "a"), event(None, "message", "b"), event(None, "message", "c")],
            ),
            ("data: never ended\n", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse([text.as_bytes()]), *expected, "{text:?}");
        }
    }

    #[test]
    fn however_it_is_cut_the_events_are_the_same() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let parts = [
            "data",
            "id",
            "event",
            "retry",
            ":",
            " ",
            "\n",
            "\r",
            "\r\n",
            "\n\n",
            "é",
            "\u{2028}",
            "😀",
            "7",
            "x",
            "\0",
            "\u{feff}",
            "data: {\"text\": \"ü\"}\n",
            "id: 12\n",
            "event: token\r\n",
            "\r\n\r\n",
        ];
        let mut events = 0;
        for _ in 0..2_000 {
            let text: String = (0..random.usize(0..60)).map(|_| parts[random.usize(..parts.len())]).collect();
            let whole = parse([text.as_bytes()]);
            events += whole.len();
            let bytes = text.as_bytes();
            assert_eq!(parse(bytes.chunks(1)), whole, "{text:?} byte by byte");
            let mut cuts: Vec<usize> =
                (0..random.usize(0..8)).map(|_| random.usize(0..=bytes.len())).collect();
            cuts.sort_unstable();
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let ends = cuts.iter().copied().chain(std::iter::once(bytes.len()));
            let pieces: Vec<&[u8]> = starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect();
            assert_eq!(parse(pieces), whole, "{text:?} cut at {cuts:?}");
        }
        assert!(events > 1_000, "the texts are to be about something: {events}");
    }

    #[test]
    fn an_event_is_bounded() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX / 2];
        assert_eq!(parser.push(&piece, &mut Vec::new()), Ok(()));
        assert_eq!(parser.push(&piece, &mut Vec::new()), Ok(()));
        assert_eq!(parser.push(b"x", &mut Vec::new()), Err(TooLarge));
    }
}
