//! What comes out: the pieces that travel as task results, and the report in Markdown.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use super::document::Section;
use super::find::{Found, Skipped};
use super::sentence::{is_stop_word, stem, words};
use super::textrank::{KeySentence, Options, Stopped, summarise};

/// The first line of every report, by which a later run knows not to digest it.
pub(super) const MARK: &str = "<!-- celeriac digest -->";

/// Words that a section reports, at most.
const SECTION_WORDS_MAX: usize = 40;
/// Words that a document or the whole reports, at most.
const KEYWORDS_MAX: usize = 20;
/// Highlights of the whole, and of one document among them.
const HIGHLIGHTS_MAX: usize = 10;
const HIGHLIGHTS_OF_ONE_MAX: usize = 3;

/// What a section says, in a few sentences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SectionSummary {
    /// As [`Section::title`].
    pub title: String,
    /// As [`Section::level`].
    pub level: u8,
    /// As [`Section::part`].
    pub part: u32,
    /// As [`Section::range`].
    pub range: Range<usize>,
    /// The key sentences, in the order of the text.
    pub sentences: Vec<KeySentence>,
    /// A summary in prose that a language model wrote; shown instead of the sentences.
    pub written: Option<String>,
    /// How many sentences there were to choose from.
    pub sentence_count: usize,
    /// How many words it has.
    pub word_count: usize,
    /// Its most frequent words.
    pub keywords: Vec<Keyword>,
}

impl SectionSummary {
    /// Summarises a section; `progress` as in [`summarise`].
    ///
    /// # Errors
    /// [`Stopped`], when `progress` said so.
    pub fn of(
        section: &Section,
        options: &Options,
        progress: impl FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, Stopped> {
        let summary = summarise(&section.text, options, progress)?;
        let (word_count, keywords) = count(&section.text);
        Ok(Self {
            title: section.title.clone(),
            level: section.level,
            part: section.part,
            range: section.range.clone(),
            sentences: summary.sentences,
            written: None,
            sentence_count: summary.of + summary.left_out,
            word_count,
            keywords,
        })
    }
}

/// A word and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyword {
    /// In lower case, in its most frequent form.
    pub word: String,
    /// Occurrences of all its forms, among the words that sections report.
    pub count: usize,
}

fn count(text: &str) -> (usize, Vec<Keyword>) {
    let mut total = 0;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for word in words(text) {
        total += 1;
        *counts.entry(word).or_default() += 1;
    }
    let keywords = counts.into_iter().filter(|(word, _)| is_telling(word));
    let mut keywords: Vec<_> = keywords.map(|(word, count)| Keyword { word, count }).collect();
    rank_keywords(&mut keywords, SECTION_WORDS_MAX);
    (total, keywords)
}

/// Whether a word tells what a text is about: not a stop word, not a number, and longer than units and the endings of
/// file names are in Latin script.
fn is_telling(word: &str) -> bool {
    let is_short = word.len() < 3 || word.chars().nth(1).is_none();
    !is_stop_word(word) && !is_short && word.chars().next().is_some_and(char::is_alphabetic)
}

/// Most frequent first; the alphabet decides between equals, so that the order is always the same.
fn rank_keywords(keywords: &mut Vec<Keyword>, max: usize) {
    keywords.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.word.cmp(&b.word)));
    keywords.truncate(max);
}

