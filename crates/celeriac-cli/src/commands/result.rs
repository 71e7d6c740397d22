//! `celeriac result`: prints what became of a task.

use std::time::Duration;

use celeriac::{AsyncResult, Error, Json, State};
use serde_json::{Value, json};

use crate::Session;
use crate::args::ResultOf;
use crate::output::{Exit, Problem};

/// Without `--timeout`: for ever.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(crate) async fn run(session: &Session, args: &ResultOf) -> Result<Exit, Problem> {
    let result = session.app.async_result::<Json>(args.id.as_str());
    if result.place().await?.is_none() && result.info().await?.is_none() {
        return Err(Error::UnknownTask(result.id()).into());
    }
    if args.wait {
        return wait(session, &result, args.timeout, args.traceback).await;
    }
    print(session, &result, args.traceback).await
}

/// Waits for the end, and prints it.
pub(crate) async fn wait(
    session: &Session,
    result: &AsyncResult<Json>,
    timeout: Option<f64>,
    traceback: bool,
) -> Result<Exit, Problem> {
    let timeout = timeout.map_or(LONGEST, Duration::from_secs_f64);
    match result.wait(timeout).await {
        Ok(_) => print(session, result, traceback).await,
        Err(error @ Error::Timeout { .. }) => {
            Err(Problem::from(error).hint(format!("look again: celeriac result {} --wait", result.id())))
        }
        Err(error) => Err(error.into()),
    }
}

/// 0 for a task that has not failed.
pub(crate) async fn exit_code(session: &Session, result: &AsyncResult<Json>) -> Result<Exit, Problem> {
    let _ = session;
    Ok(match result.state().await? {
        State::Failure | State::Revoked => Exit::Failed,
        _ => Exit::Done,
    })
}

async fn print(session: &Session, result: &AsyncResult<Json>, traceback: bool) -> Result<Exit, Problem> {
    let meta = result.info().await?;
    let state = meta.as_ref().map_or(State::Pending, |meta| meta.state.clone());
    let value = meta.as_ref().map_or_else(Json::null, |meta| meta.result.clone());
    let place = result.place().await?;
    // What Python alone can write (NaN, large integers) is shown as text.
    let shown: Value = value.to().unwrap_or_else(|_| Value::String(value.to_string()));
    let document = json!({
        "id": result.id(),
        "state": state.as_str(),
        "result": shown,
        "traceback": meta.as_ref().and_then(|meta| meta.traceback.clone()),
        "date_done": meta.as_ref().and_then(|meta| meta.date_done).map(|at| at.to_string()),
        "queue": place.as_ref().map(|place| place.queue.to_string()),
        "worker": place.as_ref().and_then(|place| place.worker.as_ref().map(ToString::to_string)),
        "deliveries": place.as_ref().map(|place| place.deliveries),
    });
    let text = match (&state, &meta) {
        (State::Success, _) => value.to_string(),
        (state, Some(meta)) if state.is_exception() => {
            let exception = celeriac::protocol::Exception::decode_lossy(&value);
            match &meta.traceback {
                Some(text) if traceback => format!("{state} {exception}\n{text}"),
                _ => format!("{state} {exception}"),
            }
        }
        (state, _) => match &place {
            Some(place) => format!("{state} ({:?} on {})", place.phase, place.queue).to_lowercase(),
            None => state.to_string(),
        },
    };
    session.output.data(text, &document)?;
    Ok(if matches!(state, State::Failure | State::Revoked) { Exit::Failed } else { Exit::Done })
}
