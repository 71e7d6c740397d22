//! The context comes first, by value, and fits the function.

#[celeriac::task]
async fn last(path: String, cx: celeriac::Context) {}

#[celeriac::task]
async fn borrowed(cx: &celeriac::Context) {}

#[celeriac::task]
async fn blocking(cx: celeriac::BlockingContext) {}

fn main() {}
