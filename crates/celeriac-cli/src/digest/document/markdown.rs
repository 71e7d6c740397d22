//! Markdown: enough of CommonMark and of GitHub's tables to tell prose from the rest.

use super::block::{Block, Builder, item, lines};
use super::html;

/// A table cell of at least so many words is read as a sentence; the rest of a table is data, not prose.
const CELL_WORDS_MIN: usize = 8;

/// How far the end of a code span, tag or link target is looked for, in bytes. It keeps hostile text linear.
const LOOKAHEAD_BYTES: usize = 400;

/// The title of the front matter, and the blocks.
pub(super) fn blocks(text: &str) -> (Option<String>, Vec<Block>) {
    let (title, body) = front_matter(text);
    let mut builder = Builder::new(inline);
    let mut fence: Option<(char, usize)> = None;
    let mut comment = false;
    let mut table = false;
    let mut in_list = false;
    let mut after_blank = true;

    for line in lines(&text[body..]) {
        let range = line.range.start + body..line.range.end + body;
        let was_after_blank = std::mem::replace(&mut after_blank, false);
        let trimmed = line.text.trim();
        if let Some((mark, length)) = fence {
            let run = trimmed.chars().take_while(|c| *c == mark).count();
            if run >= length && trimmed.chars().all(|c| c == mark) {
                fence = None;
            }
            continue;
        }
        if comment {
            comment = !trimmed.contains("-->");
            continue;
        }
        if line.continued {
            builder.push(range, trimmed);
            continue;
        }
        if trimmed.is_empty() {
            builder.flush();
            table = false;
            after_blank = true;
            continue;
        }
        let indent = line.text.len() - line.text.trim_start().len();
        let indented_code = indent >= 4 || line.text.starts_with('\t');
        if indented_code && was_after_blank && !in_list {
            after_blank = true;
            continue;
        }
        if let Some(opened) = opens_fence(trimmed) {
            builder.flush();
            fence = Some(opened);
            continue;
        }
        if trimmed.starts_with("<!--") {
            builder.flush();
            comment = !trimmed.contains("-->");
            continue;
        }
        if indent < 4
            && let Some((level, title)) = atx(trimmed)
        {
            builder.heading(level, range, title);
            in_list = false;
            continue;
        }
        if let Some(level) = setext(trimmed) {
            if builder.is_empty() || in_list {
                builder.flush();
            } else {
                builder.flush_heading(level, range.end);
            }
            continue;
        }
        if is_thematic_break(trimmed) {
            builder.flush();
            continue;
        }
        if is_delimiter_row(trimmed) {
            // What stands above it is the table's head.
            builder.discard();
            table = true;
            continue;
        }
        if trimmed.starts_with('|') || (table && trimmed.contains('|')) {
            if table {
                for cell in cells(trimmed).filter(|cell| cell.split_whitespace().count() >= CELL_WORDS_MIN) {
                    builder.flush();
                    builder.push(range.clone(), cell);
                }
                builder.flush();
            } else {
                builder.flush();
                table = true;
            }
            continue;
        }
        table = false;
        let unquoted = trimmed.trim_start_matches(['>', ' ']).trim_start();
        if unquoted.is_empty() || (unquoted.starts_with("[!") && unquoted.ends_with(']')) {
            builder.flush();
            continue;
        }
        if let Some(rest) = item(unquoted) {
            builder.flush();
            in_list = true;
            let rest =
                ["[ ] ", "[x] ", "[X] "].iter().find_map(|mark| rest.strip_prefix(mark)).unwrap_or(rest);
            builder.push(range, rest);
            continue;
        }
        if was_after_blank && indent == 0 {
            in_list = false;
        }
        if builder.is_empty() && is_reference(unquoted) {
            continue;
        }
        builder.push(range, unquoted);
    }
    (title, builder.finish())
}

