//! The worker that the interop suite runs beside Python's: the command line with tasks that mirror those of
//! `interop/app.py`, under `rust.…` where those are `py.…`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use celeriac::protocol::{Exception, JsonMap, extended};
use celeriac::{CallOptions, Celeriac, Context, Ignore, Json, Reject, chord, group};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[celeriac::task(name = "rust.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "rust.mul")]
async fn mul(x: i64, y: i64) -> i64 {
    x * y
}

#[celeriac::task(name = "rust.xsum")]
async fn xsum(numbers: Vec<i64>) -> i64 {
    numbers.iter().sum()
}

#[celeriac::task(name = "rust.echo")]
async fn echo(value: Json) -> Json {
    value
}

/// What Python's types become here, as text, and each of them back again.
#[celeriac::task(name = "rust.types")]
async fn types(
    at: extended::DateTime,
    naive: extended::NaiveDateTime,
    day: extended::Date,
    time: extended::Time,
    amount: extended::Decimal,
    id: extended::Uuid,
    bytes: extended::Bytes,
) -> Result<Value, Failure> {
    let text = [
        at.0.to_string(),
        naive.0.to_string(),
        day.0.to_string(),
        time.0.to_string(),
        amount.0.clone(),
        id.0.to_string(),
        format!("{:?}", bytes.0),
    ];
    Ok(json!({ "text": text, "back": [
        Json::from_value(&at)?.to::<Value>()?,
        Json::from_value(&naive)?.to::<Value>()?,
        Json::from_value(&day)?.to::<Value>()?,
        Json::from_value(&time)?.to::<Value>()?,
        Json::from_value(&amount)?.to::<Value>()?,
        Json::from_value(&id)?.to::<Value>()?,
        Json::from_value(&bytes)?.to::<Value>()?,
    ] }))
}

#[celeriac::task(name = "rust.fail")]
async fn fail(message: String) -> Result<(), Exception> {
    Err(Exception::builtin("ValueError", &message))
}

#[derive(Debug)]
struct DiskOnFire(String);

impl std::fmt::Display for DiskOnFire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the disk is on fire in {}", self.0)
    }
}

impl std::error::Error for DiskOnFire {}

/// Fails with an error of its own.
#[celeriac::task(name = "rust.burn")]
async fn burn(place: String) -> Result<(), DiskOnFire> {
    Err(DiskOnFire(place))
}

#[celeriac::task(name = "rust.panic")]
async fn panic(message: String) {
    panic!("{message}");
}

/// Runs for so many seconds, unless it is told to stop.
#[celeriac::task(name = "rust.slow")]
async fn slow(cx: Context, seconds: f64, name: String) -> Result<String, Failure> {
    note(&name)?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => Ok(name),
        cancelled = cx.cancelled() => Err(cancelled.into()),
    }
}

/// Runs for so many seconds, and leaves in its log, which is in the store, when and where it began.
#[celeriac::task(name = "rust.stamped")]
async fn stamped(cx: Context, seconds: f64) -> u32 {
    let began = json!({ "run": cx.deliveries(), "pid": std::process::id() });
    cx.emit("began", &began).await;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    cx.deliveries()
}

/// Succeeds in the run after so many retries.
#[celeriac::task(name = "rust.retry", max_retries = 3)]
async fn retry(cx: Context, times: u32, countdown: f64) -> Result<u32, Failure> {
    if cx.retries() < times {
        let because = Exception::builtin("RuntimeError", &format!("try{}", cx.retries()));
        let countdown = Duration::from_secs_f64(countdown);
        return Err(cx.retry().countdown(countdown).because(because).into());
    }
    Ok(cx.retries())
}

/// Shows a state of its own until the file is there.
#[celeriac::task(name = "rust.progress")]
async fn progress(cx: Context, until: PathBuf) -> Result<String, Failure> {
    cx.update_state("PROGRESS", &json!({ "current": 1, "total": 2 })).await;
    while !until.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok("done".to_owned())
}

#[celeriac::task(name = "rust.noresult", ignore_result)]
async fn noresult(name: String) -> Result<String, Failure> {
    note(&name)?;
    Ok(name)
}

#[celeriac::task(name = "rust.ignore")]
async fn ignore() -> Result<(), Ignore> {
    Err(Ignore)
}

#[celeriac::task(name = "rust.reject")]
async fn reject() -> Result<(), Reject> {
    Err(Reject { reason: "nope".to_owned(), requeue: false })
}

/// What a run is told of itself.
#[celeriac::task(name = "rust.context")]
async fn context(cx: Context, value: Json) -> Value {
    let headers = cx.headers();
    let map = |map: &JsonMap| map.to_json().to::<Value>().unwrap_or_default();
    json!({
        "id": headers.id,
        "root_id": headers.root_id,
        "parent_id": headers.parent_id,
        "group": headers.group,
        "group_index": headers.group_index,
        "retries": headers.retries,
        "origin": headers.origin,
        "stamps": map(&headers.stamps),
        "custom": map(&headers.custom),
        "queue": cx.queue(),
        "value": value.to::<Value>().unwrap_or_default(),
    })
}

