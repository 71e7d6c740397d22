//! A document and its sections.
//!
//! One parser for each format turns text into blocks (headings and paragraphs, free of markup); what follows is the
//! same for all: blocks are gathered into sections, a heading begins one, and a section that grows past its bound goes
//! on as a further part.

mod block;
mod html;
mod markdown;
mod rst;

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use block::{Block, Kind};

/// The text of a section at most, in bytes: about 150 lines. Long enough for a summary to have something to choose
/// from, short enough for a long document to be many tasks.
const SECTION_BYTES_MAX: usize = 12 << 10;

/// Headings that begin a section, in one document; those after are read as text. Without it a file of nothing but
/// headings would be a million sections.
const HEADINGS_MAX: usize = 500;

/// The longest title kept, in characters.
const TITLE_CHARS_MAX: usize = 160;

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Markdown: `.md`, `.markdown`.
    Markdown,
    /// reStructuredText: `.rst`.
    Rst,
    /// HTML: `.html`, `.htm`.
    Html,
    /// Anything else: `.txt`.
    Plain,
}

impl Format {
    /// The format that belongs to a file name; `None` when it is not one of a document.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "md" | "markdown" => Some(Self::Markdown),
            "rst" => Some(Self::Rst),
            "html" | "htm" => Some(Self::Html),
            "txt" | "text" => Some(Self::Plain),
            _ => None,
        }
    }
}

/// A document, read and split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its path below the folder that was walked.
    pub name: String,
    /// Its own title, or its name.
    pub title: String,
    /// Its sections in order; none is without text.
    pub sections: Vec<Section>,
}

/// A part of a document under one heading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The heading, or the document's title for what stands before the first one.
    pub title: String,
    /// The depth of the heading: 1 is the document's own, 0 means that there was none.
    pub level: u8,
    /// Counts the parts of a section that was too long for one, from 1.
    pub part: u32,
    /// Where it stands in the file, in bytes, heading included.
    pub range: Range<usize>,
    /// Its prose without markup: a paragraph, list item or long table cell a line. Code is left out.
    pub text: String,
}

/// Splits `text` into sections. Never fails: whatever is not understood is text.
#[must_use]
pub fn parse(name: &str, format: Format, text: &str) -> Document {
    // The mark of byte order that some editors write is not text, yet it counts in the ranges.
    let (offset, text) =
        text.strip_prefix('\u{feff}').map_or((0, text), |rest| (text.len() - rest.len(), rest));
    let (declared, blocks) = match format {
        Format::Markdown => markdown::blocks(text),
        Format::Rst => (None, rst::blocks(text)),
        Format::Html => html::blocks(text),
        Format::Plain => (None, plain(text)),
    };
    // Several headings of the first rank, as in a list of changes, are chapters and none of them is the title.
    let heading = || {
        let mut headings = blocks.iter().filter(|block| block.heading() == Some(1));
        let title = headings.next().map(|block| block.text.clone());
        title.filter(|_| headings.next().is_none())
    };
    let stem =
        || Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into());
    let title = declared.filter(|title| !title.is_empty()).or_else(heading).unwrap_or_else(stem);
    let title = shorten(&title);
    let sections = sections(&title, offset, blocks);
    Document { name: name.to_owned(), title, sections }
}

fn plain(text: &str) -> Vec<Block> {
    let mut builder = block::Builder::new(block::collapse);
    for line in block::lines(text) {
        let trimmed = line.text.trim();
        if trimmed.is_empty() {
            builder.flush();
            continue;
        }
        if !line.continued && block::item(trimmed).is_some() {
            builder.flush();
        }
        builder.push(line.range, trimmed);
    }
    builder.finish()
}

fn sections(document_title: &str, offset: usize, blocks: Vec<Block>) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut headings = 0;
    let fresh = |title: String, level, part, at: usize| Section {
        title,
        level,
        part,
        range: at..at,
        text: String::new(),
    };
    let mut current = fresh(document_title.to_owned(), 0, 1, offset);
    for block in blocks {
        let range = block.range.start + offset..block.range.end + offset;
        match block.kind {
            Kind::Heading(level) if headings < HEADINGS_MAX => {
                headings += 1;
                let next = fresh(shorten(&block.text), level, 1, range.start);
                keep(&mut sections, std::mem::replace(&mut current, next));
            }
            Kind::Heading(_) | Kind::Text => {
                if !current.text.is_empty() && current.text.len() + block.text.len() >= SECTION_BYTES_MAX {
                    let next = fresh(current.title.clone(), current.level, current.part + 1, range.start);
                    keep(&mut sections, std::mem::replace(&mut current, next));
                }
                if current.text.is_empty() && current.level == 0 && current.part == 1 {
                    current.range.start = range.start;
                }
                if !current.text.is_empty() {
                    current.text.push('\n');
                }
                current.text.push_str(&block.text);
            }
        }
        current.range.end = range.end;
    }
    keep(&mut sections, current);
    sections
}

