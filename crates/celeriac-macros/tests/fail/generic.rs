//! A task has one name, so one type for each argument.

#[celeriac::task]
async fn any<T: Clone>(value: T) {}

#[celeriac::task]
async fn anything(value: impl Into<String>) {}

#[celeriac::task]
async fn short_lived<'a>(text: std::borrow::Cow<'a, str>) {}

fn main() {}
