//! The conformance suite, run on every store and every wrapper.

use celeriac::clock::SharedClock;
use celeriac::memory::MemoryStore;
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::Store;
use celeriac::store_suite;
use celeriac::testing::{FaultPlan, Faulty};

use crate::redis_server::RedisServer;

fn in_memory(clock: SharedClock) -> Store {
    Store::of(MemoryStore::new(clock))
}

fn in_a_file(clock: SharedClock) -> (Store, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::open(folder.path().join("celeriac.db"), SqliteOptions::default(), clock).unwrap();
    (Store::of(store), folder)
}

async fn in_redis(clock: SharedClock) -> (Store, RedisServer) {
    let server = RedisServer::start().await;
    let store = RedisStore::connect(&server.url(), RedisOptions::default(), clock).await.unwrap();
    (Store::of(store), server)
}

/// Beside an application that has its keys under prefixes, as Celery's settings have them.
async fn in_redis_with_prefixes(clock: SharedClock) -> (Store, RedisServer) {
    let server = RedisServer::start().await;
    let options = RedisOptions {
        global_keyprefix: "{px}:".into(),
        result_keyprefix: "rp".into(),
        ..RedisOptions::default()
    };
    let store = RedisStore::connect(&server.url(), options, clock).await.unwrap();
    (Store::of(store), server)
}

fn in_two(clock: &SharedClock) -> Store {
    Store::split(&in_memory(clock.clone()), &in_memory(clock.clone()))
}

store_suite!(memory, |clock| in_memory(clock));
store_suite!(split, |clock| in_two(&clock));
store_suite!(sqlite, |clock| in_a_file(clock));
store_suite!(redis, |clock| in_redis(clock).await);
store_suite!(faulty_redis, |clock| {
    let (store, server) = in_redis(clock).await;
    (Faulty::new(store, &FaultPlan::none()), server)
});
store_suite!(redis_with_prefixes, |clock| in_redis_with_prefixes(clock).await);
store_suite!(faulty_sqlite, |clock| {
    let (store, folder) = in_a_file(clock);
    (Faulty::new(store, &FaultPlan::none()), folder)
});
store_suite!(faulty, |clock| Faulty::new(in_memory(clock), &FaultPlan::none()));
store_suite!(faulty_split, |clock| Faulty::new(in_two(&clock), &FaultPlan::none()));

/// A case that the list in the macro forgets would never run.
#[test]
fn every_case_is_listed() {
    let list = include_str!("../../src/testing/conformance/mod.rs");
    let listed: Vec<&str> = list.lines().map(str::trim).collect();
    let cases = [
        include_str!("../../src/testing/conformance/backend.rs"),
        include_str!("../../src/testing/conformance/broker.rs"),
        include_str!("../../src/testing/conformance/catalog.rs"),
        include_str!("../../src/testing/conformance/chord.rs"),
        include_str!("../../src/testing/conformance/control.rs"),
        include_str!("../../src/testing/conformance/dead.rs"),
        include_str!("../../src/testing/conformance/lease.rs"),
        include_str!("../../src/testing/conformance/listing.rs"),
        include_str!("../../src/testing/conformance/log.rs"),
        include_str!("../../src/testing/conformance/pause.rs"),
        include_str!("../../src/testing/conformance/random.rs"),
        include_str!("../../src/testing/conformance/revoke.rs"),
        include_str!("../../src/testing/conformance/transact.rs"),
    ];
    let names = cases
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("pub async fn ")?.split_once('(').map(|(name, _)| name));
    let forgotten: Vec<&str> = names.filter(|name| !listed.contains(name)).collect();
    assert!(forgotten.is_empty(), "add them to store_suite!: {forgotten:?}");
}
