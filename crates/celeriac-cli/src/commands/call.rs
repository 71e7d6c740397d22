//! `celeriac call`: sends a task; prints its id, its result, or its log.

use std::time::Duration;

use celeriac::protocol::{JsonMap, parse_iso8601};
use celeriac::{AsyncResult, CallOptions, Json, Timestamp};
use serde_json::json;

use super::{events, result};
use crate::Session;
use crate::args::Call;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: Call) -> Result<Exit, Problem> {
    let positional = Json::parse(&args.args).and_then(|json| json.array_items()).map_err(|why| {
        Problem::usage(format!("--args is not a JSON array: {why}")).hint("for example --args '[1, \"two\"]'")
    })?;
    let named: JsonMap = Json::parse(&args.kwargs).and_then(|json| json.entries()).map_err(|why| {
        Problem::usage(format!("--kwargs is not a JSON object: {why}"))
            .hint("for example --kwargs '{\"x\": 1}'")
    })?;
    let options = CallOptions {
        countdown: args.countdown.map(Duration::from_secs_f64),
        eta: args.eta.as_deref().map(|text| time("--eta", text)).transpose()?,
        expires: args.expires.as_deref().map(|text| time_or_seconds(session, text)).transpose()?,
        priority: args.priority,
        queue: args.queue.clone(),
        task_id: args.task_id.as_deref().map(Into::into),
        idempotency_key: args.idempotency_key.clone(),
        ..CallOptions::default()
    };
    let sent: AsyncResult<Json> = session.app.send_task(&args.task, positional, named, options).await?;
    if args.follow {
        session.output.note(sent.id());
        events::follow_task(session, &sent.id(), 0).await?;
        return result::exit_code(session, &sent).await;
    }
    if args.wait {
        return result::wait(session, &sent, args.timeout, false).await;
    }
    session.output.data(sent.id(), &json!({ "id": sent.id() }))?;
    Ok(Exit::Done)
}

fn time(option: &str, text: &str) -> Result<Timestamp, Problem> {
    parse_iso8601(text).map_err(|why| {
        Problem::usage(format!("{option} {text}: {why}")).hint("for example 2026-12-24T18:00:00Z")
    })
}

fn time_or_seconds(session: &Session, text: &str) -> Result<Timestamp, Problem> {
    match text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(seconds) => Ok(celeriac::clock::after(session.app.clock().now(), seconds)),
        None => time("--expires", text),
    }
}
