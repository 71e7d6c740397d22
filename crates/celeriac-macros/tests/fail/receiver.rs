//! A worker has no value to call a method of.

struct Mailer;

impl Mailer {
    #[celeriac::task]
    async fn send(&self, to: String) {}
}

fn main() {}
