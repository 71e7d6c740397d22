//! A worker of an application's own, and a client of it: the library alone, on either store.
//!
//! ```sh
//! redis-server &
//! cargo run --release -p celeriac-examples --example worker -- redis://localhost          # as many as you like
//! cargo run --release -p celeriac-examples --example worker -- redis://localhost 17 25    # prints 42
//! ```
//!
//! With `sqlite://tasks.db` in place of Redis it needs no service. Python is a client of it as well, as it is of Celery:
//! `app.send_task("worker.add", (17, 25)).get()`.

use celeriac::Celeriac;
use tokio::signal::ctrl_c;

#[celeriac::task]
async fn add(a: i64, b: i64) -> i64 {
    a.saturating_add(b)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let url = arguments.first().map_or("sqlite://tasks.db", String::as_str);
    let app = Celeriac::connect(url).await?.register(add);
    if let [_, a, b] = &arguments[..] {
        let sum = add(a.parse()?, b.parse()?).delay(&app).await?;
        println!("{}", sum.get().await?);
    } else {
        let report = app.worker().run(async { drop(ctrl_c().await) }).await?;
        println!("{report:?}");
    }
    Ok(())
}
