//! The same tasks in the web server's process, or in workers of their own: nothing but the start differs.
//!
//! ```sh
//! cargo run -p celeriac-examples --example axum_tasks             # web and worker in one process
//!
//! export CELERIAC_BROKER_URL=sqlite:///tmp/tasks.db               # or: one web process …
//! cargo run -p celeriac-examples --example axum_tasks -- web
//! cargo run -p celeriac-examples --example axum_tasks -- worker   # … and as many workers as you like
//!
//! curl -X POST localhost:8000/count/3                             # 202, with the id
//! curl localhost:8000/tasks/ID                                    # its state, and its result
//! curl -X DELETE localhost:8000/tasks/ID                          # stop it
//! ```

use std::time::Duration;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use celeriac::background::{Background, BackgroundTasks, Error};
use celeriac::{Celeriac, Context};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::ctrl_c;

/// Counts to `end`, a second for each. A step that is done is done, in whichever process.
#[celeriac::task(max_retries = 3, retry_backoff)]
async fn count_to(cx: Context, end: u32) -> Result<u32, celeriac::task::StepError> {
    for number in 1..=end {
        cx.step(&format!("number {number}"), || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<u32, std::io::Error>(number)
        })
        .await?;
        cx.progress(number.into(), Some(end.into())).await;
    }
    Ok(end)
}

async fn start(tasks: BackgroundTasks, Path(end): Path<u32>) -> Result<(StatusCode, Json<Value>), Error> {
    let task = tasks.add(count_to(end)).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": task.id() }))))
}

async fn look(tasks: BackgroundTasks, Path(id): Path<String>) -> Result<Json<Value>, Error> {
    let result = tasks.app().async_result::<u32>(id);
    let value = if result.ready().await? { result.get().await.ok() } else { None };
    Ok(Json(json!({ "state": result.state().await?, "result": value })))
}

async fn stop(tasks: BackgroundTasks, Path(id): Path<String>) -> Result<String, Error> {
    let what_happened = tasks.app().async_result::<u32>(id).revoke(true).await?;
    Ok(format!("{what_happened:?}\n"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("CELERIAC_BROKER_URL").unwrap_or_else(|_| "sqlite://tasks.db".to_owned());
    let app = Celeriac::connect(&url).await?.register(count_to);
    let role = std::env::args().nth(1);
    let background = match role.as_deref() {
        Some("worker") => {
            let report = app.worker().run(async { drop(ctrl_c().await) }).await?;
            println!("{report:?}");
            return Ok(());
        }
        Some("web") => Background::without_worker(app).start().await?,
        Some(other) => anyhow::bail!("{other}: say web, worker, or nothing for both in one process"),
        None => Background::builder(app).start().await?,
    };
    let router = Router::new()
        .route("/count/{end}", post(start))
        .route("/tasks/{id}", get(look).delete(stop))
        .layer(background.layer());

    let listener = TcpListener::bind("127.0.0.1:8000").await?;
    axum::serve(listener, router).with_graceful_shutdown(async { drop(ctrl_c().await) }).await?;
    println!("{:?}", background.shutdown().await);
    Ok(())
}
