//! What `#[task]` generates. What it accepts, and says of what it cannot, is tested in its own crate.

use std::time::Duration;

use celeriac::protocol::JsonMap;
use celeriac::task::Task;
use celeriac::{BlockingContext, CallOptions, Celeriac, Context, Error, Json};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(30);

#[celeriac::task]
async fn describe(cx: Context, path: String, #[default(10)] limit: usize, r#type: Option<String>) -> String {
    let kind = r#type.unwrap_or_else(|| "unknown".to_owned());
    format!("{} {path} {limit} {kind}", cx.task())
}

#[celeriac::task]
fn subtract(cx: BlockingContext, x: i32, y: i32) -> Result<i32, std::io::Error> {
    assert!(!cx.is_cancelled());
    Ok(x - y)
}

#[celeriac::task]
fn nothing() {}

/// Calls by name, as another language would, and gives the value or what was wrong, in JSON or in words.
async fn called<T: Task>(app: &Celeriac, args: &[&str], kwargs: &[(&str, &str)]) -> Result<String, String> {
    let json = |text: &str| Json::parse(text).expect("a JSON literal");
    let args = args.iter().map(|arg| json(arg)).collect();
    let kwargs: JsonMap = kwargs.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect();
    let result = app.send_task(T::NAME, args, kwargs, CallOptions::default()).await.expect("it is sent");
    match result.get_timeout(PATIENCE).await {
        Ok(value) => Ok(value.as_str().to_owned()),
        Err(Error::Task(failure)) => {
            let exception = failure.exception.expect("a failure has an exception");
            Err(format!("{}: {}", exception.exc_type, exception.message().expect("and that has a message")))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_bound_as_python_binds_them() {
    let app = Celeriac::connect("memory://").await.expect("memory is there");
    let app = app.register(describe).register(subtract).register(nothing);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(app.worker().concurrency(2).run(async { drop(stopped.await) }));
    let name = describe::NAME;
    assert_eq!(name, "it.macros.describe");

    let value = called::<describe>(&app, &["\"a\""], &[]).await;
    assert_eq!(value, Ok(format!("\"{name} a 10 unknown\"")));
    let value = called::<describe>(&app, &["\"a\"", "3"], &[("type", "\"text\"")]).await;
    assert_eq!(value, Ok(format!("\"{name} a 3 text\"")), "a raw identifier goes by its plain name");
    let value = called::<describe>(&app, &[], &[("type", "null"), ("path", "\"b\"")]).await;
    assert_eq!(value, Ok(format!("\"{name} b 10 unknown\"")));
    assert_eq!(called::<subtract>(&app, &["5", "3"], &[]).await, Ok("2".to_owned()));
    assert_eq!(called::<subtract>(&app, &["5"], &[("y", "3")]).await, Ok("2".to_owned()));
    assert_eq!(called::<nothing>(&app, &[], &[]).await, Ok("null".to_owned()));

    let wrong = |problem: &str| Err(format!("TypeError: {problem}"));
    let value = called::<describe>(&app, &[], &[]).await;
    assert_eq!(value, wrong("it.macros.describe() missing required argument: 'path'"));
    let value = called::<nothing>(&app, &["1"], &[]).await;
    assert_eq!(value, wrong("it.macros.nothing() takes 0 arguments but 1 were given"));
    let value = called::<subtract>(&app, &["1", "2"], &[("z", "3")]).await;
    assert_eq!(value, wrong("it.macros.subtract() got an unexpected keyword argument 'z'"));

    stop.send(()).expect("the worker listens");
    worker.await.expect("the worker does not panic").expect("the worker ran");
}
