//! Ways to a Redis: TLS with certificates of one's own, a user with few rights, Sentinel, a socket, a cluster; each with the
//! whole conformance suite, whose cases have prefixes of their own on one server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celeriac::clock::{SharedClock, SystemClock};
use celeriac::protocol::JsonMap;
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::store::{Error, Store};
use celeriac::{Celeriac, chord, store_suite};
use tempfile::TempDir;

use crate::redis_server::RedisServer;
use crate::support::{PATIENCE, Running, config};

const LEASE: Duration = Duration::from_secs(20);

#[celeriac::task(name = "redis_ways.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "redis_ways.sum")]
async fn sum(values: Vec<i64>) -> i64 {
    values.iter().sum()
}

/// Settings for a server that is there, however slow the machine.
fn patient() -> RedisOptions {
    RedisOptions { connect_timeout: PATIENCE, response_timeout: PATIENCE, ..RedisOptions::default() }
}

/// A store under a prefix of its own, which is a slot of its own in a cluster.
async fn store(url: &str, clock: SharedClock) -> Store {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let prefix = format!("{{c{}}}:", NUMBER.fetch_add(1, Ordering::Relaxed));
    let options = RedisOptions { global_keyprefix: prefix.clone(), result_keyprefix: prefix, ..patient() };
    Store::of(RedisStore::connect(url, options, clock).await.unwrap())
}

async fn refused(url: &str) -> Error {
    RedisStore::connect(url, RedisOptions::default(), SystemClock::shared()).await.unwrap_err()
}

/// An authority, and certificates that it has signed.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap() };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=an authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]);
        authority
    }

    /// A certificate for this machine, signed by the authority.
    fn sign(&self, name: &str) {
        let file = |extension: &str| format!("{name}.{extension}");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &format!("/CN={name}"),
            "-keyout",
            &file("key"),
            "-out",
            &file("csr"),
        ]);
        std::fs::write(self.path("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &file("csr"),
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            "ext",
            "-out",
            &file("crt"),
        ]);
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.folder.path());
        let output = command.stdout(Stdio::null()).output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server that speaks TLS on a second port; that port, for URLs.
async fn with_tls(authority: &Authority, clients: &str) -> (RedisServer, u16) {
    authority.sign("server");
    let (crt, key, ca) =
        (authority.path("server.crt"), authority.path("server.key"), authority.path("ca.crt"));
    let port = crate::redis_server::free_port();
    let server = RedisServer::run(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        shown(&crt),
        "--tls-key-file",
        shown(&key),
        "--tls-ca-cert-file",
        shown(&ca),
        "--tls-auth-clients",
        clients,
    ])
    .await;
    (server, port)
}

/// The whole suite over TLS, the client with a certificate of its own; and what is said of certificates that will not do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls() {
    let authority = Authority::new();
    let (_server, port) = with_tls(&authority, "yes").await;
    authority.sign("client");
    let (ca, crt, key) =
        (authority.path("ca.crt"), authority.path("client.crt"), authority.path("client.key"));
    let plain = format!("rediss://127.0.0.1:{port}/0");
    let trusting = format!("{plain}?ssl_ca_certs={}", shown(&ca));
    let url = format!("{trusting}&ssl_certfile={}&ssl_keyfile={}", shown(&crt), shown(&key));
    store_suite!(at_once, |clock| store(&url, clock).await);

    let other = Authority::new();
    let of_another = format!("{plain}?ssl_ca_certs={}", shown(&other.path("ca.crt")));
    for (url, what) in [(&plain, "ssl_ca_certs"), (&of_another, "ssl_ca_certs"), (&trusting, "ssl_certfile")]
    {
        let error = refused(url).await;
        assert!(matches!(&error, Error::Open { remedy, .. } if remedy.contains(what)), "{url}: {error}");
        assert!(error.to_string().contains("trust"), "{url}: {error}");
    }
    let error = refused(&format!("{plain}?ssl_ca_certs=/no/such/file")).await;
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let error = refused(&format!("{plain}?ssl_keyfile={}", shown(&key))).await;
    assert!(error.to_string().contains("ssl_certfile"), "{error}");
    // A name that the certificate does not have.
    let error = refused(&url.replace("127.0.0.1", "localhost")).await;
    assert!(error.to_string().contains("trust"), "{error}");
}

/// The rule of the documentation.
fn documented_rule() -> Vec<&'static str> {
    let text = include_str!("../../../../docs/redis.md");
    let (_, rule) = text.split_once("ACL SETUSER celeriac on >password").unwrap();
    rule.split_once("```").unwrap().0.split_whitespace().collect()
}

fn allow(server: &RedisServer, name: &str, rule: &[&str]) {
    let mut command = vec!["ACL", "SETUSER", name, "reset", "on", ">password"];
    command.extend(rule);
    assert_eq!(server.command(&command), "+OK\r\n");
}

fn as_user(server: &RedisServer, name: &str) -> String {
    format!("redis://{name}:password@{}/0", server.address())
}

/// The whole suite as a user who has the documented commands, and keys and channels of the suite alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_user_with_few_rights() {
    let server = RedisServer::start().await;
    let mut rule = vec!["~{c*", "&*"];
    rule.extend(documented_rule().into_iter().filter(|word| !word.starts_with(['~', '&'])));
    allow(&server, "few", &rule);
    let url = as_user(&server, "few");
    store_suite!(at_once, |clock| store(&url, clock).await);
    let log = server.command(&["ACL", "LOG"]);
    assert_eq!(log, "*0\r\n", "nothing was denied");
}

