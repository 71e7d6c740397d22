//! TextRank: a summary made of the sentences that the other sentences speak for.
//!
//! After R. Mihalcea and P. Tarau, *TextRank: Bringing Order into Texts*, EMNLP 2004, §4. Sentences are the vertices
//! of a graph. An edge weighs how many words two sentences share, made independent of their lengths:
//!
//! ```text
//!                |{w : w ∈ Sᵢ and w ∈ Sⱼ}|
//! sim(Sᵢ, Sⱼ) = ───────────────────────────
//!                  log |Sᵢ| + log |Sⱼ|
//! ```
//!
//! and a vertex ranks as its neighbours do, each sharing out its rank along its edges:
//!
//! ```text
//!                               wⱼᵢ
//! WS(Vᵢ) = (1 − d) + d · Σⱼ ────────── · WS(Vⱼ)
//!                            Σₖ wⱼₖ
//! ```
//!
//! Three liberties. Words are compared without plural endings and stop words do not count, where the paper filters by
//! part of speech. A sentence that nearly repeats a chosen one is passed over, since the graph rewards repetition. And
//! what cannot stand alone, a fragment or the line above a list, is chosen only when there is nothing else.
//!
//! The result depends on the text alone: sums run in one order, and ties go to the earlier sentence.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::sentence::{is_stop_word, sentences, stem, words};

/// How to rank and how much to keep.
#[derive(Debug, Clone)]
pub struct Options {
    /// Key sentences at most; `None`: as the length of the text suggests, from one to four.
    pub keep: Option<usize>,
    /// Sentences looked at; those after are counted in [`Summary::left_out`]. Default 2,000, at which the graph takes
    /// up to 32 MB.
    pub sentences_max: usize,
    /// The paper's `d`: how much of a rank comes from neighbours. Default 0.85.
    pub damping: f64,
    /// Ranking ends when no rank moves further than this in one round. Default 1e-6.
    pub tolerance: f64,
    /// Ranking ends after so many rounds in any case. Default 200; the defaults above need about 90.
    pub rounds_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep: None, sentences_max: 2_000, damping: 0.85, tolerance: 1e-6, rounds_max: 200 }
    }
}

/// A sentence that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeySentence {
    /// As it stands in the text.
    pub text: String,
    /// Its rank; 1 is the average of a text whose sentences are all connected.
    pub score: f64,
    /// Which sentence of the text it is, from 0.
    pub position: usize,
}

/// What was chosen of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The key sentences, in the order of the text.
    pub sentences: Vec<KeySentence>,
    /// How many sentences there were to choose from.
    pub of: usize,
    /// Sentences beyond [`Options::sentences_max`].
    pub left_out: usize,
}

/// The caller asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped on request")
    }
}

impl std::error::Error for Stopped {}

/// Chooses the key sentences of `text`.
///
/// `progress` is told the fraction done, from 0 to 1 and never less than before, about a hundred times at most, and may
/// end the work.
///
/// # Errors
/// [`Stopped`], when `progress` said so.
pub fn summarise(
    text: &str,
    options: &Options,
    mut progress: impl FnMut(f64) -> ControlFlow<()>,
) -> Result<Summary, Stopped> {
    // Nearly all of the time goes into the graph, whose edges are the square of the sentences.
    const GRAPH_SHARE: f64 = 0.9;
    report(&mut progress, 0.0)?;
    let mut all = sentences(text);
    let looked_at: Vec<&str> = all.by_ref().take(options.sentences_max).collect();
    let left_out = all.count();
    let bags = bags(&looked_at);
    let graph = Graph::of(&bags, |done| report(&mut progress, done * GRAPH_SHARE))?;
    let ranks = rank(&graph, options, |done| progress(GRAPH_SHARE + done * (1.0 - GRAPH_SHARE)))?;
    // Digits beyond the tolerance mean nothing, and short decimals survive every encoding of a result unchanged.
    let ranks: Vec<f64> = ranks.into_iter().map(|rank| (rank * 1e6).round() / 1e6).collect();
    let keep = options.keep.unwrap_or_else(|| suggested(looked_at.len()));
    let sentences = choose(&looked_at, &bags, &ranks, keep)
        .into_iter()
        .map(|position| KeySentence {
            text: looked_at[position].to_owned(),
            score: ranks[position],
            position,
        })
        .collect();
    report(&mut progress, 1.0)?;
    Ok(Summary { sentences, of: looked_at.len(), left_out })
}

