//! What an option takes is said where it is given something else.

#[celeriac::task(rate_limit = "10 a minute")]
async fn limited() {}

#[celeriac::task(priority = 10)]
async fn unimportant() {}

#[celeriac::task(max_retries = None)]
async fn stubborn() {}

#[celeriac::task(expires = "tomorrow")]
async fn late() {}

#[celeriac::task(time_limit = 30, soft_time_limit = "1m")]
async fn slow() {}

fn main() {}
