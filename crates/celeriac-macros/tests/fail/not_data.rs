//! Arguments and values have to be readable and writable.

struct Connection;

#[celeriac::task]
async fn query(_connection: Connection, _text: String) {}

#[celeriac::task]
async fn connect() -> Result<Connection, std::io::Error> {
    Ok(Connection)
}

fn main() {}
