//! As in Python: positions would be ambiguous.

#[celeriac::task]
async fn page(#[default(10)] limit: u32, path: String) {}

#[celeriac::task]
async fn noted(note: Option<String>, path: String) {}

fn main() {}
