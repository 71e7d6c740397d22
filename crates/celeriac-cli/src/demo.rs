//! `celeriac demo`: a folder of documents digested by one chord of chords, on the embedded store.
//!
//! ```text
//!  section ┐
//!  section ┼─► document ┐
//!  section ┘            ├─► report
//!  section ──► document ┘
//! ```
//!
//! The ids of its tasks come from the documents themselves, so that starting it again finds what an earlier run left
//! and goes on from there.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use celeriac::backend::Watch;
use celeriac::{AsyncResult, BlockingContext, Builder, Celeriac, Context, Signature, State, TaskId, chord};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::args::Demo;
use crate::digest::{
    self, Digest, Document, DocumentDigest, Found, Limits, Options, Section, SectionSummary,
};
use crate::output::{Exit, Problem};
use crate::{Session, llm, signals};

/// The queue of the demonstration, so that it does not meet other work in the same store.
const QUEUE: &str = "celeriac-demo";
/// Its lease: whoever starts it again after a crash does not want to wait long.
const LEASE: Duration = Duration::from_secs(3);
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);
const PAGE: usize = 1_000;
/// How often a long section tells how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Adds the tasks of the demonstration.
#[must_use]
pub fn register(builder: Builder) -> Builder {
    builder.register(summarise).register(write).register(join).register(report)
}

/// What the report holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Report {
    path: PathBuf,
    documents: usize,
    sections: usize,
    words: usize,
}

