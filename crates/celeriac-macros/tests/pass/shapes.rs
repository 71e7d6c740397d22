//! Every shape of function that can be a task, and what each becomes.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use celeriac::task::{Task, TaskFunction};
use celeriac::{BlockingContext, Context, Signature};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Summary {
    words: usize,
}

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl std::error::Error for Broken {}

mod alias {
    pub type Result<T> = std::result::Result<T, super::Broken>;
}

mod boxed_alias {
    pub type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
}

/// Digests a document.
#[celeriac::task]
async fn digest(
    cx: Context,
    path: PathBuf,
    #[default(10)] limit: usize,
    note: Option<String>,
) -> Result<Summary, Broken> {
    let words = path.as_os_str().len().min(limit) + note.map_or(0, |note| note.len());
    cx.progress(1, 1).await;
    Ok(Summary { words })
}

#[celeriac::task]
async fn nothing() {}

#[celeriac::task]
async fn unit(mut cx: celeriac::Context) -> () {
    let other = cx.clone();
    cx = other;
    drop(cx);
}

#[celeriac::task]
fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task]
fn blocking(cx: BlockingContext, mut words: Vec<String>) -> alias::Result<HashMap<String, u32>> {
    if cx.is_cancelled() {
        return Err(Broken);
    }
    words.sort();
    Ok(words.into_iter().map(|word| (word, 1)).collect())
}

#[celeriac::task]
fn unused_context(_: Context, r#type: (u8, [bool; 2])) -> boxed_alias::Result<u8> {
    Ok(r#type.0)
}

#[celeriac::task]
async fn boxed() -> Result<(), &'static str> {
    Err("no")
}

#[celeriac::task]
async fn defaulted_alias() -> boxed_alias::Result {
    Ok(())
}

#[celeriac::task]
pub(crate) async fn recursive(left: u32) -> u32 {
    let next: Signature<recursive> = recursive(left.saturating_sub(1));
    drop(next);
    left
}

#[celeriac::task]
fn twelve(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8) -> [u8; 12] {
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// What `register` asks for.
fn name<Parameters, T: Task>(_task: impl TaskFunction<Parameters, T>) -> &'static str {
    T::NAME
}

fn args<T: Task>(signature: &Signature<T>) -> String {
    assert_eq!(signature.wire().task, T::NAME);
    let args: Vec<&str> = signature.wire().args.iter().map(|arg| arg.as_str()).collect();
    args.join(" ")
}

fn assert_output<T: Task<Output = O>, O>() {}

fn main() {
    assert_eq!(args(&digest("notes.md".into(), 3, None)), r#""notes.md" 3 null"#);
    assert_eq!(args(&digest::s(3, Some("short".into()))), r#"3 "short""#);
    assert_eq!(args(&add(1, 2)), "1 2");
    assert_eq!(args(&add::s(2)), "2");
    assert_eq!(args(&recursive::s()), "");
    assert_eq!(args(&nothing()), "");
    assert_eq!(args(&unused_context((1, [true, false]))), "[1, [true, false]]");

    assert_output::<digest, Summary>();
    assert_output::<nothing, ()>();
    assert_output::<unit, ()>();
    assert_output::<add, i64>();
    assert_output::<blocking, HashMap<String, u32>>();
    assert_output::<unused_context, u8>();
    assert_output::<boxed, ()>();
    assert_output::<defaulted_alias, ()>();

    assert_eq!(name(digest), digest::NAME);
    assert_eq!(name(nothing), nothing::NAME);
    assert_eq!(name(twelve), twelve::NAME);

    // The function itself, as a unit test would call it.
    assert_eq!(add::call(1, 2), 3);
    let _ = (unit(), blocking(vec![]), boxed(), defaulted_alias());
}
