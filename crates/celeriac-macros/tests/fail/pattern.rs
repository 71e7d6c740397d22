//! An argument has a name.

#[celeriac::task]
async fn distance((x, y): (f64, f64)) -> f64 {
    x.hypot(y)
}

#[celeriac::task]
async fn ignored(_: f64) {}

fn main() {}
