//! Nothing in the surroundings changes what is generated, and nothing generated is in the way.
#![deny(warnings, missing_docs, missing_debug_implementations, unreachable_pub, unused_qualifications)]

use celeriac as queue;

#[allow(dead_code, missing_docs, missing_debug_implementations, non_camel_case_types, unreachable_pub)]
mod shadows {
    pub struct Option;
    pub struct Result;
    pub struct Box;
    pub struct Vec;
    pub struct String;
    pub struct Default;
    pub struct Task;
    pub struct Duration;
    pub struct str;
    pub struct u8;
    pub fn drop() {}
}
#[allow(unused_imports)]
use shadows::*;

/// Parameters may have any name.
#[queue::task(crate = queue, max_retries = 2, rate_limit = "1", queue = "q")]
async fn names(
    cx: queue::Context,
    reader: i32,
    arguments: i32,
    options: i32,
    value: i32,
    #[default(Defaults::reader())] late: i32,
) -> i32 {
    std::mem::drop(cx);
    reader + arguments + options + value + late
}

struct Defaults;

impl Defaults {
    fn reader() -> i32 {
        1
    }
}

/// Configured away, with all that belongs to it.
#[celeriac::task]
#[cfg(any())]
fn absent(x: NoSuchType) {}

/// As is each of these, in one place only.
#[celeriac::task]
#[expect(unused_variables)]
#[must_use]
fn attributed(#[allow(unused_mut)] mut unused: i32) -> i32 {
    3
}

#[deny(clippy::pedantic)]
mod strict {
    /// Not called from anywhere but a worker.
    #[celeriac::task]
    pub(super) async fn elsewhere(text: String, _more: Vec<i32>) -> usize {
        text.len()
    }
}

fn main() {
    let _ = names(1, 2, 3, 4, 5);
    let _ = attributed(1);
    assert_eq!(attributed::call(1), 3);
    let _ = strict::elsewhere(std::string::String::new(), std::vec![1]);

    // Inside a function, as tests have them.
    #[celeriac::task]
    fn local(x: i32) -> i32 {
        x
    }
    let _ = local(1);
}
