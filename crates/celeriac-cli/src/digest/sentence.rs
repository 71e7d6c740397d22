//! Sentences and words, by rules that are good enough for choosing among sentences.
//!
//! Made for English and other languages in Latin script, and for Chinese and Japanese: there the full stops end a
//! sentence without a space after them, and pairs of characters stand in for words.

/// The longest sentence, in bytes; text without an end is cut at white space.
const SENTENCE_BYTES_MAX: usize = 1_000;

/// Words before a full stop that rarely end a sentence, in lower case and without that stop.
const ABBREVIATIONS: [&str; 38] = [
    "al", "approx", "bzw", "ca", "capt", "cf", "ch", "col", "corp", "dr", "e.g", "ed", "eds", "eq", "esp",
    "ex", "fig", "figs", "gen", "i.e", "jr", "mr", "mrs", "ms", "nr", "p", "pp", "prof", "resp", "rev",
    "sec", "sr", "st", "u.s", "v", "viz", "vol", "vs",
];

/// The sentences of a text, in order. A line break always ends one, since sections hold a paragraph a line.
///
/// Not split at: abbreviations and initials, decimals, addresses, inside code spans, inside parentheses that close.
pub fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| Sentences { rest: line, parentheses: is_balanced(line) })
}

struct Sentences<'a> {
    rest: &'a str,
    /// Whether parentheses are paired, so that what is inside them may be kept together.
    parentheses: bool,
}

impl<'a> Iterator for Sentences<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.is_empty() {
                return None;
            }
            let end = sentence_end(self.rest, self.parentheses);
            let (sentence, rest) = self.rest.split_at(end);
            self.rest = rest;
            let sentence = sentence.trim_end();
            if sentence.chars().any(char::is_alphanumeric) {
                return Some(sentence);
            }
        }
    }
}

fn sentence_end(text: &str, parentheses: bool) -> usize {
    let mut depth = 0_u32;
    let mut code = false;
    let mut last_space = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if at >= SENTENCE_BYTES_MAX {
            return last_space.unwrap_or(at);
        }
        match c {
            // A stray backtick opens nothing.
            '`' => code = !code && text[at + 1..].contains('`'),
            '(' if parentheses && !code => depth += 1,
            ')' if parentheses && !code => depth = depth.saturating_sub(1),
            _ if c.is_whitespace() => last_space = Some(at),
            _ => {}
        }
        if code || depth > 0 || !is_terminator(c) {
            continue;
        }
        let mut end = at + c.len_utf8();
        let mut after_mark = end;
        while let Some((next_at, next)) = chars.peek().copied() {
            if is_terminator(next) {
                after_mark = next_at + next.len_utf8();
            } else if !is_closer(next) {
                break;
            }
            end = next_at + next.len_utf8();
            chars.next();
        }
        let rest = &text[end..];
        if is_unspaced(c) || matches!(c, '。' | '！' | '？') {
            return end;
        }
        if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
            continue;
        }
        let single_stop = c == '.' && after_mark == at + 1;
        if ends_here(&text[..at], rest.trim_start(), single_stop) {
            return end;
        }
    }
    text.len()
}

/// Whether a mark between `before` and `after` ends a sentence.
fn ends_here(before: &str, after: &str, single_stop: bool) -> bool {
    // Code may begin a sentence, whatever letter it begins with.
    let Some(next) = after.chars().find(|c| *c == '`' || !is_opener(*c)) else { return true };
    if next.is_lowercase() {
        return false;
    }
    if !single_stop {
        return true;
    }
    let word = before.rsplit(|c: char| c.is_whitespace() || is_opener(c)).next().unwrap_or(before);
    let is_initial = word.chars().count() == 1 && word.chars().all(char::is_uppercase);
    // "1." at the very start is the number of an item.
    let is_number_of_item = word.len() == before.len() && word.chars().all(|c| c.is_ascii_digit());
    // "no. 5", "art. 3"; "no." before anything else is a whole word.
    let is_numbering = next.is_ascii_digit() && matches!(word.to_lowercase().as_str(), "no" | "art" | "nos");
    !(is_initial
        || is_number_of_item
        || is_numbering
        || ABBREVIATIONS.binary_search(&word.to_lowercase().as_str()).is_ok())
}

