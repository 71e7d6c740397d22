//! The same tasks in the web server's process, or in workers of their own: nothing but the start differs.
//!
//! ```sh
//! cargo run -p celeriac-examples --example axum_tasks             # web and worker in one process
//!
//! export CELERIAC_BROKER_URL=sqlite:///tmp/tasks.db               # or: one web process …
//! cargo run -p celeriac-examples --example axum_tasks -- web
//! cargo run -p celeriac-examples --example axum_tasks -- worker   # … and as many workers as you like
//!
//! curl -X POST localhost:8000/count/30                            # 202, with the id
//! curl localhost:8000/background/tasks/ID                         # its state, progress, attempts
//! curl -N localhost:8000/background/tasks/ID/events               # all of it, live
//! curl -X POST localhost:8000/background/tasks/ID/revoke \
//!      -H 'content-type: application/json' -d '{"terminate": true}'
//! curl localhost:8000/background/tasks/ID/result?wait=30
//! ```
//!
//! What is under `/background` comes from the server's crate: submit, status, stream, result and revoke for every task of
//! the application, in the application's own router, behind whatever the application puts in front of it.

use std::time::Duration;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use celeriac::background::{Background, BackgroundTasks, Error};
use celeriac::{Celeriac, Context};
use celeriac_server::{Access, Server, ServerConfig, embedded};
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
        Some("web") => Background::without_worker(app.clone()).start().await?,
        Some(other) => anyhow::bail!("{other}: say web, worker, or nothing for both in one process"),
        None => Background::builder(app.clone()).start().await?,
    };
    let tasks = Server::new(app, Access::default(), ServerConfig::default());
    let router = Router::new()
        .route("/count/{end}", post(start))
        .nest("/background", embedded(tasks.clone()))
        .layer(background.layer());

    let listener = TcpListener::bind("127.0.0.1:8000").await?;
    let stop = async move {
        drop(ctrl_c().await);
        // Streams do not end by themselves; whoever watches comes back and goes on.
        tasks.draining().cancel();
    };
    axum::serve(listener, router).with_graceful_shutdown(stop).await?;
    println!("{:?}", background.shutdown().await);
    Ok(())
}
