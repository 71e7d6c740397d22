//! The options are listed when one is not among them.

#[celeriac::task(retries = 3)]
async fn work() {}

#[celeriac::task(bind = true)]
async fn bound() {}

#[celeriac::task(queue = "a", queue = "b")]
async fn twice() {}

fn main() {}