fn merge_keywords<'a>(keywords: impl Iterator<Item = &'a Keyword>) -> Vec<Keyword> {
    let mut forms: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for keyword in keywords {
        *forms.entry(stem(&keyword.word)).or_default().entry(&keyword.word).or_default() += keyword.count;
    }
    let mut merged: Vec<_> = forms
        .into_values()
        .filter_map(|forms| {
            let count = forms.values().sum();
            let (word, _) = forms.into_iter().rev().max_by_key(|(_, count)| *count)?;
            Some(Keyword { word: word.to_owned(), count })
        })
        .collect();
    rank_keywords(&mut merged, KEYWORDS_MAX);
    merged
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentDigest {
    /// Its path below the folder that was walked.
    pub name: String,
    /// Its title.
    pub title: String,
    /// Its sections, in order.
    pub sections: Vec<SectionSummary>,
    /// Its most frequent words.
    pub keywords: Vec<Keyword>,
}

impl DocumentDigest {
    /// Joins the summaries of a document's sections, in whatever order they finished.
    #[must_use]
    pub fn join(
        name: impl Into<String>,
        title: impl Into<String>,
        mut sections: Vec<SectionSummary>,
    ) -> Self {
        sections.sort_by_key(|section| section.range.start);
        let keywords = merge_keywords(sections.iter().flat_map(|section| &section.keywords));
        Self { name: name.into(), title: title.into(), sections, keywords }
    }

    /// How many words it has.
    #[must_use]
    pub fn word_count(&self) -> usize {
        self.sections.iter().map(|section| section.word_count).sum()
    }

    /// How many sentences it has.
    #[must_use]
    pub fn sentence_count(&self) -> usize {
        self.sections.iter().map(|section| section.sentence_count).sum()
    }
}

/// One of the sentences that matter most in the whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Highlight {
    /// [`DocumentDigest::name`] of its document.
    pub document: String,
    /// The title of its section.
    pub section: String,
    /// The sentence.
    pub text: String,
    /// Its rank among the key sentences of all documents.
    pub score: f64,
}

/// What a folder of documents says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Digest {
    /// The documents, by name.
    pub documents: Vec<DocumentDigest>,
    /// The sentences that matter most, in the order of the documents.
    pub highlights: Vec<Highlight>,
    /// The most frequent words.
    pub keywords: Vec<Keyword>,
    /// What was left alone, with reasons.
    pub skipped: Vec<Skipped>,
    /// Further skipped files that are not listed.
    pub skipped_unlisted: usize,
    /// Documents beyond the bound on their number.
    pub left_out: usize,
    /// The search ended early; there may be documents that nobody has counted.
    pub cut_short: bool,
}

impl Digest {
    /// Joins the digests of all documents. The key sentences of all sections are ranked once more, against each other;
    /// `progress` as in [`summarise`]. Of `found` only what was not taken is used.
    ///
    /// # Errors
    /// [`Stopped`], when `progress` said so.
    pub fn join(
        mut documents: Vec<DocumentDigest>,
        found: &Found,
        options: &Options,
        progress: impl FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, Stopped> {
        documents.sort_by(|a, b| a.name.cmp(&b.name));
        let highlights = highlights(&documents, options, progress)?;
        let keywords = merge_keywords(documents.iter().flat_map(|document| &document.keywords));
        let mut skipped = found.skipped.clone();
        skipped.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            documents,
            highlights,
            keywords,
            skipped,
            skipped_unlisted: found.skipped_unlisted,
            left_out: found.left_out,
            cut_short: found.cut_short,
        })
    }

    /// The report. The caller writes it, to a temporary file that is then renamed, so that nobody reads half of it.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = format!("{MARK}\n# Digest of {}\n\n", counted(self.documents.len(), "document"));
        self.write_overview(&mut out);
        for document in &self.documents {
            write_document(&mut out, document);
        }
        self.write_left_out(&mut out);
        out
    }

    fn write_overview(&self, out: &mut String) {
        let sections: usize = self.documents.iter().map(|document| document.sections.len()).sum();
        let sentences: usize = self.documents.iter().map(DocumentDigest::sentence_count).sum();
        let words: usize = self.documents.iter().map(DocumentDigest::word_count).sum();
        push(
            out,
            format_args!(
                "{}, {}, {}.\n\n",
                counted(sections, "section"),
                counted(sentences, "sentence"),
                counted(words, "word")
            ),
        );
        if !self.highlights.is_empty() {
            out.push_str("## In short\n\n");
            for highlight in &self.highlights {
                push(
                    out,
                    format_args!(
                        "- {} ({}: {})\n",
                        escape(&highlight.text),
                        escape(&highlight.document),
                        escape(&highlight.section)
                    ),
                );
            }
            out.push('\n');
        }
        write_keywords(out, &self.keywords);
    }

    fn write_left_out(&self, out: &mut String) {
        let nothing =
            self.skipped.is_empty() && self.skipped_unlisted == 0 && self.left_out == 0 && !self.cut_short;
        if nothing {
            return;
        }
        out.push_str("## Not read\n\n");
        for skipped in &self.skipped {
            push(out, format_args!("- {}: {}\n", escape(&skipped.name), escape(&skipped.reason.to_string())));
        }
        if self.skipped_unlisted > 0 {
            push(out, format_args!("- {} more, not listed\n", self.skipped_unlisted));
        }
        if self.left_out > 0 {
            push(
                out,
                format_args!("- {} beyond the bound on their number\n", counted(self.left_out, "document")),
            );
        }
        if self.cut_short {
            out.push_str(
                "- the folder has more entries than are looked at; there may be further documents\n",
            );
        }
    }
}

