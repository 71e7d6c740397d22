//! Tasks are plain functions.

#[celeriac::task]
unsafe fn careless() {}

#[celeriac::task]
extern "C" fn foreign() {}

#[celeriac::task]
const fn constant() {}

#[celeriac::task]
struct NotAFunction;

fn main() {}
