//! What a task fails with is an error, or can be boxed as one.

struct NotAnError;

#[celeriac::task]
async fn fail() -> Result<(), NotAnError> {
    Err(NotAnError)
}

fn main() {}
