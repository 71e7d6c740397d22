//! The `celeriac` binary.

fn main() {}
