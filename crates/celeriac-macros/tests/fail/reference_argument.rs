//! A reference cannot be read from a message.

#[celeriac::task]
async fn shout(text: &str, rest: Vec<&str>, path: &std::path::Path, bytes: &[u8]) -> String {
    text.to_uppercase()
}

fn main() {}
