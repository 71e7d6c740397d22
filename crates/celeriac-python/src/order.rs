//! What else a task asks of the store of its worker, where it has no other way there: that other tasks be revoked or
//! forgotten, that a group be kept. `python/celeriac/_worker/store.py` is the other end.

use celeriac::protocol::ResultTuple;
use celeriac::{Celeriac, GroupId, Json, ProcessSignal, TaskId};
use serde::Deserialize;

/// What is asked.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    Revoke {
        ids: Vec<String>,
        #[serde(default)]
        terminate: bool,
        signal: Option<String>,
    },
    Forget {
        ids: Vec<String>,
    },
    SaveGroup {
        id: String,
        result: Json,
    },
    Group {
        id: String,
    },
    DeleteGroup {
        id: String,
    },
}

/// Does what is asked; what there is to answer, or why it cannot be done.
pub(crate) async fn carry_out(app: &Celeriac, order: &[u8]) -> Result<Json, String> {
    let order = serde_json::from_slice(order).map_err(|why| why.to_string())?;
    let backend = &app.store().backend;
    let ids_of = |ids: Vec<String>| -> Vec<TaskId> { ids.into_iter().map(TaskId::from).collect() };
    match order {
        Order::Revoke { ids, terminate: true, signal: Some(name) } => {
            let signal: ProcessSignal = name.parse().map_err(|_| format!("no signal is called {name:?}"))?;
            app.terminate(&ids_of(ids), signal).await.map(drop).map_err(|why| why.to_string())?;
        }
        Order::Revoke { ids, terminate, .. } => {
            app.revoke(&ids_of(ids), terminate).await.map(drop).map_err(|why| why.to_string())?;
        }
        Order::Forget { ids } => backend.forget(&ids_of(ids)).await.map_err(|why| why.to_string())?,
        Order::SaveGroup { id, result } => {
            let tuple = ResultTuple::decode(&result).map_err(|why| why.to_string())?;
            if tuple.children.is_none() {
                return Err("a task where a group belongs".to_owned());
            }
            backend.save_group(&GroupId::from(id), &result).await.map_err(|why| why.to_string())?;
        }
        Order::Group { id } => {
            let found = backend.group(&GroupId::from(id)).await.map_err(|why| why.to_string())?;
            return Ok(found.unwrap_or_default());
        }
        Order::DeleteGroup { id } => {
            backend.delete_group(&GroupId::from(id)).await.map_err(|why| why.to_string())?;
        }
    }
    Ok(Json::null())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn app() -> Celeriac {
        Celeriac::builder().broker("memory://").connect().await.unwrap()
    }

    async fn answer(app: &Celeriac, order: &str) -> Result<String, String> {
        carry_out(app, order.as_bytes()).await.map(|json| json.as_str().to_owned())
    }

    #[tokio::test]
    async fn a_group_is_kept_and_forgotten() {
        let app = app().await;
        let group = r#"[["g", null], [[["a", null], null]]]"#;
        let kept = answer(&app, &format!(r#"{{"save_group": {{"id": "g", "result": {group}}}}}"#)).await;
        assert_eq!(kept.as_deref(), Ok("null"));
        assert_eq!(answer(&app, r#"{"group": {"id": "g"}}"#).await.as_deref(), Ok(group));
        assert_eq!(answer(&app, r#"{"delete_group": {"id": "g"}}"#).await.as_deref(), Ok("null"));
        assert_eq!(answer(&app, r#"{"group": {"id": "g"}}"#).await.as_deref(), Ok("null"));
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_told() {
        let app = app().await;
        for (order, word) in [
            ("{", "EOF"),
            (r#"{"dance": {}}"#, "dance"),
            (r#"{"forget": {"ids": "a"}}"#, "sequence"),
            (r#"{"save_group": {"id": "g", "result": [["a", null], null]}}"#, "a task where a group belongs"),
            (r#"{"revoke": {"ids": ["a"], "terminate": true, "signal": "SIGWHAT"}}"#, "SIGWHAT"),
        ] {
            let why = answer(&app, order).await.unwrap_err();
            assert!(why.contains(word), "{order}: {why}");
        }
    }
}
