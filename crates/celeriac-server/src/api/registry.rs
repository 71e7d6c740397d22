//! The tasks that can be called.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use celeriac::TaskOptions;
use celeriac::task::{Description, Parameter, ParameterKind};
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::server::Server;

/// The tasks that can be called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RegistryView {
    /// By name.
    items: Vec<KnownTask>,
}

/// A task that can be called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KnownTask {
    /// Its name.
    name: String,
    /// Its options, when this program has the task itself or knows of it.
    options: Option<OptionsView>,
    /// What it says of itself, when it is known.
    description: Option<DescriptionView>,
    /// The live workers that know it, by node name.
    workers: Vec<String>,
}

/// What a task says of itself.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DescriptionView {
    /// What it does, in a line; may be empty.
    summary: String,
    /// The rest of what there is to say; may be empty.
    details: String,
    /// What it takes, in order: what is given by position comes first.
    parameters: Vec<ParameterView>,
    /// It takes positional arguments beyond these.
    more_args: bool,
    /// It takes named arguments beyond these.
    more_kwargs: bool,
    /// Calls whose arguments do not fit are refused before they are sent.
    checked: bool,
}

/// A parameter of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ParameterView {
    /// Its name.
    name: String,
    /// How its argument is given: `positional` by position alone, `named` by name alone, `either` in both ways.
    kind: KindView,
    /// A call must give it.
    required: bool,
    /// What it may be: a JSON Schema, with the default where JSON can hold it.
    #[schema(value_type = Object)]
    schema: serde_json::Value,
}

/// How an argument is given.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindView {
    /// By position alone.
    Positional,
    /// In both ways.
    Either,
    /// By name alone.
    Named,
}

impl From<&Description> for DescriptionView {
    fn from(description: &Description) -> Self {
        let parameter = |parameter: &Parameter| ParameterView {
            name: parameter.name.clone(),
            kind: match parameter.kind {
                ParameterKind::Positional => KindView::Positional,
                ParameterKind::Either => KindView::Either,
                ParameterKind::Named => KindView::Named,
            },
            required: parameter.required,
            schema: parameter.schema.clone(),
        };
        Self {
            summary: description.summary.clone(),
            details: description.details.clone(),
            parameters: description.parameters.iter().map(parameter).collect(),
            more_args: description.more_args,
            more_kwargs: description.more_kwargs,
            checked: description.checked,
        }
    }
}

/// The options of a task, under Celery's names; times in seconds. What is `null` is left to the settings.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OptionsView {
    /// How often it may be tried again; `null`: without end.
    max_retries: Option<u32>,
    /// How long a retry waits when nothing else is said.
    default_retry_delay: f64,
    /// Whether an error is a reason to retry by itself.
    autoretry: bool,
    /// Base of an exponential delay.
    retry_backoff: Option<f64>,
    /// The longest exponential delay.
    retry_backoff_max: f64,
    /// Whether an exponential delay is drawn at random.
    retry_jitter: bool,
    /// After this the run is stopped.
    time_limit: Option<f64>,
    /// After this the run is asked to stop.
    soft_time_limit: Option<f64>,
    /// Acknowledged after its end.
    acks_late: Option<bool>,
    /// No value is kept.
    ignore_result: Option<bool>,
    /// Seconds between two runs, for each worker.
    rate_limit: Option<f64>,
    /// 0 is consumed first, 9 last.
    priority: Option<u8>,
    /// The queue its calls go to.
    queue: Option<String>,
    /// A call not begun within this time is revoked.
    expires: Option<f64>,
    /// STARTED is stored when it begins.
    track_started: Option<bool>,
}

impl From<&TaskOptions> for OptionsView {
    fn from(options: &TaskOptions) -> Self {
        let seconds = |duration: Option<std::time::Duration>| duration.map(|duration| duration.as_secs_f64());
        Self {
            max_retries: options.max_retries,
            default_retry_delay: options.default_retry_delay.as_secs_f64(),
            autoretry: options.autoretry,
            retry_backoff: seconds(options.retry_backoff),
            retry_backoff_max: options.retry_backoff_max.as_secs_f64(),
            retry_jitter: options.retry_jitter,
            time_limit: seconds(options.time_limit),
            soft_time_limit: seconds(options.soft_time_limit),
            acks_late: options.acks_late,
            ignore_result: options.ignore_result,
            rate_limit: seconds(options.rate_limit.map(|limit| limit.interval())),
            priority: options.priority,
            queue: options.queue.clone(),
            expires: seconds(options.expires),
            track_started: options.track_started,
        }
    }
}

/// List the tasks that can be called
///
/// Those that this program has or knows of, and those that live workers know.
#[utoipa::path(
    get, path = "/registry", tag = "workers", operation_id = "list_registry",
    responses((status = 200, description = "The tasks, by name", body = RegistryView)),
)]
pub(crate) async fn list(State(server): State<Server>) -> Result<Json<RegistryView>, Problem> {
    let registry = server.app().registry();
    let known = |name: &str| KnownTask {
        name: name.to_owned(),
        options: registry.options_of_calls(name).map(OptionsView::from),
        description: registry.description(name).map(DescriptionView::from),
        workers: Vec::new(),
    };
    let names = registry.names().map(|name| -> &str { name }).chain(registry.known_names());
    let mut tasks: BTreeMap<Box<str>, KnownTask> = names.map(|name| (name.into(), known(name))).collect();
    for card in server.app().store().control.workers().await? {
        for name in card.tasks {
            let task = tasks.entry(name.clone()).or_insert_with(|| known(&name));
            task.workers.push(card.node.to_string());
        }
    }
    Ok(Json(RegistryView { items: tasks.into_values().collect() }))
}