/// A worker and a client with the documented rule as it stands; nothing that either does is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rule_is_enough() {
    let server = RedisServer::start().await;
    allow(&server, "documented", &documented_rule());
    let app = Celeriac::builder().broker(as_user(&server, "documented")).config(config(LEASE));
    let app = app.register(add).register(sum).connect().await.unwrap();
    let running = Running::start(app.worker().task_events(true));
    let body = chord((0..5).map(|n| add(n, 1)), sum::s()).delay(&app).await.unwrap();
    assert_eq!(body.get_timeout(PATIENCE).await.unwrap(), 15);
    let late = add(1, 1).countdown(Duration::from_millis(200)).delay(&app).await.unwrap();
    assert_eq!(late.get_timeout(PATIENCE).await.unwrap(), 2);
    let answers = app.control("ping", JsonMap::new(), None, PATIENCE).await.unwrap();
    assert_eq!(answers.len(), 1);
    assert!(!app.workers().await.unwrap().is_empty());
    running.stop().await;
    assert_eq!(server.command(&["ACL", "LOG"]), "*0\r\n", "nothing was denied");
}

/// A right that is missing is told when the store is opened, by the name of the command or key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_named() {
    let server = RedisServer::start().await;
    for (without, named) in [
        (vec!["-zadd"], vec!["ZADD", "+zadd"]),
        (vec!["-lrem", "-xadd"], vec!["LREM", "XADD"]),
        (vec!["-publish"], vec!["PUBLISH"]),
        (vec!["-evalsha"], vec!["evalsha"]),
        (vec!["-script"], vec!["script"]),
        (vec!["-info"], vec!["info"]),
        (vec!["-multi"], vec!["multi"]),
        (vec!["-client"], vec!["client"]),
        (vec!["resetkeys", "~other*"], vec!["key"]),
        (vec!["resetchannels"], vec!["celeriac:rights"]),
    ] {
        let mut rule = documented_rule();
        rule.extend(&without);
        allow(&server, "lacking", &rule);
        // A script that the server knows need not be loaded.
        server.command(&["SCRIPT", "FLUSH"]);
        let error = refused(&as_user(&server, "lacking")).await;
        assert!(matches!(error, Error::Open { .. }), "{without:?}: {error}");
        for name in named {
            assert!(error.to_string().contains(name), "{without:?}: {error}");
        }
        assert!(error.to_string().contains("docs/redis.md"), "{without:?}: {error}");
    }
    // One that is taken away later is told by its name as well.
    allow(&server, "lacking", &documented_rule());
    let url = as_user(&server, "lacking");
    let store = RedisStore::connect(&url, RedisOptions::default(), SystemClock::shared()).await.unwrap();
    server.command(&["ACL", "SETUSER", "lacking", "-lpush"]);
    let queue = celeriac::QueueName::from("celery");
    let message =
        celeriac::protocol::RawMessage::from_envelope(crate::redis::envelope("a", "tag").as_bytes());
    let routed = celeriac::broker::Routed { queue, ..crate::redis::message("a") };
    let routed = celeriac::broker::Routed { message: message.unwrap(), ..routed };
    let error = celeriac::broker::Broker::publish(&*store, vec![routed]).await.unwrap_err();
    assert!(matches!(error, Error::Open { .. }) && error.to_string().contains("LPUSH"), "{error}");
}

/// The whole suite by way of Sentinels, the first of which is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_way_of_sentinels() {
    let server = RedisServer::start().await;
    let sentinel = server.start_sentinel("tasks").await;
    let url = format!("sentinel://127.0.0.1:1,{}/tasks/0", sentinel.address());
    store_suite!(at_once, |clock| store(&url, clock).await);
}

/// The whole suite over a socket of the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("redis.sock");
    let _server = RedisServer::run(&["--unixsocket", shown(&path)]).await;
    let url = format!("redis+socket://{}?virtual_host=0", shown(&path));
    store_suite!(at_once, |clock| store(&url, clock).await);
}

/// The whole suite on a cluster of three masters, by the URL of one; the slots of its cases are spread over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster() {
    let nodes = RedisServer::start_cluster(3).await;
    let url = nodes[1].url();
    store_suite!(at_once, |clock| store(&url, clock).await);
    for node in &nodes {
        assert!(node.number(&["DBSIZE"]) > 0, "each has some of them");
    }
    let error = refused(&url).await;
    assert!(matches!(&error, Error::Open { remedy, .. } if remedy.contains("{celery}:")), "{error}");

    // An application says so in its settings.
    let mut config = config(LEASE);
    config.global_keyprefix = "{app}:".to_owned();
    let half = Celeriac::builder().broker(&url).config(config.clone()).connect().await.unwrap_err();
    assert!(half.to_string().contains("result_keyprefix"), "{half}");
    config.result_keyprefix = "{app}:".to_owned();
    let app = Celeriac::builder().broker(&url).config(config).register(add).register(sum);
    let app = app.connect().await.unwrap();
    let running = Running::start(app.worker());
    let body = chord((0..5).map(|n| add(n, 1)), sum::s()).delay(&app).await.unwrap();
    assert_eq!(body.get_timeout(PATIENCE).await.unwrap(), 15);
    running.stop().await;
}