/// The title that YAML or TOML before the text declares, and where the text begins.
fn front_matter(text: &str) -> (Option<String>, usize) {
    const LINES_MAX: usize = 200;
    let mut all = lines(text);
    let Some(mark) = all.next().map(|line| line.text.trim_end()).filter(|line| ["---", "+++"].contains(line))
    else {
        return (None, 0);
    };
    let mut title = None;
    for line in all.take(LINES_MAX) {
        let content = line.text.trim_end();
        if content == mark || (mark == "---" && content == "...") {
            return (title, line.range.end);
        }
        if let Some((key, value)) = content.split_once([':', '='])
            && key.trim() == "title"
        {
            title = Some(value.trim().trim_matches(['"', '\'']).to_owned());
        }
    }
    (None, 0)
}

fn opens_fence(line: &str) -> Option<(char, usize)> {
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let length = line.chars().take_while(|c| *c == mark).count();
    // "```x```" on one line is a code span, not a fence.
    (length >= 3 && !(mark == '`' && line[length..].contains('`'))).then_some((mark, length))
}

fn atx(line: &str) -> Option<(u8, &str)> {
    let level = line.bytes().take_while(|b| *b == b'#').count();
    let rest = &line[level..];
    if !(1..=6).contains(&level) || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    let title = rest.trim();
    let without = title.trim_end_matches('#');
    let title = if without.is_empty() || without.ends_with([' ', '\t']) { without.trim_end() } else { title };
    Some((u8::try_from(level).unwrap_or(6), title))
}

fn setext(line: &str) -> Option<u8> {
    match line.as_bytes() {
        [b'=', rest @ ..] if rest.iter().all(|b| *b == b'=') => Some(1),
        [b'-', b'-', rest @ ..] if rest.iter().all(|b| *b == b'-') => Some(2),
        _ => None,
    }
}

fn is_thematic_break(line: &str) -> bool {
    let mut marks = line.chars().filter(|c| !c.is_whitespace());
    let Some(mark) = marks.next().filter(|c| matches!(c, '*' | '-' | '_')) else { return false };
    let mut more = 0;
    marks.all(|c| {
        more += 1;
        c == mark
    }) && more >= 2
}

fn is_delimiter_row(line: &str) -> bool {
    line.contains('|')
        && line.contains('-')
        && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' ' | '\t'))
}

fn is_reference(line: &str) -> bool {
    line.starts_with('[') && line.split_once("]:").is_some_and(|(label, _)| !label[1..].contains('['))
}

fn cells(row: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    row.split(move |c| {
        let is_end = c == '|' && !escaped;
        escaped = c == '\\' && !escaped;
        is_end
    })
    .map(str::trim)
}

/// A paragraph without markup. Code spans keep one backtick at either end: a command is easier to read so.
fn inline(text: &str) -> String {
    let closing = matching_brackets(text);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let mut skip_closing: Vec<(usize, usize)> = Vec::new();
    while let Some(c) = text[at..].chars().next() {
        // The closing half of a link whose text is being copied.
        if let Some((_, resume)) = skip_closing.pop_if(|(end, _)| *end == at) {
            at = resume;
            continue;
        }
        let rest = &text[at..];
        let next = at + c.len_utf8();
        match c {
            '\\' => {
                let escaped = text[next..].chars().next().filter(char::is_ascii_punctuation);
                out.push(escaped.unwrap_or('\\'));
                at = next + escaped.map_or(0, char::len_utf8);
            }
            '`' => {
                let run = rest.bytes().take_while(|b| *b == b'`').count();
                match code_end(&rest[run..], run) {
                    Some(end) => {
                        let code = rest[run..run + end].trim().replace('`', "'");
                        if !code.is_empty() {
                            out.push('`');
                            out.push_str(&code);
                            out.push('`');
                        }
                        at += run + end + run;
                    }
                    None => at += run,
                }
            }
            '!' if rest.starts_with("![") => match closing[next].map(|end| link_end(text, end)) {
                Some(Some(end)) => at = end,
                _ => {
                    out.push('!');
                    at = next;
                }
            },
            '[' => match closing[at] {
                Some(end) if rest.starts_with("[^") => at = end + 1,
                Some(end) => match link_end(text, end) {
                    Some(resume) => {
                        skip_closing.push((end, resume));
                        at = next;
                    }
                    None => {
                        out.push('[');
                        at = next;
                    }
                },
                None => {
                    out.push('[');
                    at = next;
                }
            },
            '<' => match tag(rest) {
                Some((shown, length)) => {
                    out.push_str(shown);
                    at += length;
                }
                None => {
                    out.push('<');
                    at = next;
                }
            },
            '&' => {
                let (decoded, length) = html::entity(rest).unwrap_or(('&', 1));
                out.push(decoded);
                at += length;
            }
            '*' | '_' | '~' => {
                let run = rest.chars().take_while(|other| *other == c).count();
                if !is_emphasis(c, run, out.chars().next_back(), rest[run..].chars().next()) {
                    out.push_str(&rest[..run]);
                }
                at += run;
            }
            _ => {
                out.push(c);
                at = next;
            }
        }
    }
    super::block::collapse(&out)
}

