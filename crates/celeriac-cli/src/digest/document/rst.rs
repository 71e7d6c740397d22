//! reStructuredText: headings by underlines, directives, literal blocks.

use super::block::{Block, Builder, Line, item, lines};

/// Directives whose content is prose; the content of any other is code, a picture or a table of contents.
const PROSE: [&str; 14] = [
    "attention",
    "caution",
    "danger",
    "deprecated",
    "error",
    "hint",
    "important",
    "note",
    "rubric",
    "seealso",
    "tip",
    "versionadded",
    "versionchanged",
    "warning",
];

pub(super) fn blocks(text: &str) -> Vec<Block> {
    let lines: Vec<Line<'_>> = lines(text).collect();
    let mut builder = Builder::new(inline);
    // Levels are given to the styles of underlines in the order in which they appear.
    let mut styles: Vec<(char, bool)> = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let trimmed = line.text.trim();
        let indent = indent(line);
        if trimmed.is_empty() {
            builder.flush();
            at += 1;
            continue;
        }
        if line.continued {
            builder.push(line.range.clone(), trimmed);
            at += 1;
            continue;
        }
        if builder.is_empty()
            && let Some((style, title, range)) = heading(&lines[at..])
        {
            let level = styles.iter().position(|known| *known == style).unwrap_or_else(|| {
                styles.push(style);
                styles.len() - 1
            });
            let taken = if style.1 { 3 } else { 2 };
            builder.heading(u8::try_from(level + 1).unwrap_or(u8::MAX), range, title);
            at += taken;
            continue;
        }
        if underline(trimmed).is_some() || is_table_border(trimmed) {
            builder.flush();
            at += 1;
            // The rows between the borders of a table are data.
            if is_table_border(trimmed) {
                at += lines[at..].iter().take_while(|line| !line.text.trim().is_empty()).count();
            }
            continue;
        }
        if let Some(markup) =
            trimmed.strip_prefix("..").filter(|rest| rest.is_empty() || rest.starts_with(' '))
        {
            builder.flush();
            at += 1;
            match prose_directive(markup) {
                Some("") => {}
                Some(argument) => builder.push(line.range.clone(), argument),
                None => at += indented(&lines[at..], indent),
            }
            continue;
        }
        if trimmed.starts_with(":") && is_field(trimmed) {
            builder.flush();
            at += 1;
            continue;
        }
        at += 1;
        let rest = item(trimmed);
        if rest.is_some() {
            builder.flush();
        }
        // A term, deeper what it means, and then the next term.
        if at >= 2 && !builder.is_empty() && rest.is_none() && !is_same_paragraph(&lines[at - 2], indent) {
            builder.flush();
        }
        let content = rest.unwrap_or(trimmed);
        let Some(before) = content.strip_suffix("::") else {
            builder.push(line.range.clone(), content);
            continue;
        };
        if !before.trim().is_empty() {
            builder.push(line.range.clone(), &format!("{before}:"));
        }
        builder.flush();
        at += indented(&lines[at..], indent);
    }
    builder.finish()
}

/// Whether a line of that indentation goes on with the one above it.
fn is_same_paragraph(above: &Line<'_>, below: usize) -> bool {
    let is_marked = item(above.text.trim()).is_some() || above.text.trim().starts_with("..");
    indent(above) == below || (is_marked && indent(above) < below)
}

fn indent(line: &Line<'_>) -> usize {
    line.text.len() - line.text.trim_start().len()
}

/// How many lines belong to a block that is indented deeper than `indent`, blank lines within it included.
fn indented(lines: &[Line<'_>], than: usize) -> usize {
    lines
        .iter()
        .take_while(|line| line.text.trim().is_empty() || line.continued || indent(line) > than)
        .count()
}

/// The style, title and extent of a heading that begins here.
fn heading<'a>(lines: &[Line<'a>]) -> Option<((char, bool), &'a str, std::ops::Range<usize>)> {
    let first = lines.first()?;
    if let Some(over) = underline(first.text.trim_end()) {
        let [_, title, under, ..] = lines else { return None };
        let is_heading = underline(under.text.trim_end()) == Some(over) && !title.text.trim().is_empty();
        return is_heading.then(|| ((over.0, true), title.text.trim(), first.range.start..under.range.end));
    }
    let under = lines.get(1)?;
    let (mark, length) = underline(under.text.trim_end())?;
    let title = first.text.trim_end();
    // An underline may be a little short, as docutils only warns of it.
    let is_heading = indent(first) == 0 && length + 3 > title.chars().count();
    is_heading.then_some(((mark, false), title, first.range.start..under.range.end))
}

/// The mark and length of a line that is nothing but one punctuation mark.
fn underline(line: &str) -> Option<(char, usize)> {
    let mark = line.chars().next().filter(|c| c.is_ascii_punctuation())?;
    (line.len() >= 3 && line.chars().all(|c| c == mark)).then_some((mark, line.len()))
}

