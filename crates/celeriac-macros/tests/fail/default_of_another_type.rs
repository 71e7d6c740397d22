//! A default has the type of its parameter, and no other parameter to draw on.

#[celeriac::task]
async fn page(#[default("ten")] _limit: u32) {}

#[celeriac::task]
async fn span(start: u32, #[default(start + 1)] end: u32) -> u32 {
    end - start
}

fn main() {}