fn report(progress: &mut impl FnMut(f64) -> ControlFlow<()>, done: f64) -> Result<(), Stopped> {
    match progress(done) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Stopped),
    }
}

fn suggested(sentences: usize) -> usize {
    match sentences {
        0..=4 => 1,
        5..=14 => 2,
        15..=39 => 3,
        _ => 4,
    }
}

/// The words of a sentence as numbers, sorted, each once.
type Bag = Vec<u32>;

fn bags(sentences: &[&str]) -> Vec<Bag> {
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let mut bag = |sentence: &str| {
        let mut bag: Bag = words(sentence)
            .filter(|word| !is_stop_word(word))
            .map(|word| {
                let fresh = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                *numbers.entry(stem(&word).to_owned()).or_insert(fresh)
            })
            .collect();
        bag.sort_unstable();
        bag.dedup();
        bag
    };
    sentences.iter().map(|sentence| bag(sentence)).collect()
}

/// How many words two sentences share.
fn shared(a: &Bag, b: &Bag) -> usize {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                count += 1;
                i += 1;
                j += 1;
            }
        }
    }
    count
}

/// The paper's similarity; zero for sentences of fewer than two words, for which it is not defined.
#[expect(clippy::cast_precision_loss, reason = "a sentence has at most a thousand words")]
fn similarity(a: &Bag, b: &Bag) -> f64 {
    if a.len() < 2 || b.len() < 2 {
        return 0.0;
    }
    shared(a, b) as f64 / ((a.len() as f64).ln() + (b.len() as f64).ln())
}

/// An undirected graph with weights.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// For each vertex its neighbours, in ascending order. Single precision halves the memory and changes no order
    /// that matters.
    neighbours: Vec<Vec<(u32, f32)>>,
}

impl Graph {
    /// A graph of `vertices` vertices with these edges; weights are positive. An edge to a vertex that is not there, or
    /// from one to itself, is left out.
    #[must_use]
    pub fn new(vertices: usize, edges: &[(usize, usize, f32)]) -> Self {
        let mut graph = Self { neighbours: vec![Vec::new(); vertices] };
        for (a, b, weight) in edges {
            graph.connect(*a, *b, *weight);
        }
        for neighbours in &mut graph.neighbours {
            neighbours.sort_by_key(|(vertex, _)| *vertex);
        }
        graph
    }

    fn connect(&mut self, a: usize, b: usize, weight: f32) {
        let (Ok(a_number), Ok(b_number)) = (u32::try_from(a), u32::try_from(b)) else { return };
        if a.max(b) < self.neighbours.len() && a != b && weight > 0.0 {
            self.neighbours[a].push((b_number, weight));
            self.neighbours[b].push((a_number, weight));
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "thousands, and weights near 1"
    )]
    fn of(bags: &[Bag], mut progress: impl FnMut(f64) -> Result<(), Stopped>) -> Result<Self, Stopped> {
        let mut graph = Self { neighbours: vec![Vec::new(); bags.len()] };
        let mut told = 0.0;
        for a in 0..bags.len() {
            for b in a + 1..bags.len() {
                graph.connect(a, b, similarity(&bags[a], &bags[b]) as f32);
            }
            // The rows get shorter: what is left is a triangle.
            let left = 1.0 - (a + 1) as f64 / bags.len() as f64;
            let done = 1.0 - left * left;
            if done - told >= 0.01 {
                told = done;
                progress(done)?;
            }
        }
        Ok(graph)
    }
}

/// The rank of each vertex of `graph`, by repeating the second formula until it moves no more.
///
/// # Errors
/// [`Stopped`], when `progress` said so.
pub fn rank(
    graph: &Graph,
    options: &Options,
    mut progress: impl FnMut(f64) -> ControlFlow<()>,
) -> Result<Vec<f64>, Stopped> {
    let vertices = graph.neighbours.len();
    let outward: Vec<f64> = graph
        .neighbours
        .iter()
        .map(|edges| edges.iter().map(|(_, weight)| f64::from(*weight)).sum())
        .collect();
    let mut ranks = vec![1.0_f64; vertices];
    let mut next = vec![0.0_f64; vertices];
    let mut done: f64 = 0.0;
    for _ in 0..options.rounds_max {
        let mut moved: f64 = 0.0;
        for vertex in 0..vertices {
            let sum: f64 = graph.neighbours[vertex]
                .iter()
                .map(|(other, weight)| {
                    let other = *other as usize;
                    f64::from(*weight) / outward[other] * ranks[other]
                })
                .sum();
            next[vertex] = (1.0 - options.damping) + options.damping * sum;
            moved = moved.max((next[vertex] - ranks[vertex]).abs());
        }
        std::mem::swap(&mut ranks, &mut next);
        if moved <= options.tolerance {
            break;
        }
        // Each round shrinks the movement by about the same factor, so its logarithm goes evenly to the goal.
        done = done.max((moved.min(1.0).ln() / options.tolerance.ln()).clamp(0.0, 1.0));
        report(&mut progress, done)?;
    }
    Ok(ranks)
}

