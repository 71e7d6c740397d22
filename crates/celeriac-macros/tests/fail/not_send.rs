//! A run may move between threads while it waits.

use std::rc::Rc;

#[celeriac::task]
async fn hold(count: u32) -> u32 {
    let count = Rc::new(count);
    std::future::ready(()).await;
    *count
}

fn main() {}