fn keep(sections: &mut Vec<Section>, section: Section) {
    if section.text.chars().any(char::is_alphanumeric) {
        sections.push(section);
    }
}

fn shorten(title: &str) -> String {
    match title.char_indices().nth(TITLE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", title[..at].trim_end()),
        None => title.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(document: &Document) -> Vec<(&str, u8, &str)> {
        document.sections.iter().map(|s| (s.title.as_str(), s.level, s.text.as_str())).collect()
    }

    #[test]
    fn text_without_headings_is_one_section_named_after_the_file() {
        let document =
            parse("notes/today.txt", Format::Plain, "One line\nand its end.\n\nAnother.\n- item\n");
        assert_eq!(document.title, "today");
        assert_eq!(outline(&document), [("today", 0, "One line and its end.\nAnother.\n- item")]);
        assert_eq!(document.sections[0].range, 0..38);
    }

    #[test]
    fn the_title_is_the_only_first_heading() {
        let title = |text| parse("notes.md", Format::Markdown, text).title;
        assert_eq!(title("## Sub\n\na\n\n# One\n\nb\n"), "One");
        assert_eq!(title("# One\n\na\n\n# Two\n\nb\n"), "notes");
        assert_eq!(title("---\ntitle: Declared\n---\n\n# One\n\na\n"), "Declared");
    }

    #[test]
    fn ranges_cut_the_file_where_the_sections_are() {
        let text = "\u{feff}# Title\r\n\r\nIntro text.\r\n\r\n## Sub\r\n\r\nMore text.\r\n";
        let document = parse("a.md", Format::Markdown, text);
        assert_eq!(document.title, "Title");
        assert_eq!(outline(&document), [("Title", 1, "Intro text."), ("Sub", 2, "More text.")]);
        let cut: Vec<_> = document.sections.iter().map(|s| &text[s.range.clone()]).collect();
        assert_eq!(cut, ["# Title\r\n\r\nIntro text.", "## Sub\r\n\r\nMore text."]);
    }

    #[test]
    fn a_long_section_goes_on_in_parts() {
        let paragraph = format!("{}\n\n", "word ".repeat(200));
        let text = format!("# Long\n\n{}", paragraph.repeat(30));
        let document = parse("a.md", Format::Markdown, &text);
        let parts: Vec<_> = document.sections.iter().map(|s| (s.title.as_str(), s.part)).collect();
        assert_eq!(parts, [("Long", 1), ("Long", 2), ("Long", 3)]);
        assert!(document.sections.iter().all(|s| s.text.len() <= SECTION_BYTES_MAX));
        assert!(document.sections.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }

    #[test]
    fn one_huge_line_is_cut_and_nothing_is_lost() {
        for format in [Format::Plain, Format::Markdown, Format::Rst, Format::Html] {
            let text = "Zażółć gęślą jaźń. ".repeat(20_000);
            let document = parse("a", format, &text);
            assert!(document.sections.iter().all(|s| s.text.len() <= SECTION_BYTES_MAX), "{format:?}");
            let words: usize = document.sections.iter().map(|s| s.text.split_whitespace().count()).sum();
            assert_eq!(words, 60_000, "{format:?}");
            assert!(document.sections.iter().all(|s| text.get(s.range.clone()).is_some()), "{format:?}");
        }
        // Not one place to cut at.
        let document = parse("a", Format::Plain, &"é".repeat(100_000));
        let chars: usize =
            document.sections.iter().map(|s| s.text.chars().filter(|c| *c == 'é').count()).sum();
        assert_eq!(chars, 100_000);
    }

    #[test]
    fn headings_without_end_are_bounded() {
        let document = parse("a.md", Format::Markdown, &"# a\nb\n".repeat(100_000));
        assert!(document.sections.len() < HEADINGS_MAX + 200, "{}", document.sections.len());
    }

    #[test]
    fn nothing_gives_nothing() {
        for format in [Format::Plain, Format::Markdown, Format::Rst, Format::Html] {
            assert_eq!(parse("a", format, "").sections, []);
            assert_eq!(parse("a", format, "\u{feff}\r\n\r\n---\n***\n").sections, [], "{format:?}");
        }
    }
}
