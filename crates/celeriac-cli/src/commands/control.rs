//! `celeriac control`: tells workers what to do.

use celeriac::protocol::JsonMap;

use super::inspect::{ask, tell, value};
use crate::Session;
use crate::args::Control;
use crate::output::{Exit, Problem};

pub(crate) async fn run(session: &Session, args: Control) -> Result<Exit, Problem> {
    let arguments = arguments(&args.command, &args.arguments)?;
    let replies = ask(session, &args.command, arguments, &args.workers).await?;
    tell(session, &replies).await
}

/// What an argument is.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Count,
    Seconds,
}

/// The arguments of a command in their order, and how many must be there. As the signatures in celery/worker/control.py.
fn signature(command: &str) -> (&'static [(&'static str, Kind)], usize) {
    match command {
        "add_consumer" | "cancel_consumer" => (&[("queue", Kind::Text)], 1),
        "pool_grow" | "pool_shrink" => (&[("n", Kind::Count)], 0),
        "rate_limit" => (&[("task_name", Kind::Text), ("rate_limit", Kind::Text)], 2),
        "time_limit" => (&[("task_name", Kind::Text), ("soft", Kind::Seconds), ("hard", Kind::Seconds)], 2),
        _ => (&[], 0),
    }
}

fn arguments(command: &str, given: &[String]) -> Result<JsonMap, Problem> {
    let (signature, needed) = signature(command);
    if given.len() < needed || given.len() > signature.len() {
        let names: Vec<String> = signature
            .iter()
            .enumerate()
            .map(|(place, (name, _))| if place < needed { (*name).to_owned() } else { format!("[{name}]") })
            .collect();
        let takes = if names.is_empty() { "no argument".to_owned() } else { names.join(" ") };
        return Err(Problem::usage(format!("{command} takes {takes}, not {} arguments", given.len())));
    }
    let mut arguments = JsonMap::new();
    for ((name, kind), text) in signature.iter().zip(given) {
        let wrong = |what| Problem::usage(format!("{command}: {name}: {text:?} is not {what}"));
        let argument = match kind {
            Kind::Text => value(text)?,
            Kind::Count => value(&text.parse::<u32>().map_err(|_| wrong("a number"))?)?,
            Kind::Seconds => value(&text.parse::<f64>().map_err(|_| wrong("a number of seconds"))?)?,
        };
        arguments.insert(*name, argument);
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(command: &str, texts: &[&str]) -> Result<String, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        arguments(command, &texts).map(|map| map.to_json().as_str().to_owned()).map_err(|why| why.message)
    }

    #[test]
    fn arguments_have_their_names() {
        assert_eq!(given("shutdown", &[]).unwrap(), "{}");
        assert_eq!(given("pool_grow", &[]).unwrap(), "{}");
        assert_eq!(given("pool_grow", &["3"]).unwrap(), r#"{"n": 3}"#);
        assert_eq!(
            given("time_limit", &["t", "5", "10.5"]).unwrap(),
            r#"{"task_name": "t", "soft": 5.0, "hard": 10.5}"#
        );
        assert_eq!(
            given("rate_limit", &["t", "10/m"]).unwrap(),
            r#"{"task_name": "t", "rate_limit": "10/m"}"#
        );
    }

    #[test]
    fn mistakes_name_the_argument() {
        for (command, texts, named) in [
            ("shutdown", &["now"] as &[&str], "takes no argument"),
            ("add_consumer", &[], "takes queue"),
            ("time_limit", &["t"], "takes task_name soft [hard]"),
            ("pool_grow", &["many"], "n: \"many\" is not a number"),
            ("time_limit", &["t", "soon"], "soft: \"soon\""),
        ] {
            let message = given(command, texts).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }
}