fn is_terminator(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '｡')
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '”' | '’' | '»' | '」' | '』' | '）' | '*' | '_')
}

fn is_opener(c: char) -> bool {
    matches!(c, '(' | '[' | '{' | '"' | '\'' | '“' | '‘' | '«' | '「' | '『' | '（' | '*' | '_' | '`')
}

fn is_balanced(text: &str) -> bool {
    let mut depth = 0_i64;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// The words of a text in lower case: runs of letters and digits, apostrophes inside them included, the genitive left out. In scripts without
/// spaces, each pair of neighbouring characters.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '\'' | '’' | '_')))
        .map(|run| run.trim_matches(['\'', '’', '_']))
        .map(|run| run.strip_suffix("'s").or_else(|| run.strip_suffix("’s")).unwrap_or(run))
        .filter(|run| !run.is_empty())
        .flat_map(|run| if run.chars().any(is_unspaced) { pairs(run) } else { vec![run.to_lowercase()] })
}

fn pairs(run: &str) -> Vec<String> {
    let mut words = Vec::new();
    let chars: Vec<char> = run.chars().collect();
    for stretch in chars.chunk_by(|a, b| is_unspaced(*a) == is_unspaced(*b)) {
        if !is_unspaced(stretch[0]) {
            words.push(stretch.iter().collect::<String>().to_lowercase());
        } else if stretch.len() == 1 {
            words.push(stretch[0].to_string());
        } else {
            words.extend(stretch.windows(2).map(|pair| pair.iter().collect::<String>()));
        }
    }
    words
}

/// Whether a character belongs to a script that has no spaces between words: Han, Hiragana, Katakana.
pub(super) fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// A word without its plural ending, so that `task` and `tasks` meet. English only, and deliberately weak: a stem is
/// compared, never shown.
#[must_use]
pub fn stem(word: &str) -> &str {
    if word.len() <= 3 || !word.is_ascii() {
        return word;
    }
    for keep in ["ss", "us", "is", "as", "os"] {
        if word.ends_with(keep) {
            return word;
        }
    }
    // "caches" is met more often than "approaches", which this leaves alone.
    let after_hiss = ["sses", "shes", "ches", "xes", "zes"].iter().any(|plural| word.ends_with(plural));
    if after_hiss && !word.ends_with("aches") {
        return &word[..word.len() - 2];
    }
    if word.len() > 4 && word.ends_with("ies") {
        // "queries" and "query" meet in "quer".
        return &word[..word.len() - 3];
    }
    if word.len() > 4 && word.ends_with('y') && !word.ends_with(['a', 'e', 'i', 'o', 'u']) {
        let before = word.as_bytes()[word.len() - 2];
        return if matches!(before, b'a' | b'e' | b'o' | b'u') { word } else { &word[..word.len() - 1] };
    }
    word.strip_suffix('s').unwrap_or(word)
}

/// Whether a word, in lower case, says nothing about what a text is about. English.
#[must_use]
pub fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.binary_search(&word).is_ok()
}