fn highlights(
    documents: &[DocumentDigest],
    options: &Options,
    progress: impl FnMut(f64) -> ControlFlow<()>,
) -> Result<Vec<Highlight>, Stopped> {
    let mut places = HashMap::new();
    let mut text = String::new();
    for document in documents {
        for section in &document.sections {
            for sentence in &section.sentences {
                // A line is a sentence; equal ones are chosen once, and count for the place where they came first.
                places.entry(sentence.text.as_str()).or_insert((document, section));
                text.push_str(&sentence.text);
                text.push('\n');
            }
        }
    }
    let keep = HIGHLIGHTS_MAX * HIGHLIGHTS_OF_ONE_MAX;
    let mut ranked = summarise(&text, &Options { keep: Some(keep), ..options.clone() }, progress)?.sentences;
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));

    let most_of_one = if documents.len() == 1 { HIGHLIGHTS_MAX } else { HIGHLIGHTS_OF_ONE_MAX };
    let mut of_one: HashMap<&str, usize> = HashMap::new();
    let mut chosen = Vec::new();
    for sentence in ranked {
        let Some((document, section)) = places.get(sentence.text.as_str()) else { continue };
        let taken = of_one.entry(&document.name).or_default();
        if *taken < most_of_one && chosen.len() < HIGHLIGHTS_MAX {
            *taken += 1;
            chosen.push((sentence.position, document, section, sentence));
        }
    }
    chosen.sort_by_key(|(position, ..)| *position);
    let highlight =
        |(_, document, section, sentence): (usize, &&DocumentDigest, &&SectionSummary, KeySentence)| {
            Highlight {
                document: document.name.clone(),
                section: section.title.clone(),
                text: sentence.text,
                score: sentence.score,
            }
        };
    Ok(chosen.into_iter().map(highlight).collect())
}

fn write_document(out: &mut String, document: &DocumentDigest) {
    push(out, format_args!("## {}\n\n", escape(&document.title)));
    push(
        out,
        format_args!(
            "{} · {} · {}\n\n",
            escape(&document.name),
            counted(document.sections.len(), "section"),
            counted(document.word_count(), "word")
        ),
    );
    for section in &document.sections {
        // The text before the first heading needs no heading of its own.
        if section.title != document.title || section.part > 1 {
            let depth = usize::from(section.level.clamp(2, 4)) + 1;
            push(out, format_args!("{} {}", &"#####"[..depth], escape(&section.title)));
            if section.part > 1 {
                push(out, format_args!(" (part {})", section.part));
            }
            out.push_str("\n\n");
        }
        match &section.written {
            Some(written) => push(out, format_args!("{}\n\n", escape(written.trim()))),
            None => {
                for sentence in &section.sentences {
                    push(out, format_args!("- {}\n", escape(&sentence.text)));
                }
                out.push('\n');
            }
        }
    }
    write_keywords(out, &document.keywords);
}