/// The positions of the sentences to keep, in the order of the text.
fn choose(sentences: &[&str], bags: &[Bag], ranks: &[f64], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sentences.len()).collect();
    order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]).then(a.cmp(b)));
    let mut chosen: Vec<usize> = Vec::new();
    // What reads well first; the rest only if that leaves nothing.
    let anything = |_: &str| true;
    for (fits, keep) in
        [(reads_well as fn(&str) -> bool, keep), (stands_alone, keep), (anything, keep.min(1))]
    {
        for position in order.iter().copied().filter(|position| fits(sentences[*position])) {
            if chosen.len() == keep {
                break;
            }
            if !chosen.iter().any(|other| repeats(&bags[*other], &bags[position])) {
                chosen.push(position);
            }
        }
        if !chosen.is_empty() {
            break;
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Whether a sentence says something without its neighbours.
fn stands_alone(sentence: &str) -> bool {
    const WORDS_MIN: usize = 5;
    !sentence.ends_with([':', ',', ';']) && words(sentence).take(WORDS_MIN).count() == WORDS_MIN
}

/// Whether it is besides a sentence from its beginning, of readable length, made mostly of words, and not a command, a list of figures or
/// everything there is to say between two semicolons. The measure of similarity favours such monsters.
fn reads_well(sentence: &str) -> bool {
    const TOKENS_MAX: usize = 40;
    let (mut tokens, mut plain) = (0, 0);
    // Every other stretch is a code span, and one of those is one token.
    for (at, stretch) in sentence.split('`').enumerate() {
        if at % 2 == 1 {
            tokens += 1;
            continue;
        }
        for token in
            stretch.split_whitespace().filter(|token| token.chars().any(|c| !matches!(c, '.' | ',' | ')')))
        {
            tokens += 1;
            let is_word =
                token.trim_start_matches(|c: char| !c.is_alphanumeric()).starts_with(char::is_alphabetic);
            plain += usize::from(is_word && !token.contains(|c: char| c.is_ascii_digit()));
        }
    }
    let begins =
        sentence.chars().find(|c| *c == '`' || c.is_alphanumeric()).is_some_and(|c| !c.is_lowercase());
    stands_alone(sentence) && begins && tokens <= TOKENS_MAX && plain * 5 >= tokens * 3
}

/// Whether two sentences have most of their words in common.
fn repeats(a: &Bag, b: &Bag) -> bool {
    let both = shared(a, b);
    let either = a.len() + b.len() - both;
    // Three of four words.
    either == 0 || both * 4 >= either * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(_: f64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn similarity_is_that_of_the_paper() {
        // Two of three and four words: 2 / (ln 3 + ln 4).
        assert!(close(similarity(&vec![1, 2, 3], &vec![2, 3, 4, 5]), 2.0 / 12.0_f64.ln()));
        assert_eq!(similarity(&vec![1], &vec![1]), 0.0);
        assert_eq!(similarity(&vec![], &vec![1, 2]), 0.0);
    }

    #[test]
    fn ranks_of_a_star_are_those_worked_out_by_hand() {
        // c = 0.15 + 0.85 · 2l and l = 0.15 + 0.85 · c/2, so c = 0.405 / 0.2775.
        let graph = Graph::new(4, &[(0, 1, 1.0), (0, 2, 1.0)]);
        let ranks = rank(&graph, &Options::default(), on).unwrap();
        assert!(close(ranks[0], 1.459_459_5), "{ranks:?}");
        assert!(close(ranks[1], 0.770_270_3) && close(ranks[2], 0.770_270_3), "{ranks:?}");
        // Without neighbours there is only 1 − d.
        assert!(close(ranks[3], 0.15));
    }

    #[test]
    fn weights_share_out_a_rank() {
        // Of a's rank b gets 3/4 and c 1/4: b = 0.15 + 0.85 · 0.75a, c = 0.15 + 0.85 · 0.25a, a = 0.15 + 0.85 (b + c).
        let ranks = rank(&Graph::new(3, &[(0, 1, 3.0), (0, 2, 1.0)]), &Options::default(), on).unwrap();
        let a = 0.405 / 0.2775;
        assert!(close(ranks[0], a), "{ranks:?}");
        assert!(
            close(ranks[1], 0.15 + 0.85 * 0.75 * a) && close(ranks[2], 0.15 + 0.85 * 0.25 * a),
            "{ranks:?}"
        );
    }

    const TEXT: &str = "The worker reserves a message from the queue under a lease. \
        A lease is renewed by the worker while the message is handled. \
        When the worker dies, the lease of its message ends and the queue gives it to another worker. \
        Bananas grow in warm countries near the sea. \
        The weather was fine on Tuesday.";

    #[test]
    fn the_sentences_that_others_speak_for_are_chosen() {
        let summary = summarise(TEXT, &Options { keep: Some(2), ..Options::default() }, on).unwrap();
        let positions: Vec<_> = summary.sentences.iter().map(|sentence| sentence.position).collect();
        assert_eq!(summary.of, 5);
        assert!(positions.is_sorted() && positions.len() == 2);
        assert!(positions.iter().all(|position| *position < 3), "{summary:?}");
    }

    #[test]
    fn the_same_text_gives_the_same_bits() {
        let once = summarise(TEXT, &Options::default(), on).unwrap();
        for _ in 0..5 {
            assert_eq!(summarise(TEXT, &Options::default(), on).unwrap(), once);
        }
    }

    #[test]
    fn little_or_nothing() {
        let nothing = summarise("", &Options::default(), on).unwrap();
        assert_eq!((nothing.sentences.len(), nothing.of), (0, 0));
        let one = summarise("Only one short.", &Options::default(), on).unwrap();
        assert_eq!(one.sentences[0].text, "Only one short.");
        assert!(close(one.sentences[0].score, 0.15));
        let none_wanted = summarise(TEXT, &Options { keep: Some(0), ..Options::default() }, on).unwrap();
        assert_eq!(none_wanted.sentences, []);
    }

    #[test]
    fn figures_and_commands_are_chosen_last() {
        for (sentence, expected) in [
            ("A worker holds a message under a lease (as `Broker` says) for 20 s.", true),
            ("Celery 1,434 · arq 1,196 · Dramatiq 4,321 · Taskiq 4,408 · Huey 6,290", false),
            ("`worker [-Q q1,q2] [-c N] [-n NAME] [--time-limit S]`", false),
            ("Four words are few.", false),
            ("and the rest of what an item says", false),
            ("These are the things that it does:", false),
            (&"many words ".repeat(30), false),
            ("今天的天气很好。", true),
        ] {
            assert_eq!(reads_well(sentence), expected, "{sentence}");
        }
    }

    #[test]
    fn a_repeated_sentence_is_chosen_once() {
        let text = "The queue gives a message to one worker at a time. ".repeat(6)
            + "Another sentence about a queue of bananas stands here.";
        let summary = summarise(&text, &Options { keep: Some(3), ..Options::default() }, on).unwrap();
        let positions: Vec<_> = summary.sentences.iter().map(|sentence| sentence.position).collect();
        assert_eq!(positions, [0, 6]);
    }

    #[test]
    fn progress_rises_and_may_stop_the_work() {
        let text = (0..300)
            .map(|i| format!("Sentence number {i} shares words with number {}. ", i + 1))
            .collect::<String>();
        let mut told = Vec::new();
        summarise(&text, &Options::default(), |done| {
            told.push(done);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(told.is_sorted() && told.first() == Some(&0.0) && told.last() == Some(&1.0), "{told:?}");
        assert!((10..400).contains(&told.len()), "{}", told.len());

        let mut calls = 0;
        let stopped = summarise(&text, &Options::default(), |done| {
            calls += 1;
            if done > 0.5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(stopped, Err(Stopped));
        assert!(calls < told.len());
    }

    #[test]
    fn sentences_beyond_the_bound_are_counted() {
        let summary = summarise(TEXT, &Options { sentences_max: 3, ..Options::default() }, on).unwrap();
        assert_eq!((summary.of, summary.left_out), (3, 2));
    }
}