/// Sends another task, and returns its id.
#[celeriac::task(name = "rust.spawn")]
async fn spawn(cx: Context, task: String, args: Vec<Json>) -> Result<String, Failure> {
    let sent = cx.app().send_task(&task, args, JsonMap::new(), CallOptions::default()).await?;
    Ok(sent.id().to_string())
}

/// Sends another task and waits for it, and tells how it failed.
#[celeriac::task(name = "rust.catch")]
async fn catch(cx: Context, task: String, args: Vec<Json>) -> Result<Value, Failure> {
    let sent = cx.app().send_task(&task, args, JsonMap::new(), CallOptions::default()).await?;
    match sent.get_timeout(Duration::from_secs(60)).await {
        Ok(value) => Err(format!("it should fail, and returned {value}").into()),
        Err(celeriac::Error::Task(failed)) => {
            let exception = failed.exception.ok_or("no exception is stored")?;
            let args: Vec<Value> = exception.exc_message.iter().map(Json::to).collect::<Result<_, _>>()?;
            Ok(json!({
                "state": failed.state.as_str(),
                "module": exception.exc_module,
                "type": exception.exc_type,
                "args": args,
                "has_traceback": failed.traceback.is_some(),
            }))
        }
        Err(other) => Err(other.into()),
    }
}

/// Sends a group and saves it, and returns its id.
#[celeriac::task(name = "rust.save")]
async fn save(cx: Context, tasks: Vec<String>) -> Result<String, Failure> {
    let args = vec![Json::from_value(&2)?, Json::from_value(&3)?];
    let members = group(tasks.iter().map(|task| celeriac::signature(task, args.clone())));
    let sent = members.delay(cx.app()).await?;
    sent.save().await?;
    Ok(sent.id().to_string())
}

/// Joins a group that somebody saved.
#[celeriac::task(name = "rust.restore")]
async fn restore(cx: Context, group_id: String) -> Result<Value, Failure> {
    let saved = cx.app().restore_group::<Value>(&group_id.as_str().into()).await?;
    let values = saved.ok_or("no such group was saved")?.get_timeout(Duration::from_secs(60)).await?;
    Ok(json!(values))
}

/// Sends a workflow of tasks of the sides named, and returns the id of its result, or those of a group's members.
#[celeriac::task(name = "rust.compose")]
async fn compose(cx: Context, kind: String, sides: (String, String)) -> Result<Value, Failure> {
    let call = |side: &str, task: &str, args: &[i64]| {
        let args = args.iter().map(Json::from_value).collect::<Result<Vec<_>, _>>();
        args.map(|args| celeriac::signature(&format!("{side}.{task}"), args))
    };
    let (a, b) = (&*sides.0, &*sides.1);
    let app = cx.app();
    let sent = match &*kind {
        "chain" => {
            let chain = call(a, "add", &[1, 2])?.then(call(b, "add", &[3])?).then(call(a, "mul", &[2])?);
            chain.delay(app).await?.id()
        }
        "chord" => {
            let header = [call(a, "add", &[1, 1])?, call(b, "add", &[2, 2])?];
            chord(header, call(b, "xsum", &[])?).delay(app).await?.id()
        }
        "chain_of_chord" => {
            let header = [call(b, "add", &[1])?, call(a, "add", &[2])?];
            let chain = call(a, "add", &[1, 1])?.then(chord(header, call(b, "xsum", &[])?));
            chain.then(call(a, "mul", &[2])?).delay(app).await?.id()
        }
        "chord_of_chains" => {
            let header = [
                call(a, "add", &[1, 1])?.then(call(b, "add", &[2])?),
                call(b, "add", &[2, 2])?.then(call(a, "add", &[2])?),
            ];
            chord(header, call(b, "echo", &[])?).delay(app).await?.id()
        }
        "group" => {
            let members =
                group([call(a, "add", &[1, 1])?, call(b, "add", &[2, 2])?]).delay(app).await?.results();
            return Ok(members.iter().map(|member| json!(member.id())).collect());
        }
        other => return Err(format!("no workflow is called {other}").into()),
    };
    Ok(json!(sent))
}

/// An errback of the old style: it gets the id of the task that failed.
#[celeriac::task(name = "rust.errback")]
async fn errback(task_id: String) -> Result<(), Failure> {
    note(&format!("rust.errback {task_id}"))
}

/// A callback that leaves a trace.
#[celeriac::task(name = "rust.callback")]
async fn callback(value: Json, name: String) -> Result<(), Failure> {
    note(&format!("rust.callback {name} {value}"))
}

/// Adds a line to the notes, which the tests read.
fn note(line: &str) -> Result<(), Failure> {
    let path = PathBuf::from(std::env::var("INTEROP_NOTES")?);
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    // One write, so that lines of several processes do not mix.
    file.write_all(format!("{line}\n").as_bytes())?;
    Ok(())
}

fn main() -> std::process::ExitCode {
    let builder = Celeriac::builder()
        .register(add)
        .register(mul)
        .register(xsum)
        .register(echo)
        .register(types)
        .register(fail)
        .register(burn)
        .register(panic)
        .register(slow)
        .register(stamped)
        .register(retry)
        .register(progress)
        .register(noresult)
        .register(ignore)
        .register(reject)
        .register(context)
        .register(spawn)
        .register(catch)
        .register(save)
        .register(restore)
        .register(compose)
        .register(errback)
        .register(callback);
    celeriac_cli::run(builder)
}
