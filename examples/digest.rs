//! Digests a folder of documents: sections are summarised at once, joined per document, and written into one report.
//!
//! ```sh
//! cargo run --release -p celeriac-examples --example digest -- ~/notes
//! ```
//!
//! Everything is kept in `digest.db`. Stop it and start it again: it goes on where it was.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use celeriac::task::StepError;
use celeriac::{BlockingContext, Celeriac, Config, TaskId, chord};
use celeriac_cli::digest::{self, DocumentDigest, Limits, Options, Section, SectionSummary};

/// The work that takes the time. An `fn` runs on a thread of its own, and its durable step is never run twice.
#[celeriac::task]
fn summarise(cx: BlockingContext, section: Section) -> Result<SectionSummary, StepError> {
    cx.step("rank", || {
        SectionSummary::of(&section, &Options::default(), |_| {
            if cx.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .map_err(|_| "told to stop")
    })
}

/// Gets the list of its sections' summaries as its first argument: it is the body of a chord.
#[celeriac::task]
async fn join(summaries: Vec<SectionSummary>, name: String, title: String) -> DocumentDigest {
    DocumentDigest::join(name, title, summaries)
}

/// The body of the outer chord.
#[celeriac::task]
async fn report(documents: Vec<DocumentDigest>) -> String {
    let mut text = String::new();
    for document in documents {
        text.push_str(&format!("# {} ({} words)\n", document.title, document.word_count()));
        for sentence in document.sections.iter().flat_map(|section| section.sentences.first()) {
            text.push_str(&format!("- {}\n", sentence.text));
        }
    }
    text
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let mut config = Config::default();
    config.visibility_timeout = Duration::from_secs(3);
    let app = Celeriac::builder()
        .broker("sqlite://digest.db")
        .config(config)
        .register(summarise)
        .register(join)
        .register(report)
        .connect()
        .await?;

    // One chord a document, and one over them all. The id makes a second start find the first one's work.
    let id = TaskId::from(format!("report of {folder}"));
    let result = app.async_result::<String>(&id);
    let limits = Limits::default();
    let found = digest::find(Path::new(&folder), &limits)?;
    let documents = found.sources.iter().filter_map(|source| source.read(&limits).ok()).map(|document| {
        let sections = document.sections.into_iter().map(summarise);
        chord(sections, join::s(document.name, document.title))
    });
    if app.store().broker.queues().await?.is_empty() && result.info().await?.is_none() {
        chord(documents, report::s().task_id(&id)).delay(&app).await?;
    }

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(app.worker().run(async { drop(stopped.await) }));
    println!("{}", result.get().await?);
    drop(stop);
    worker.await??;
    Ok(())
}
