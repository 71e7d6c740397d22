//! Lines in, blocks out: what the parsers of all formats share.

use std::ops::Range;

/// A line or paragraph at most, in bytes; longer ones go on as the next. Files exist that are one line of megabytes.
const BLOCK_BYTES_MAX: usize = 6 << 10;

/// A heading or a paragraph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) kind: Kind,
    /// Where it stands, in bytes.
    pub(super) range: Range<usize>,
    /// Without markup, on one line.
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With its depth from 1.
    Heading(u8),
    Text,
}

impl Block {
    pub(super) fn heading(&self) -> Option<u8> {
        match self.kind {
            Kind::Heading(level) => Some(level),
            Kind::Text => None,
        }
    }
}

/// A line without its end.
#[derive(Debug, Clone)]
pub(super) struct Line<'a> {
    pub(super) range: Range<usize>,
    pub(super) text: &'a str,
    /// It is not the beginning of its line, which was too long: what begins it marks nothing.
    pub(super) continued: bool,
}

pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut at = 0;
    text.split_inclusive('\n').flat_map(move |line| {
        let start = at;
        at += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        pieces(line).map(move |piece| Line {
            text: &line[piece.clone()],
            continued: piece.start > 0,
            range: start + piece.start..start + piece.end,
        })
    })
}

/// Cuts a text into pieces within the bound, after white space where there is any. An empty text is one piece.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        if text.len() - from <= BLOCK_BYTES_MAX {
            start = None;
            return Some(from..text.len());
        }
        let limit = text.floor_char_boundary(from + BLOCK_BYTES_MAX);
        let window = &text[from..limit];
        let end = window
            .rfind(". ")
            .filter(|at| *at > BLOCK_BYTES_MAX / 2)
            .map(|at| at + 2)
            .or_else(|| window.rfind(char::is_whitespace).filter(|at| *at > 0))
            .map_or(limit, |at| text.ceil_char_boundary(from + at));
        start = Some(end);
        Some(from..end)
    })
}

/// Gathers lines into blocks.
#[derive(Debug)]
pub(super) struct Builder {
    clean: fn(&str) -> String,
    blocks: Vec<Block>,
    raw: String,
    range: Range<usize>,
}

impl Builder {
    /// `clean` takes the markup out of a whole paragraph, since a link may run over its lines.
    pub(super) fn new(clean: fn(&str) -> String) -> Self {
        Self { clean, blocks: Vec::new(), raw: String::new(), range: 0..0 }
    }

    /// No paragraph is open.
    pub(super) fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Adds a line to the open paragraph, or opens one.
    pub(super) fn push(&mut self, range: Range<usize>, line: &str) {
        let glued = glued(&self.raw, line);
        self.add(range, line, if self.raw.is_empty() || glued { "" } else { " " });
    }

    /// Adds text to the open paragraph as it stands.
    pub(super) fn append(&mut self, range: Range<usize>, text: &str) {
        self.add(range, text, "");
    }

    fn add(&mut self, range: Range<usize>, text: &str, between: &str) {
        if self.raw.len() + text.len() > BLOCK_BYTES_MAX {
            self.flush();
        }
        if self.raw.is_empty() {
            self.range = range;
        } else {
            self.range.end = range.end;
            self.raw.push_str(between);
        }
        self.raw.push_str(text);
    }

    /// Ends the open paragraph, if there is one.
    pub(super) fn flush(&mut self) {
        self.end_as(Kind::Text);
    }

    /// Ends the open paragraph, which turns out to be a heading.
    pub(super) fn flush_heading(&mut self, level: u8, end: usize) {
        self.range.end = end.max(self.range.start);
        self.end_as(Kind::Heading(level));
    }

    fn end_as(&mut self, kind: Kind) {
        let text = (self.clean)(&std::mem::take(&mut self.raw));
        if !text.is_empty() {
            self.blocks.push(Block { kind, range: self.range.clone(), text });
        }
    }

    /// Adds a heading.
    pub(super) fn heading(&mut self, level: u8, range: Range<usize>, text: &str) {
        self.flush();
        self.push(range.clone(), text);
        self.flush_heading(level, range.end);
    }

    /// Forgets the open paragraph.
    pub(super) fn discard(&mut self) {
        self.raw.clear();
    }

    pub(super) fn finish(mut self) -> Vec<Block> {
        self.flush();
        self.blocks
    }
}

/// Whether two lines belong together without a space, as in scripts that have none between words.
fn glued(before: &str, after: &str) -> bool {
    use crate::digest::sentence::is_unspaced;
    before.chars().next_back().is_some_and(is_unspaced) && after.chars().next().is_some_and(is_unspaced)
}

/// One space for each run of white space, none at the ends.
pub(super) fn collapse(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed
}

/// What follows the mark of a list item (`- `, `* `, `3. `, `b) `), which must be at the start.
pub(super) fn item(line: &str) -> Option<&str> {
    let rest = match line.strip_prefix(['-', '*', '+', '•']) {
        Some(rest) => rest,
        None => {
            let digits = line.bytes().take_while(u8::is_ascii_digit).count();
            let lettered = digits == 0 && line.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
            match digits {
                1..=9 => line[digits..].strip_prefix(['.', ')'])?,
                0 if lettered => line[1..].strip_prefix(')')?,
                _ => return None,
            }
        }
    };
    (rest.is_empty() || rest.starts_with([' ', '\t'])).then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_items_lose_their_marks() {
        for (line, expected) in [
            ("- one", Some("one")),
            ("12. twelve", Some("twelve")),
            ("b) second", Some("second")),
            ("-flag", None),
            ("1.5 litres", None),
            ("**bold** text", None),
            ("1234567890. no", None),
        ] {
            assert_eq!(item(line), expected, "{line}");
        }
    }

    #[test]
    fn pieces_cover_everything_once() {
        let text = "áb ".repeat(BLOCK_BYTES_MAX);
        let mut at = 0;
        for piece in pieces(&text) {
            assert_eq!(piece.start, at);
            assert!(piece.len() <= BLOCK_BYTES_MAX && !piece.is_empty());
            at = piece.end;
        }
        assert_eq!(at, text.len());
    }
}