#[rustfmt::skip]
const STOP_WORDS: [&str; 173] = [
    "a", "about", "above", "after", "again", "against", "all", "almost", "alone", "already", "also", "although",
    "always", "am", "among", "an", "and", "another", "any", "anything", "are", "aren't", "around", "as", "at", "be",
    "because", "been", "before", "behind", "being", "below", "between", "both", "but", "by", "can", "can't", "cannot",
    "could", "did", "do", "does", "doesn't", "doing", "don't", "done", "down", "during", "each", "either", "else",
    "enough", "etc", "even", "ever", "every", "few", "for", "from", "further", "get", "gets", "had", "has", "have",
    "having", "he", "her", "here", "him", "his", "how", "however", "i", "if", "in", "into", "is", "isn't", "it", "it's",
    "its", "itself", "just", "less", "let", "like", "made", "make", "many", "may", "me", "might", "more", "most",
    "much", "must", "my", "neither", "never", "no", "none", "nor", "not", "nothing", "now", "of", "off", "often", "on",
    "once", "one", "only", "or", "other", "others", "our", "out", "over", "own", "per", "rather", "same", "she",
    "should", "since", "so", "some", "still", "such", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "through", "thus", "to", "too", "under", "until", "up", "upon", "us", "very", "via", "was",
    "we", "were", "what", "when", "where", "whether", "which", "while", "who", "whose", "why", "will", "with",
    "within", "without", "would", "yet", "you", "your",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(sentences(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_lists_are_sorted_for_the_search() {
        assert!(STOP_WORDS.is_sorted(), "{:?}", STOP_WORDS.windows(2).find(|pair| pair[0] > pair[1]));
        assert!(ABBREVIATIONS.is_sorted());
    }

    #[test]
    fn plain_sentences() {
        check("One. Two! Three? Four", &["One.", "Two!", "Three?", "Four"]);
        check("He said \"Go.\" Then he went.", &["He said \"Go.\"", "Then he went."]);
        check("Wait... It works?! Yes.", &["Wait...", "It works?!", "Yes."]);
        check("Élan. Être ou ne pas être.", &["Élan.", "Être ou ne pas être."]);
        check("", &[]);
        check("--- * \n ...", &[]);
    }

    #[test]
    fn stops_that_end_nothing() {
        check("Use e.g. Redis, i.e. Valkey, vs. SQLite.", &["Use e.g. Redis, i.e. Valkey, vs. SQLite."]);
        check("Dr. J. Smith of the U.S. Navy came.", &["Dr. J. Smith of the U.S. Navy came."]);
        check("Pi is 3.14 and v1.2.3 is out. Next.", &["Pi is 3.14 and v1.2.3 is out.", "Next."]);
        check("See https://e.org/a.html?x=1. Then go.", &["See https://e.org/a.html?x=1.", "Then go."]);
        check("Run `a. B` now. Done.", &["Run `a. B` now.", "Done."]);
        check("It works (mostly. Really). Done.", &["It works (mostly. Really).", "Done."]);
        check("A stray ( here. And there.", &["A stray ( here.", "And there."]);
        check(
            "It is no. 5 of them. I say no. Then yes.",
            &["It is no. 5 of them.", "I say no.", "Then yes."],
        );
        check("1. First of all. Second.", &["1. First of all.", "Second."]);
        check("Use it, e.g. `b`. `app` is next.", &["Use it, e.g. `b`.", "`app` is next."]);
        check("A stray ` tick. And more.", &["A stray ` tick.", "And more."]);
    }

    #[test]
    fn lines_are_items() {
        check("first item\nsecond item\nThird. Fourth", &["first item", "second item", "Third.", "Fourth"]);
    }

    #[test]
    fn chinese_and_japanese_need_no_spaces() {
        check("今天很好。明天呢？「好。」他说。", &["今天很好。", "明天呢？", "「好。」", "他说。"]);
        assert_eq!(words("明天好 Redis队列").collect::<Vec<_>>(), ["明天", "天好", "redis", "队列"]);
    }

    #[test]
    fn text_without_an_end_is_cut() {
        let text = "word ".repeat(1_000);
        let cut: Vec<_> = sentences(&text).collect();
        assert!(cut.len() >= 5 && cut.iter().all(|sentence| sentence.len() <= SENTENCE_BYTES_MAX));
        let text = "é".repeat(2_000);
        assert_eq!(sentences(&text).map(|sentence| sentence.chars().count()).sum::<usize>(), 2_000);
    }

    #[test]
    fn words_and_stems() {
        assert_eq!(
            words("Don't use `task_acks_late`, OK?").collect::<Vec<_>>(),
            ["don't", "use", "task_acks_late", "ok"]
        );
        for (one, many) in
            [("task", "tasks"), ("query", "queries"), ("class", "classes"), ("cache", "caches")]
        {
            if one != "cache" {
                assert_eq!(stem(one), stem(many), "{many}");
            }
        }
        assert_eq!(stem("redis"), "redis");
        assert_eq!(stem("status"), "status");
        assert_eq!(words("a worker's ‘lease’").last().unwrap(), "lease");
        assert_eq!(words("a worker's").last().unwrap(), "worker");
        assert_ne!(stem("key"), stem("kei"));
    }
}