/// Summarises one section: the work that takes the time.
#[celeriac::task(name = "celeriac.demo.summarise", queue = "celeriac-demo")]
fn summarise(cx: BlockingContext, section: Section) -> Result<SectionSummary, celeriac::task::StepError> {
    cx.step("rank", || {
        let mut told = Instant::now();
        let summary = SectionSummary::of(&section, &Options::default(), |fraction| {
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
                cx.progress((fraction * 100.0) as u64, 100);
            }
            if cx.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        summary.map_err(|stopped| match cx.check() {
            Err(cancelled) => Box::<dyn std::error::Error + Send + Sync>::from(cancelled),
            Ok(()) => format!("{stopped:?}").into(),
        })
    })
}

/// Lets a language model write the summary of one section; its text streams as tokens. Neither step is paid twice.
#[celeriac::task(name = "celeriac.demo.write", queue = "celeriac-demo", max_retries = 3, retry_backoff)]
async fn write(
    cx: Context,
    section: Section,
    url: String,
    model: String,
) -> Result<SectionSummary, celeriac::task::StepError> {
    let mut summary = cx
        .step("rank", || async {
            let section = section.clone();
            let rank =
                move || SectionSummary::of(&section, &Options::default(), |_| ControlFlow::Continue(()));
            match tokio::task::spawn_blocking(rank).await {
                Ok(summary) => summary.map_err(|stopped| format!("{stopped:?}")),
                Err(panic) => Err(panic.to_string()),
            }
        })
        .await?;
    let prompt =
        format!("Summarise this section in two plain sentences.\n\n# {}\n\n{}", section.title, section.text);
    let text = cx
        .step("write", || {
            llm::complete(&url, &model, &prompt, |piece| {
                let cx = cx.clone();
                async move { cx.token(&piece).await }
            })
        })
        .await?;
    summary.written = Some(text);
    Ok(summary)
}

/// Joins the sections of a document.
#[celeriac::task(name = "celeriac.demo.join", queue = "celeriac-demo")]
async fn join(summaries: Vec<SectionSummary>, name: String, title: String) -> DocumentDigest {
    DocumentDigest::join(name, title, summaries)
}

/// Joins the documents, and writes the report.
#[celeriac::task(name = "celeriac.demo.report", queue = "celeriac-demo")]
fn report(documents: Vec<DocumentDigest>, found: Found, path: PathBuf) -> Result<Report, std::io::Error> {
    let sections = documents.iter().map(|document| document.sections.len()).sum();
    let words = documents.iter().map(DocumentDigest::word_count).sum();
    let count = documents.len();
    let digest = Digest::join(documents, &found, &Options::default(), |_| ControlFlow::Continue(()))
        .map_err(|stopped| std::io::Error::other(format!("{stopped:?}")))?;
    write_whole(&path, &digest.to_markdown())?;
    Ok(Report { path, documents: count, sections, words })
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

/// A digest that is to be made.
struct Plan {
    /// Names the run: the documents, what is in them, and where the report goes.
    run: String,
    documents: Vec<Document>,
    found: Found,
    output: PathBuf,
    /// Address and model of who writes the summaries, if somebody does.
    llm: Option<(String, String)>,
}

pub(crate) async fn run(session: Session, args: &Demo) -> Result<Exit, Problem> {
    let plan = plan(args)?;
    let mut config = session.app.config().clone();
    config.visibility_timeout = config.visibility_timeout.min(LEASE);
    config.worker_restore_interval = config.worker_restore_interval.min(RESTORE_INTERVAL);
    let app = session.app.clone().with_config(config);
    let output = session.output;

    let sections = plan.sections();
    let last = app.async_result::<Report>(plan.last_id());
    let done_before = if !args.fresh && begun(&app, &sections, &last).await? {
        done(&app, &sections).await?
    } else {
        // An end that is there already would be taken for this run's.
        plan.forget(&app).await?;
        plan.signature().delay(&app).await?;
        0
    };
    output.note(format_args!(
        "{} documents in {} sections, on {}",
        plan.documents.len(),
        sections.len(),
        app.url(),
    ));
    if done_before > 0 {
        output.note(format_args!("going on: {done_before} sections were done before"));
    }

    let shutdown = signals::listen(signals::Manner::Plain)?;
    let mut worker = app.worker().queues([QUEUE]).cold_shutdown(shutdown.cold.clone());
    if let Some(concurrency) = args.concurrency {
        worker = worker.concurrency(concurrency as usize);
    }
    let stop = shutdown.warm.child_token();
    let working = tokio::spawn(worker.run(stop.clone().cancelled_owned()));
    let bar = bar(&session, sections.len(), done_before);
    let finished = tokio::select! {
        finished = follow(&app, &plan, &last, &bar) => Some(finished),
        () = shutdown.warm.cancelled() => None,
    };
    bar.finish_and_clear();
    stop.cancel();
    working.await.map_err(|panic| Problem::new(Exit::Failed, panic))??;
    match finished {
        None => {
            output.note("stopped; start it again and it goes on from here");
            Ok(Exit::Interrupted)
        }
        Some(finished) => {
            finished?;
            let report = last.get().await?;
            let text = format!(
                "{}: {} documents, {} sections, {} words",
                report.path.display(),
                report.documents,
                report.sections,
                report.words,
            );
            output.data(text, &json!(report))?;
            Ok(Exit::Done)
        }
    }
}

/// Whether an earlier run of the same digest is there to go on with.
async fn begun(app: &Celeriac, sections: &[TaskId], last: &AsyncResult<Report>) -> Result<bool, Problem> {
    if let Some(meta) = last.info().await? {
        if meta.state == State::Success && meta.result.to::<Report>().is_ok_and(|report| report.path.exists())
        {
            return Ok(true);
        }
        // It failed, or somebody removed the report: everything again, under the same ids.
        return Ok(!meta.state.is_ready());
    }
    let first = sections.get(..1).unwrap_or_default();
    Ok(app.store().broker.locate(first).await?.iter().any(Option::is_some))
}

/// How many of these tasks have succeeded.
async fn done(app: &Celeriac, ids: &[TaskId]) -> Result<usize, Problem> {
    let metas = app.store().backend.fetch(ids).await?;
    Ok(metas.iter().flatten().filter(|meta| meta.state == State::Success).count())
}

/// Moves the bar as sections end, until the report is written.
async fn follow(
    app: &Celeriac,
    plan: &Plan,
    last: &AsyncResult<Report>,
    bar: &ProgressBar,
) -> Result<(), Problem> {
    let backend = &app.store().backend;
    let mut after = backend.feed_end().await?;
    // What ended between the first count and here.
    bar.set_position(done(app, &plan.sections()).await? as u64);
    loop {
        for record in backend.feed(after, PAGE).await? {
            after = record.number;
            if &*record.entry.event == "end" && record.task_id.as_str().starts_with(&plan.run) {
                match &*record.task {
                    "celeriac.demo.summarise" | "celeriac.demo.write" => bar.inc(1),
                    "celeriac.demo.join" => bar.set_message(plan.name_of(&record.task_id)),
                    _ => {}
                }
            }
        }
        if last.ready().await? {
            return Ok(());
        }
        backend.wait(&Watch::Feed { after }, Duration::from_secs(1)).await?;
    }
}

fn bar(session: &Session, sections: usize, done: usize) -> ProgressBar {
    let shown = std::io::stderr().is_terminal() && !session.output.quiet && !session.output.json;
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(sections as u64), target);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} sections  {elapsed}  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(done as u64);
    bar
}

