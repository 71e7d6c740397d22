//! FastAPI's example of background tasks, in axum: a notification is sent after the response.
//!
//! ```sh
//! cargo run -p celeriac-examples --example axum_background
//! curl -X POST 'localhost:8000/send-notification/ada@example.com?q=engines'
//! cat log.txt
//! ```
//!
//! In FastAPI this is `background_tasks.add_task(write_log, message)`. Here the task is in `background.db` before the
//! response leaves, so that nothing that happens to the process loses it: it has an id, a result, retries. The example
//! `axum_tasks` shows the routes with which clients follow and stop such tasks.

use axum::Router;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::routing::post;
use celeriac::Celeriac;
use celeriac::background::{Background, BackgroundTasks, Error};
use tokio::net::TcpListener;
use tokio::signal::ctrl_c;

/// A plain `fn` may block: it runs on a thread of its own.
#[celeriac::task]
fn write_log(message: String) -> std::io::Result<()> {
    use std::io::Write;
    let mut log = std::fs::File::options().create(true).append(true).open("log.txt")?;
    writeln!(log, "{message}")
}

#[derive(serde::Deserialize)]
struct Search {
    q: Option<String>,
}

/// What FastAPI calls a dependency: it looks at the request, and adds a background task of its own.
struct LoggedQuery;

impl<S: Send + Sync> FromRequestParts<S> for LoggedQuery {
    type Rejection = axum::response::Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let tasks =
            BackgroundTasks::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)?;
        let search =
            Query::<Search>::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)?;
        if let Some(q) = search.0.q {
            tasks.add(write_log(format!("found query: {q}"))).await.map_err(IntoResponse::into_response)?;
        }
        Ok(Self)
    }
}

async fn send_notification(
    tasks: BackgroundTasks,
    _query: LoggedQuery,
    Path(email): Path<String>,
) -> Result<String, Error> {
    let task = tasks.add(write_log(format!("message to {email}"))).await?;
    // A closure costs nothing, may capture anything, and is gone with the process.
    tasks.spawn("greet", async move { println!("the response is out, {email} hears of it now") })?;
    Ok(format!("Message sent, as task {}\n", task.id()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = Celeriac::connect("sqlite://background.db").await?.register(write_log);
    let background = Background::builder(app).start().await?;
    let router =
        Router::new().route("/send-notification/{email}", post(send_notification)).layer(background.layer());

    let listener = TcpListener::bind("127.0.0.1:8000").await?;
    axum::serve(listener, router).with_graceful_shutdown(async { drop(ctrl_c().await) }).await?;
    // What was added runs to its end, or goes on with the next start.
    println!("{:?}", background.shutdown().await);
    Ok(())
}
