//! Revocation by remote control, as celery/worker/control.py: `revoke`, `terminate`, `revoke_by_stamped_headers`, and
//! `hello`, by which workers tell each other what is revoked when they start.
//!
//! What the store knows is revoked there, for all workers and for good. What it does not know, because a Python producer
//! has sent it and nobody here has met it, this worker remembers (`revoked`).

use std::time::Duration;

use super::Shared;
use super::figures::{json, object};
use super::panel::{Given, Refused, ok};
use super::revoked::common_stamps;
use crate::backend::Record;
use crate::client::Revoked;
use crate::clock::after;
use crate::control::Command;
use crate::id::TaskId;
use crate::protocol::pidbox::{HelloReply, revoked_ids, set_repr};
use crate::protocol::{Exception, Json, JsonMap, ResultMeta, python_repr};
use crate::signal::ProcessSignal;
use crate::state::State;
use crate::task::CancelReason;

/// So many tasks are revoked at once.
const IDS_MAX: usize = 10_000;
/// The names of revoked tasks that `hello` may bring are bounded by what a worker remembers; so many are looked up at
/// once.
const LOOKED_UP: usize = 500;
/// How long others may take to answer `hello`, as Celery gives them.
const HELLO_PATIENCE: Duration = Duration::from_secs(1);

/// `revoke` and `terminate`.
pub(super) async fn revoke(shared: &Shared, given: &Given, terminate: bool) -> Result<Json, Refused> {
    let terminate = terminate || given.flag("terminate")?;
    let signal = signal(given)?;
    let named = match given.get("task_id")? {
        one if one.as_string().is_some() => vec![given.value::<String>("task_id", "a task id")?],
        _ => given.value::<Vec<String>>("task_id", "a task id, or a list of them")?,
    };
    if named.len() > IDS_MAX {
        return Err(Refused(format!("task_id: at most {IDS_MAX} tasks are revoked at once")));
    }
    let ids: Vec<TaskId> = named.iter().map(|id| TaskId::from(id.as_str())).collect();
    let revoked = shared.app.revoke_known(&ids, terminate, signal).await;
    let revoked = revoked.map_err(|error| Refused(format!("the store: {error}")))?;
    let mut unknown = Vec::new();
    let mut running = Vec::new();
    for (id, revoked) in ids.iter().zip(revoked) {
        match revoked {
            Revoked::Unknown => unknown.push(id.clone()),
            Revoked::Running { worker, .. } if worker == shared.worker => running.push(id.as_str()),
            _ => {}
        }
    }
    remember(shared, unknown).await;
    tracing::info!(tasks = ids.len(), terminate, "told of revoked tasks");
    Ok(ok(&if !terminate {
        format!("tasks {} flagged as revoked", set_repr(named.iter().map(String::as_str)))
    } else if running.is_empty() {
        "terminate: tasks unknown".to_owned()
    } else {
        format!("terminate: {}", running.join(", "))
    }))
}

/// The signal to stop what runs by: its name, or its number as a number or a text; Celery sends null where none is named.
fn signal(given: &Given) -> Result<Option<ProcessSignal>, Refused> {
    let Some(signal) = given.optional("signal") else { return Ok(None) };
    let text = signal.as_string().map_or_else(|| signal.as_str().to_owned(), std::borrow::Cow::into_owned);
    text.parse().map(Some).map_err(|why| Refused(format!("signal: {why}")))
}

/// Remembers tasks that the store does not know, and stores REVOKED for them, as Celery 5.7, so that who waits for one
/// hears of it before a worker meets it.
async fn remember(shared: &Shared, ids: Vec<TaskId>) {
    if ids.is_empty() {
        return;
    }
    let now = shared.app.clock().now();
    let results = ids
        .iter()
        .map(|id| ResultMeta {
            date_done: Some(now),
            ..ResultMeta::new(id, State::Revoked, Exception::revoked().encode())
        })
        .collect();
    if let Err(error) = shared.app.store().control.note_revoked(&ids).await {
        tracing::warn!(%error, "cannot note that tasks are revoked; workers that start later do not know");
    }
    shared.revoked.add(ids, now);
    if let Err(error) = shared.app.store().backend.record(vec![Record { results, ..Record::default() }]).await
    {
        tracing::warn!(%error, "cannot store that tasks are revoked; those who wait hear of it when a worker meets them");
    }
}