fn plan(args: &Demo) -> Result<Plan, Problem> {
    let limits = Limits::default();
    let mut found = digest::find(&args.path, &limits).map_err(|error| {
        Problem::usage(format!("{error:#}"))
            .hint("give a folder of Markdown, reStructuredText, HTML or text files")
    })?;
    let mut documents = Vec::new();
    for source in std::mem::take(&mut found.sources) {
        match source.read(&limits) {
            Ok(document) => documents.push(document),
            Err(reason) => found.skip(source.name.as_str(), reason, &limits),
        }
    }
    if documents.is_empty() {
        return Err(Problem::usage(format!("no documents in {}", args.path.display()))
            .hint("give a folder of Markdown, reStructuredText, HTML or text files"));
    }
    let output = std::path::absolute(&args.output)?;
    let mut hasher = DefaultHasher::new();
    std::path::absolute(&args.path)?.hash(&mut hasher);
    output.hash(&mut hasher);
    for document in &documents {
        document.name.hash(&mut hasher);
        for section in &document.sections {
            section.text.hash(&mut hasher);
        }
    }
    let llm = args.llm_url.clone().map(|url| (url, args.llm_model.clone()));
    llm.hash(&mut hasher);
    let run = format!("digest-{:016x}", hasher.finish());
    Ok(Plan { run, documents, found, output, llm })
}

impl Plan {
    fn section_id(&self, document: usize, section: usize) -> TaskId {
        TaskId::from(format!("{}-{document}-{section}", self.run))
    }

    fn document_id(&self, document: usize) -> TaskId {
        TaskId::from(format!("{}-{document}", self.run))
    }

    fn last_id(&self) -> TaskId {
        TaskId::from(self.run.as_str())
    }

    fn sections(&self) -> Vec<TaskId> {
        let documents = self.documents.iter().enumerate();
        documents
            .flat_map(|(d, document)| (0..document.sections.len()).map(move |s| self.section_id(d, s)))
            .collect()
    }

    /// The name of the document that a task of this run joins.
    fn name_of(&self, id: &TaskId) -> String {
        let place = id.as_str().rsplit('-').next().and_then(|place| place.parse::<usize>().ok());
        place
            .and_then(|place| self.documents.get(place))
            .map(|document| document.name.clone())
            .unwrap_or_default()
    }

    /// The whole digest as one call.
    fn signature(&self) -> Signature {
        let documents = self.documents.iter().enumerate().map(|(d, document)| {
            let sections = document.sections.iter().enumerate();
            let header = sections.map(|(s, section)| {
                let section = section.clone();
                let call = match &self.llm {
                    None => summarise(section).into_dynamic(),
                    Some((url, model)) => write(section, url.clone(), model.clone()).into_dynamic(),
                };
                call.task_id(&self.section_id(d, s))
            });
            chord(
                header,
                join::s(document.name.clone(), document.title.clone()).task_id(&self.document_id(d)),
            )
        });
        let body = report::s(self.found.clone(), self.output.clone()).task_id(&self.last_id());
        chord(documents, body).into_dynamic()
    }

    /// Forgets an earlier run.
    async fn forget(&self, app: &Celeriac) -> Result<(), Problem> {
        let mut ids = self.sections();
        ids.extend((0..self.documents.len()).map(|d| self.document_id(d)));
        ids.push(self.last_id());
        app.revoke(&ids, true).await?;
        app.store().backend.forget(&ids).await?;
        Ok(())
    }
}
