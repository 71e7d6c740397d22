//! A reference cannot be stored.

#[celeriac::task]
async fn constant() -> &'static str {
    "constant"
}

#[celeriac::task]
async fn fallible() -> Result<&'static str, std::io::Error> {
    Ok("constant")
}

fn main() {}
