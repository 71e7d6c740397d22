//! HTML: tags are dropped, some of them end a paragraph. No tree is built; prose needs none.

use super::block::{Block, Builder, collapse, pieces};

/// Elements without prose in them.
const DROPPED: [&str; 9] =
    ["script", "style", "template", "svg", "noscript", "pre", "nav", "select", "textarea"];

/// Elements that stay within a paragraph; every other tag ends it.
const INLINE: [&str; 26] = [
    "a", "abbr", "b", "bdi", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "u", "wbr",
];

/// The content of `<title>`, and the blocks.
pub(super) fn blocks(text: &str) -> (Option<String>, Vec<Block>) {
    let mut builder = Builder::new(clean);
    let mut title: Option<String> = None;
    let mut in_title = false;
    let mut heading: Option<u8> = None;
    let mut at = 0;
    while at < text.len() {
        let run = tag_start(text, at);
        if run > at {
            for piece in pieces(&text[at..run]) {
                let range = at + piece.start..at + piece.end;
                let shown = &text[range.clone()];
                if in_title {
                    title.get_or_insert_default().push_str(shown);
                } else if !(builder.is_empty() && shown.trim().is_empty()) {
                    builder.append(range, shown);
                }
            }
        }
        if run == text.len() {
            break;
        }
        let rest = &text[run..];
        if rest.starts_with("<!--") {
            at = rest.find("-->").map_or(text.len(), |end| run + end + 3);
            continue;
        }
        let Some(end) = rest.find('>') else { break };
        at = run + end + 1;
        let closes = rest.starts_with("</");
        let name: String = rest[1..end]
            .trim_start_matches('/')
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        match name.as_str() {
            "title" => in_title = !closes && title.is_none(),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                let level = name.as_bytes()[1] - b'0';
                match heading.take() {
                    Some(open) => builder.flush_heading(open, run),
                    None => builder.flush(),
                }
                heading = (!closes).then_some(level);
            }
            dropped if !closes && DROPPED.contains(&dropped) => {
                builder.flush();
                at = closing_tag(text, at, dropped);
            }
            inline if INLINE.contains(&inline) => {}
            // A heading that is laid out over several elements is still one.
            _ if heading.is_some() => builder.append(run..run, " "),
            _ => builder.flush(),
        }
    }
    (title.map(|title| clean(&title)), builder.finish())
}

/// Where the next tag or comment begins, or the end.
fn tag_start(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    (from..bytes.len())
        .find(|at| {
            bytes[*at] == b'<'
                && bytes
                    .get(at + 1)
                    .is_some_and(|next| next.is_ascii_alphabetic() || matches!(next, b'/' | b'!' | b'?'))
        })
        .unwrap_or(bytes.len())
}

/// Where the closing tag of an element begins, or the end.
fn closing_tag(text: &str, from: usize, name: &str) -> usize {
    let bytes = text.as_bytes();
    (from..bytes.len())
        .find(|at| {
            bytes[*at..].starts_with(b"</")
                && bytes
                    .get(at + 2..at + 2 + name.len())
                    .is_some_and(|b| b.eq_ignore_ascii_case(name.as_bytes()))
        })
        .unwrap_or(bytes.len())
}

fn clean(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        let (c, length) = entity(&rest[at..]).unwrap_or(('&', 1));
        decoded.push(c);
        rest = &rest[at + length..];
    }
    decoded.push_str(rest);
    collapse(&decoded)
}

/// The character that a reference such as `&amp;` or `&#8212;` at the start stands for, and its length.
pub(super) fn entity(text: &str) -> Option<(char, usize)> {
    const LENGTH_MAX: usize = 10;
    let end = text.bytes().take(LENGTH_MAX).position(|b| b == b';')?;
    let name = &text[1..end];
    let c = match name.strip_prefix('#') {
        Some(number) => {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code).filter(|c| !c.is_control()).unwrap_or(' ')
        }
        None => match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            "nbsp" => ' ',
            "copy" => '©',
            "mdash" => '—',
            "ndash" => '–',
            "hellip" => '…',
            "lsquo" => '‘',
            "rsquo" => '’',
            "ldquo" => '“',
            "rdquo" => '”',
            "laquo" => '«',
            "raquo" => '»',
            "times" => '×',
            _ => return None,
        },
    };
    Some((c, end + 1))
}

#[cfg(test)]
mod tests {
    use super::super::block::Kind;
    use super::*;

    #[test]
    fn tags_go_and_paragraphs_stay() {
        let (title, blocks) = blocks(
            "<!doctype html><html><head><title>The &amp; title</title><style>p > a {}</style></head><body>\
             <h1>Big <em>one</em></h1><p>First <a href='x'>par</a>agraph,\n 1 < 2.</p><SCRIPT>no()</Script>\
             <!-- <p>no</p> --><ul><li>One<li>Two</ul><pre>code</pre><h2><div>Sub</div></h2>Loose &#8212; text",
        );
        assert_eq!(title.as_deref(), Some("The & title"));
        let shown: Vec<_> = blocks.iter().map(|block| (block.kind, block.text.as_str())).collect();
        assert_eq!(
            shown,
            [
                (Kind::Heading(1), "Big one"),
                (Kind::Text, "First paragraph, 1 < 2."),
                (Kind::Text, "One"),
                (Kind::Text, "Two"),
                (Kind::Heading(2), "Sub"),
                (Kind::Text, "Loose — text"),
            ]
        );
    }

    #[test]
    fn broken_markup_is_text_or_nothing() {
        for text in ["<", "<a", "<!--", "<script>", "</", "&", "&#x110000;", "&#0;", "a <b"] {
            blocks(text);
        }
        assert_eq!(blocks("1 < 2 & 3").1[0].text, "1 < 2 & 3");
    }
}