/// `revoke_by_stamped_headers`.
pub(super) fn revoke_by_stamps(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let terminate = given.flag("terminate")?;
    let signal = signal(given)?;
    let headers = given.get("headers")?;
    let stamps = match headers.entries() {
        Ok(stamps) => stamps,
        Err(_) => {
            let pairs: Vec<String> = given.value("headers", "an object, or a list of name=value")?;
            let mut stamps = JsonMap::new();
            for pair in pairs {
                let (name, value) = pair
                    .split_once('=')
                    .ok_or_else(|| Refused(format!("headers: should be name=value, is {pair:?}")))?;
                stamps.insert(name, Json::string(value));
            }
            stamps
        }
    };
    for (name, values) in &stamps {
        shared.revoked.add_stamps(name, super::revoked::stamp_values(Some(values)));
    }
    let shown = python_repr(&stamps.to_json());
    tracing::info!(stamps = %shown, terminate, "told of revoked stamps");
    if !terminate {
        return Ok(ok(&format!("headers {shown} flagged as revoked, but not terminated")));
    }
    let mut terminated: Vec<(String, Vec<Json>)> = Vec::new();
    for run in shared.held.runs() {
        let common = common_stamps(&run.context.headers().stamps, &stamps);
        if common.is_empty() {
            continue;
        }
        shared.held.cancel_by(&run.tag, CancelReason::Revoked, signal);
        for (name, values) in common {
            match terminated.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => {
                    known.extend(
                        values.into_iter().filter(|value| !known.contains(value)).collect::<Vec<_>>(),
                    );
                }
                None => terminated.push((name, values)),
            }
        }
    }
    if terminated.is_empty() {
        return Ok(ok(&format!("headers {shown} were not terminated")));
    }
    // As Python prints what Celery gathers them in.
    let sets: Vec<String> = terminated
        .iter()
        .map(|(name, values)| {
            let values: Vec<String> = values.iter().map(python_repr).collect();
            format!("{}: {{{}}}", python_repr(&Json::string(name)), values.join(", "))
        })
        .collect();
    Ok(ok(&format!("headers defaultdict(<class 'set'>, {{{}}}) revoked", sets.join(", "))))
}

/// `hello`: a worker that starts tells what it knows to be revoked, and asks what others do.
pub(super) async fn hello(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let from: String = given.value("from_node", "a node name")?;
    if from == *shared.node {
        return Ok(Json::null());
    }
    tracing::info!(%from, "a worker says hello");
    if let Some(revoked) = given.optional("revoked") {
        merge(shared, revoked).await.map_err(Refused)?;
    }
    let now = shared.app.clock().now();
    let clock = shared.app.store().control.announcer().map_or(0, |announcer| announcer.clock().forward());
    Ok(json(&HelloReply {
        revoked: shared.revoked.ids(now).iter().map(ToString::to_string).collect(),
        clock,
    }))
}

/// Takes over what another worker knows to be revoked, but for what the store knows better.
async fn merge(shared: &Shared, revoked: &Json) -> Result<(), String> {
    let ids = revoked_ids(revoked).map_err(|why| why.to_string())?;
    let ids: Vec<TaskId> = ids.into_iter().map(TaskId::from).collect();
    for ids in ids.chunks(LOOKED_UP) {
        let places = shared.app.store().broker.locate(ids).await.map_err(|error| error.to_string())?;
        let unknown = ids.iter().zip(places).filter(|(_, place)| place.is_none()).map(|(id, _)| id.clone());
        shared.revoked.add(unknown, shared.app.clock().now());
    }
    Ok(())
}

/// Learns what was revoked before this worker began and is not known to the store.
pub(super) async fn learn(shared: &Shared) {
    match shared.app.store().control.noted_revoked().await {
        Ok(ids) => shared.revoked.add(ids, shared.app.clock().now()),
        Err(error) => tracing::warn!(%error, "cannot ask what is revoked and not known to the store"),
    }
}

/// Says hello to the other workers, and takes over what they know to be revoked: Celery's mingle. The worker does not
/// wait for it.
pub(super) async fn mingle(shared: &Shared) {
    let control = &shared.app.store().control;
    let Some(announcer) = control.announcer() else { return };
    let now = shared.app.clock().now();
    let known: Vec<String> = shared.revoked.ids(now).iter().map(ToString::to_string).collect();
    let command = Command {
        ticket: uuid::Uuid::new_v4().hyphenated().to_string().into(),
        method: "hello".into(),
        arguments: object([("from_node", json(&*shared.node)), ("revoked", json(&known))]),
        destination: None,
        expires: after(now, HELLO_PATIENCE),
    };
    let said = async {
        control.send(&command).await?;
        control.replies(&command.ticket, usize::MAX, HELLO_PATIENCE).await
    };
    let replies = match said.await {
        Ok(replies) => replies,
        Err(error) => {
            tracing::warn!(%error, "cannot say hello to other workers");
            return;
        }
    };
    let mut others = 0;
    for reply in replies {
        // Ourselves, and what is no answer to a hello.
        let Ok(answer) = reply.content.entries() else { continue };
        others += 1;
        if let Some(clock) = answer.get("clock").and_then(|clock| clock.to().ok()) {
            announcer.clock().adjust(clock);
        }
        if let Some(revoked) = answer.get("revoked")
            && let Err(why) = merge(shared, revoked).await
        {
            tracing::warn!(worker = %reply.worker, why, "cannot take over what this worker knows to be revoked");
        }
    }
    tracing::info!(others, "said hello to other workers");
}