fn is_table_border(line: &str) -> bool {
    let grid =
        line.starts_with('+') && line.ends_with('+') && line.chars().all(|c| matches!(c, '+' | '-' | '='));
    let simple = line.contains(' ') && line.starts_with("==") && line.chars().all(|c| matches!(c, '=' | ' '));
    grid && line.len() > 2 || simple
}

fn prose_directive(markup: &str) -> Option<&str> {
    let (name, argument) = markup.split_once("::")?;
    PROSE.contains(&name.trim()).then(|| argument.trim())
}

/// `:author: …`, a field of a list of fields, rather than a role that begins a sentence.
fn is_field(line: &str) -> bool {
    line[1..].split_once(':').is_some_and(|(name, rest)| {
        !name.is_empty() && !name.contains('`') && (rest.is_empty() || rest.starts_with(' '))
    })
}

fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        if let Some(code) = rest.strip_prefix("``") {
            if let Some(end) = code.find("``") {
                let code = code[..end].replace('`', "'");
                out.push_str(&format!("`{code}`"));
                at += end + 4;
                continue;
            }
            out.push_str(code);
            break;
        }
        match c {
            '`' => {
                let Some(end) = rest[1..].find('`') else {
                    out.push_str(&rest[1..]);
                    break;
                };
                let inner = &rest[1..1 + end];
                let is_role = out.ends_with(':');
                if is_role {
                    drop_role(&mut out);
                }
                // "text <target>" shows its text; "~module.name" its last part.
                let shown = inner.split_once(" <").map_or(inner, |(shown, _)| shown);
                let shown = match shown.strip_prefix('~') {
                    Some(path) => path.rsplit('.').next().unwrap_or(path),
                    None => shown.trim_start_matches('!'),
                };
                let tick = if is_role { "`" } else { "" };
                out.extend([tick, shown, tick]);
                at += end + 2;
                at += text[at..].bytes().take(2).take_while(|b| *b == b'_').count();
            }
            '*' => {
                let run = rest.bytes().take_while(|b| *b == b'*').count();
                let space = |c: Option<char>| c.is_none_or(char::is_whitespace);
                if space(out.chars().next_back()) && space(rest[run..].chars().next()) {
                    out.push_str(&rest[..run]);
                }
                at += run;
            }
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| !c.is_whitespace());
                out.extend(escaped);
                at += 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
            }
            _ => {
                out.push(c);
                at += c.len_utf8();
            }
        }
    }
    super::block::collapse(&out)
}

/// Takes `:ref:` or `:py:class:` off the end.
fn drop_role(out: &mut String) {
    let start =
        out.char_indices().rev().take_while(|(_, c)| c.is_alphanumeric() || matches!(c, ':' | '-' | '_'));
    if let Some((at, _)) = start.last() {
        out.truncate(at);
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Kind;
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<_> = blocks(text)
            .into_iter()
            .map(|block| match block.kind {
                Kind::Heading(level) => format!("h{level} {}", block.text),
                Kind::Text => block.text,
            })
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn headings_rank_by_first_appearance() {
        let text =
            "=====\nTitle\n=====\n\nIntro.\n\nPart\n====\n\nText.\n\nSub\n---\n\nMore.\n\nNext\n====\nEnd.\n";
        check(text, &["h1 Title", "Intro.", "h2 Part", "Text.", "h3 Sub", "More.", "h2 Next", "End."]);
    }

    #[test]
    fn code_and_directives_are_left_out() {
        check("Like this::\n\n    code\n\n    code\n\nAfter.\n", &["Like this:", "After."]);
        check(".. code-block:: python\n   :linenos:\n\n   x = 1\n\nAfter.\n", &["After."]);
        check(".. note::\n\n   Mind the gap.\n\nAfter.\n", &["Mind the gap.", "After."]);
        check(".. _label:\n\n.. comment\n   goes on\n\nAfter.\n", &["After."]);
        check(":Author: Me\n\nText.\n", &["Text."]);
    }

    #[test]
    fn lists_and_definitions() {
        check("- one\n  goes on\n- two\n", &["one goes on", "two"]);
        check(
            "Lease\n    A time\n    to hold.\nQueue\n    A line.\n",
            &["Lease", "A time to hold.", "Queue", "A line."],
        );
    }

    #[test]
    fn tables_are_left_out() {
        check("=== ===\na   b\n=== ===\n1   2\n=== ===\n\nAfter.\n", &["After."]);
        check("+---+---+\n| a | b |\n+---+---+\n\nAfter.\n", &["After."]);
    }

    #[test]
    fn inline_markup_goes() {
        for (text, expected) in [
            ("see :ref:`the guide <guide>` and :class:`~celery.app.Task`.", "see `the guide` and `Task`."),
            ("a `link <https://e.org>`_ and ``code x``", "a link and `code x`"),
            ("**bold** *em* a * b", "bold em a * b"),
            ("un``closed", "unclosed"),
        ] {
            assert_eq!(inline(text), expected, "{text}");
        }
    }
}