fn code_end(text: &str, run: usize) -> Option<usize> {
    let window = &text[..text.floor_char_boundary(LOOKAHEAD_BYTES)];
    let mut at = 0;
    while let Some(found) = window[at..].find('`') {
        let start = at + found;
        let length = window[start..].bytes().take_while(|b| *b == b'`').count();
        if length == run {
            return Some(start);
        }
        at = start + length;
    }
    None
}

/// For each `[`, where its `]` is; found in one pass, with code spans passed over.
fn matching_brackets(text: &str) -> Vec<Option<usize>> {
    let mut closing = vec![None; text.len() + 1];
    let mut open = Vec::new();
    let mut code = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b'`' => code = !code,
            b'[' if !escaped && !code => open.push(at),
            b']' if !escaped && !code => {
                if let Some(start) = open.pop() {
                    closing[start] = Some(at);
                }
            }
            _ => {}
        }
        escaped = false;
    }
    closing
}

/// Where a link ends whose text ends with the `]` at `end`; `None` when these are mere brackets.
fn link_end(text: &str, end: usize) -> Option<usize> {
    let rest = &text[end + 1..];
    let window = &rest[..rest.floor_char_boundary(LOOKAHEAD_BYTES)];
    if window.starts_with('(') {
        let mut depth = 0_usize;
        for (at, byte) in window.bytes().enumerate() {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(end + 1 + at + 1);
            }
        }
        None
    } else if window.starts_with('[') {
        window.find(']').map(|at| end + 1 + at + 1)
    } else {
        None
    }
}

/// What is shown of a tag or an address in angle brackets, and how long it is.
fn tag(text: &str) -> Option<(&str, usize)> {
    let window = &text[..text.floor_char_boundary(LOOKAHEAD_BYTES)];
    let end = window.find('>')?;
    let inner = &window[1..end];
    let first = inner.chars().next()?;
    if inner.contains('<') || !(first.is_ascii_alphabetic() || matches!(first, '/' | '!')) {
        return None;
    }
    let is_address = !inner.contains(char::is_whitespace) && (inner.contains("://") || inner.contains('@'));
    let is_break = inner.trim_end_matches(['/', ' ']).eq_ignore_ascii_case("br");
    Some((
        if is_address {
            inner
        } else if is_break {
            " "
        } else {
            ""
        },
        end + 1,
    ))
}