fn write_keywords(out: &mut String, keywords: &[Keyword]) {
    if keywords.is_empty() {
        return;
    }
    let listed: Vec<_> =
        keywords.iter().map(|keyword| format!("{} ({})", escape(&keyword.word), keyword.count)).collect();
    push(out, format_args!("Keywords: {}\n\n", listed.join(", ")));
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

fn counted(number: usize, noun: &str) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{grouped} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Text that Markdown shows as it is; code spans stay code spans.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let ticks = text.matches('`').count();
    let mut code = false;
    for (at, c) in text.char_indices() {
        match c {
            '`' if ticks.is_multiple_of(2) => {
                code = !code;
                out.push(c);
            }
            _ if code => out.push(c),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' => {
                out.push('\\');
                out.push(c);
            }
            '#' | '+' | '-' | '=' if at == 0 => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::document::{Format, parse};
    use super::super::find::Skip;
    use super::*;

    fn on(_: f64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn digest_of(name: &str, text: &str) -> DocumentDigest {
        let document = parse(name, Format::Markdown, text);
        let summaries =
            document.sections.iter().map(|section| SectionSummary::of(section, &Options::default(), on));
        let mut summaries: Vec<_> = summaries.map(Result::unwrap).collect();
        // Tasks finish in any order.
        summaries.reverse();
        DocumentDigest::join(document.name, document.title, summaries)
    }

    fn sample() -> Digest {
        let leases = "# Leases\n\nA worker holds a message under a lease that it renews.\n\n## What ends them\n\n\
            A lease ends when its worker dies and renews it no more.\n";
        let queues =
            "# Queues\n\nA queue gives each message to one worker under a lease. Use `x_y` <now> in _it_.\n";
        let mut found = Found { left_out: 3, ..Found::default() };
        found.skip("big.md", Skip::TooLarge { bytes_max: 8 }, &super::super::Limits::default());
        let documents = vec![digest_of("queues.md", queues), digest_of("leases.md", leases)];
        Digest::join(documents, &found, &Options::default(), on).unwrap()
    }

    #[test]
    fn the_report_says_it_all() {
        let expected = "<!-- celeriac digest -->\n# Digest of 2 documents\n\n\
            3 sections, 4 sentences, 38 words.\n\n\
            ## In short\n\n\
            - A worker holds a message under a lease that it renews. (leases.md: Leases)\n\
            - A lease ends when its worker dies and renews it no more. (leases.md: What ends them)\n\
            - A queue gives each message to one worker under a lease. (queues.md: Queues)\n\n\
            Keywords: lease (3), worker (3), message (2), renews (2), dies (1), ends (1), gives (1), holds (1), queue (1), use (1), x\\_y (1)\n\n\
            ## Leases\n\nleases.md · 2 sections · 23 words\n\n\
            - A worker holds a message under a lease that it renews.\n\n\
            ### What ends them\n\n\
            - A lease ends when its worker dies and renews it no more.\n\n\
            Keywords: lease (2), renews (2), worker (2), dies (1), ends (1), holds (1), message (1)\n\n\
            ## Queues\n\nqueues.md · 1 section · 15 words\n\n\
            - A queue gives each message to one worker under a lease.\n\n\
            Keywords: gives (1), lease (1), message (1), queue (1), use (1), worker (1), x\\_y (1)\n\n\
            ## Not read\n\n\
            - big.md: larger than 8 bytes\n\
            - 3 documents beyond the bound on their number\n";
        assert_eq!(sample().to_markdown(), expected);
    }

    #[test]
    fn results_travel() {
        let digest = sample();
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
    }

    #[test]
    fn what_a_model_wrote_is_shown_instead() {
        let mut digest = sample();
        digest.documents[1].sections[0].written = Some(" Queues *hand out* messages.\n".into());
        let report = digest.to_markdown();
        assert!(report.contains("\nQueues \\*hand out\\* messages.\n"), "{report}");
        assert_eq!(report.matches("A queue gives each message").count(), 1, "only in short");
    }

    #[test]
    fn forms_of_a_word_count_together() {
        let keyword = |word: &str, count| Keyword { word: word.into(), count };
        let all = [keyword("tasks", 3), keyword("queue", 4), keyword("task", 2), keyword("task", 2)];
        assert_eq!(merge_keywords(all.iter()), [keyword("task", 7), keyword("queue", 4)]);
    }

    #[test]
    fn counts_read_well() {
        assert_eq!(counted(1, "word"), "1 word");
        assert_eq!(counted(999, "word"), "999 words");
        assert_eq!(counted(1_234_567, "word"), "1,234,567 words");
    }

    #[test]
    fn markdown_shows_text_as_it_is() {
        assert_eq!(escape("# a <b> `c_d` e_f"), "\\# a \\<b\\> `c_d` e\\_f");
        assert_eq!(escape("odd ` tick"), "odd \\` tick");
    }
}