fn is_emphasis(mark: char, run: usize, before: Option<char>, after: Option<char>) -> bool {
    let space = |c: Option<char>| c.is_none_or(char::is_whitespace);
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    match mark {
        '~' => run == 2,
        _ if space(before) && space(after) => false,
        '_' => !(word(before) && word(after)),
        _ => !(before.is_some_and(|c| c.is_ascii_digit()) && after.is_some_and(|c| c.is_ascii_digit())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Kind;
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<_> = blocks(text)
            .1
            .into_iter()
            .map(|block| match block.kind {
                Kind::Heading(level) => format!("h{level} {}", block.text),
                Kind::Text => block.text,
            })
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn headings() {
        check("# One #\ntext\n## Two ##  \n", &["h1 One", "text", "h2 Two"]);
        check("Big\n===\ntext\n\nSmall *one*\n-----\nmore\n", &["h1 Big", "text", "h2 Small one", "more"]);
        check("text\n\n---\n\n***\nmore\n", &["text", "more"]);
        check("#hashtag\n####### seven\n", &["#hashtag ####### seven"]);
        check("# C#\n", &["h1 C#"]);
    }

    #[test]
    fn code_is_left_out() {
        check("before\n```rust\n# not a heading\n~~~\n```\nafter\n", &["before", "after"]);
        check("before\n~~~\n```\nx\n~~~~\nafter\n", &["before", "after"]);
        check("- item\n  ```\n  x\n  ```\n- next\n", &["item", "next"]);
        check("before\n\n    indented code\n\n    more code\n\nafter\n", &["before", "after"]);
        check("- item\n\n    its paragraph\n\nafter\n", &["item", "its paragraph", "after"]);
        check("open\n```\nfor ever\n", &["open"]);
        check("```one line``` is a span\n", &["`one line` is a span"]);
    }

    #[test]
    fn tables_give_their_long_cells() {
        let long = "this cell has as many words as a sentence has";
        check(&format!("| a | b |\n|---|---|\n| x | {long} |\n\nafter\n"), &[long, "after"]);
        check(&format!("a | b\n--|--\nx | {long}\n\nafter | not a table\n"), &[long, "after | not a table"]);
    }

    #[test]
    fn lists_quotes_and_comments() {
        check("1. one\n   goes on\n2) [x] two\n* three\n", &["one goes on", "two", "three"]);
        check("> [!NOTE]\n> quoted\n> on\n", &["quoted on"]);
        check("<!-- one -->\na\n<!--\nlong\n-->\nb\n", &["a", "b"]);
        check("text\n\n[ref]: https://example.org\n[^1]: note\n", &["text"]);
    }

    #[test]
    fn inline_markup_goes() {
        for (text, expected) in [
            ("a [link](https://e.org/x_(y)) b", "a link b"),
            ("a [link][ref] and [`code`](x) b", "a link and `code` b"),
            ("[![badge](a)](b) text", "text"),
            ("an ![image](x.png) here", "an here"),
            ("**bold** *em* _em_ snake_case 2*3 a * b ~~gone~~", "bold em em snake_case 2*3 a * b gone"),
            ("`` a`b `` and ` x `", "`a'b` and `x`"),
            ("a `code [not](link)` b", "a `code [not](link)` b"),
            ("<b>x</b> <https://e.org> a < b", "x https://e.org a < b"),
            ("Q&amp;A &copy \\*not em\\*", "Q&A &copy *not em*"),
            ("note[^1] an array[0] [open", "note an array[0] [open"),
        ] {
            assert_eq!(inline(text), expected, "{text}");
        }
    }

    #[test]
    fn front_matter_declares_the_title() {
        let (title, blocks) = blocks("---\ntitle: \"My notes\"\ntags: [a]\n---\n\ntext\n");
        assert_eq!(title.as_deref(), Some("My notes"));
        assert_eq!(blocks.len(), 1);
        check("---\nnot: closed\n\ntext\n", &["not: closed", "text"]);
    }

    #[test]
    fn hostile_text_ends_soon() {
        for piece in ["[", "![", "[](", "`", "`` ` ", "<a", "*", "_", "\\", "&", "|", "> "] {
            let text = piece.repeat(50_000);
            blocks(&text);
        }
    }
}
