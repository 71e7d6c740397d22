//! Redis behind a bad path, or away: connections that break, connections that are dead and do not say so, a server that is
//! killed, frozen, replaced.
//!
//! Each test has a worker and clients that publish and wait over the bad path, and looks at what becomes of it over a good
//! one. How long it took until work went on is printed; what is asserted is that it does, by itself, with nothing lost.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use celeriac::protocol::JsonMap;
use celeriac::worker::Report;
use celeriac::{Celeriac, Context, TaskId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;
use crate::redis::envelope;
use crate::redis_server::RedisServer;
use crate::support::{PATIENCE, Running, config, count, each_ended_once, events, feed_until};

/// Longer than any of the troubles: what is held stays held.
const LEASE: Duration = Duration::from_secs(60);
/// Work goes on five seconds after the path is good again; a machine that does other things as well gets twice as long.
/// What waits for an answer on a dead connection until that is out of time takes longer.
const PROMISED: Duration = Duration::from_secs(10);
/// Clients that publish and wait, one task after the other.
const CLIENTS: usize = 3;
/// So often is a worker that waits woken, which would take too long if it only looked now and then.
const WAKES: usize = 12;

#[celeriac::task(name = "redis_faults.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

/// What a Python producer sends, see `envelope`.
#[celeriac::task(name = "t")]
async fn pythons(x: i64, y: i64) -> i64 {
    x * y
}

fn gate(name: &str) -> CancellationToken {
    static GATES: LazyLock<Mutex<HashMap<String, CancellationToken>>> = LazyLock::new(Mutex::default);
    GATES.lock().unwrap().entry(name.to_owned()).or_default().clone()
}

/// Runs until its gate is opened.
#[celeriac::task(name = "redis_faults.held")]
async fn held(cx: Context, name: String) -> u32 {
    cx.emit("began", &1).await;
    gate(&name).cancelled().await;
    cx.deliveries()
}

/// Those of the crowd that have begun and that have returned, by gate.
static CROWDS: LazyLock<Mutex<HashMap<String, (usize, usize)>>> = LazyLock::new(Mutex::default);

fn crowd_of(name: &str) -> (usize, usize) {
    CROWDS.lock().unwrap().get(name).copied().unwrap_or_default()
}

/// One of many that end when their gate is opened.
#[celeriac::task(name = "redis_faults.crowd")]
async fn crowd(name: String, n: usize) -> usize {
    CROWDS.lock().unwrap().entry(name.clone()).or_default().0 += 1;
    gate(&name).cancelled().await;
    CROWDS.lock().unwrap().entry(name).or_default().1 += 1;
    n
}

async fn connect(url: &str) -> Celeriac {
    let app = Celeriac::builder().broker(url).config(config(LEASE)).connect().await.unwrap();
    app.register(add).register(pythons).register(held).register(crowd)
}

/// What was sent, and what became of it as far as the clients know.
#[derive(Debug, Default)]
struct Sent {
    accepted: Vec<TaskId>,
    /// The client was told that it may or may not have happened.
    unsure: Vec<TaskId>,
}

/// A worker, clients at work, and a task that runs all the while.
struct Scene {
    client: Celeriac,
    worker: Running,
    clients: Option<Clients>,
    sent: Sent,
    held: celeriac::AsyncResult<u32>,
    gate: CancellationToken,
}

struct Clients {
    working: JoinSet<Sent>,
    stop: CancellationToken,
    /// How many tasks have finished, and when the one was sent that finished last.
    finished: watch::Receiver<(usize, Instant)>,
}

impl Clients {
    async fn start(app: &Celeriac) -> Self {
        let stop = CancellationToken::new();
        let (tell, finished) = watch::channel((0, Instant::now()));
        let mut working = JoinSet::new();
        for _ in 0..CLIENTS {
            working.spawn(send_and_wait(app.clone(), stop.clone(), tell.clone()));
        }
        Self { working, stop, finished }
    }

    /// Waits until a task has finished that was sent after `instant`.
    async fn finished_after(&mut self, instant: Instant) {
        let finished = self.finished.wait_for(|(_, sent)| *sent > instant);
        tokio::time::timeout(PROMISED, finished).await.expect("work goes on as soon as it should").unwrap();
    }

    async fn stop(mut self, sent: &mut Sent) {
        self.stop.cancel();
        while let Some(worked) = self.working.join_next().await {
            let Sent { accepted, unsure } = worked.unwrap();
            sent.accepted.extend(accepted);
            sent.unsure.extend(unsure);
        }
    }
}

/// Sends a task and waits for its result, again and again.
async fn send_and_wait(
    app: Celeriac,
    stop: CancellationToken,
    tell: watch::Sender<(usize, Instant)>,
) -> Sent {
    let mut sent = Sent::default();
    while !stop.is_cancelled() {
        let id = TaskId::random();
        let at = Instant::now();
        match add(1, 2).task_id(&id).delay(&app).await {
            Ok(result) => {
                assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 3);
                sent.accepted.push(id);
                tell.send_modify(|(count, newest)| (*count, *newest) = (*count + 1, at.max(*newest)));
            }
            Err(_) => sent.unsure.push(id),
        }
    }
    sent
}

impl Scene {
    /// Starts both at `url`, and waits until work is going on.
    async fn start(url: &str) -> Self {
        let client = connect(url).await;
        let worker = connect(url).await.worker().name("w@faults").queues(["celery", "q"]).concurrency(4);
        let worker = Running::start(worker);
        let name = TaskId::random().to_string();
        let held = held(name.clone()).delay(&client).await.unwrap();
        events(&client, &held.id(), "began", 1).await;
        let mut scene =
            Self { worker, clients: None, sent: Sent::default(), held, gate: gate(&name), client };
        scene.work().await;
        scene
    }

    /// Has the clients begin, and waits until they got somewhere.
    async fn work(&mut self) {
        let clients = self.clients.insert(Clients::start(&self.client).await);
        let some = clients.finished.wait_for(|(count, _)| *count >= 10 * CLIENTS);
        tokio::time::timeout(PATIENCE, some).await.expect("work goes on").unwrap();
    }

    /// Has the clients finish what they wait for, and begin nothing new.
    async fn rest(&mut self) {
        if let Some(clients) = self.clients.take() {
            clients.stop(&mut self.sent).await;
        }
    }

    /// The task that runs all the while ends now.
    fn release(&self) {
        self.gate.cancel();
    }

    /// What must be so once the path is good again, which it has been since `good`. `server` is where to look.
    async fn goes_on(mut self, what: &str, server: &RedisServer, good: Instant) -> Report {
        let mut took = Vec::new();
        if self.clients.is_none() {
            self.clients = Some(Clients::start(&self.client).await);
        }
        self.clients.as_mut().unwrap().finished_after(good).await;
        took.push(("work", good.elapsed()));
        self.rest().await;
        let observer = connect(&server.url()).await;
        assert_eq!(self.held.get_timeout(PATIENCE).await.unwrap(), 1, "it ran all the while");
        took.push(("the end of what ran all the while", good.elapsed()));

        // Python's tools are heard again. What they broadcast before was missed, as kombu has it.
        let heard = || server.number_of(&["GET", "celeriac:commands:last"]);
        let before = heard();
        until("a broadcast is heard", async || {
            server.number(&["PUBLISH", "/0.celery.pidbox", &ping(TaskId::random().as_str())]);
            heard() > before
        })
        .await;
        took.push(("hearing broadcasts", good.elapsed()));
        until("the worker answers a ping", async || {
            let answers = self.client.control("ping", JsonMap::new(), None, Duration::from_secs(1)).await;
            answers.is_ok_and(|answers| answers.iter().any(|reply| reply.content.as_str().contains("pong")))
        })
        .await;
        took.push(("an answer to a ping", good.elapsed()));

        let woken = async {
            for n in 0..WAKES {
                let id = TaskId::random();
                server.number(&["LPUSH", "q", &envelope(id.as_str(), &format!("tag-of-{id}"))]);
                assert_eq!(observer.async_result::<i64>(id).get().await.unwrap(), 6, "push {n}");
            }
        };
        tokio::time::timeout(PATIENCE, woken).await.expect("each push wakes");
        println!("{what}: {took:.1?} after the path was good again");

        let Sent { accepted, unsure } = &self.sent;
        each_ended_once(&observer, accepted, "SUCCESS").await;
        each_ended_once(&observer, &[self.held.id()], "SUCCESS").await;
        let records = feed_until(&observer, |_| true).await;
        for id in unsure {
            assert!(count(&records, Some(id), "end") <= 1, "ends of {id}");
        }
        let queues = observer.store().broker.queues().await.unwrap();
        assert!(queues.iter().all(|queue| queue.ready + queue.delayed == 0), "{queues:?}");
        let report = self.worker.stop().await;
        println!("{what}: {} accepted, {} unsure, {report:?}", accepted.len(), unsure.len());
        assert_eq!((report.failed, report.handed_back), (0, 0));
        report
    }
}

/// A broadcast of `celery inspect ping`, as it travels; the answers go nowhere.
fn ping(tag: &str) -> String {
    let body = format!(
        r#"{{\"method\": \"ping\", \"arguments\": {{}}, \"destination\": null, \"pattern\": null, \"matcher\": null, \"ticket\": \"{tag}\", \"reply_to\": {{\"exchange\": \"reply.celery.pidbox\", \"routing_key\": \"{tag}\"}}}}"#
    );
    format!(
        r#"{{"body": "{body}", "content-encoding": "utf-8", "content-type": "application/json", "headers": {{"clock": 2}}, "properties": {{"delivery_mode": 2, "delivery_info": {{"exchange": "celery.pidbox", "routing_key": ""}}, "priority": 0, "delivery_tag": "{tag}"}}}}"#
    )
}

/// Waits for a condition that nothing tells of.
async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened().await {
        assert!(Instant::now() < deadline, "this should happen: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A server, a path to it, and work going on over it.
async fn over_a_path(server: &RedisServer) -> (Proxy, Scene) {
    let proxy = Proxy::to(server.address()).await;
    let scene = Scene::start(&proxy.url()).await;
    (proxy, scene)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reset() {
    let server = RedisServer::start().await;
    let (proxy, scene) = over_a_path(&server).await;
    proxy.reset();
    scene.release();
    scene.goes_on("reset", &server, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_dead_and_do_not_say_so() {
    let server = RedisServer::start().await;
    let (proxy, scene) = over_a_path(&server).await;
    proxy.go_deaf();
    scene.release();
    scene.goes_on("half-open", &server, Instant::now()).await;
}

/// The pause of those who are idle is as long as that of those who work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_dead_and_do_not_say_so() {
    let server = RedisServer::start().await;
    let (proxy, mut scene) = over_a_path(&server).await;
    scene.rest().await;
    proxy.go_deaf();
    let good = Instant::now();
    scene.release();
    let observer = connect(&server.url()).await;
    let id = TaskId::random();
    server.number(&["LPUSH", "q", &envelope(id.as_str(), "tag")]);
    assert_eq!(observer.async_result::<i64>(id).get_timeout(PROMISED).await.unwrap(), 6);
    println!("half-open and idle: woken {:.1?} after", good.elapsed());
    scene.goes_on("half-open and idle", &server, good).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_for_ten_seconds() {
    let survive = async |lost: bool| {
        let server = RedisServer::start().await;
        let (proxy, scene) = over_a_path(&server).await;
        proxy.close();
        tokio::time::sleep(Duration::from_secs(5)).await;
        scene.release();
        tokio::time::sleep(Duration::from_secs(5)).await;
        if lost {
            proxy.go_deaf();
        }
        proxy.open();
        let what = if lost { "hole, connections lost" } else { "hole, connections kept" };
        scene.goes_on(what, &server, Instant::now()).await;
    };
    tokio::join!(survive(true), survive(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_drops_three_times_in_three_seconds() {
    let server = RedisServer::start().await;
    let (proxy, scene) = over_a_path(&server).await;
    for drop in 0..3 {
        proxy.refuse();
        proxy.reset();
        if drop == 1 {
            scene.release();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.open();
        if drop < 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    scene.goes_on("three drops", &server, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_killed_by_the_server() {
    let server = RedisServer::start().await;
    let mut scene = Scene::start(&server.url()).await;
    for kind in ["normal", "pubsub", "normal", "pubsub"] {
        server.command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        let clients = scene.clients.as_mut().unwrap();
        clients.finished_after(Instant::now()).await;
    }
    scene.release();
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    scene.goes_on("CLIENT KILL", &server, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_forgotten_all_the_while() {
    let server = RedisServer::start().await;
    let mut scene = Scene::start(&server.url()).await;
    for _ in 0..50 {
        server.command(&["SCRIPT", "FLUSH"]);
        let clients = scene.clients.as_mut().unwrap();
        clients.finished_after(Instant::now()).await;
    }
    scene.release();
    let report = scene.goes_on("SCRIPT FLUSH", &server, Instant::now()).await;
    assert_eq!(report.lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_starts_again() {
    let mut server = RedisServer::start_durable().await;
    let scene = Scene::start(&server.url()).await;
    server.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.release();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.restart().await;
    scene.goes_on("restart", &server, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_freezes() {
    let server = RedisServer::start().await;
    let scene = Scene::start(&server.url()).await;
    server.signal("STOP");
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.release();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.signal("CONT");
    scene.goes_on("freeze", &server, Instant::now()).await;
}

/// A replica takes over from a master that was killed, or is frozen and takes connections all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over() {
    let survive = async |how: &str| {
        let master = RedisServer::start().await;
        let replica = RedisServer::start().await;
        replica.follow(&master).await;
        let sentinel = master.start_sentinel("tasks").await;
        until("the Sentinel knows the replica", async || {
            sentinel.command(&["SENTINEL", "REPLICAS", "tasks"]).contains(&replica.address())
        })
        .await;
        let mut scene = Scene::start(&format!("sentinel://{}/tasks/0", sentinel.address())).await;
        // A replica has everything but what came in the last moment; nothing comes now.
        scene.rest().await;
        replica.caught_up(&master).await;
        master.signal(how);
        scene.release();
        scene.clients = Some(Clients::start(&scene.client).await);
        until("the replica is the master", async || replica.is_master()).await;
        let good = Instant::now();
        scene.goes_on(&format!("failover after SIG{how}"), &replica, good).await;
        master.signal("CONT");
    };
    tokio::join!(survive("KILL"), survive("STOP"));
}

/// More than wait to be written at a time: those beyond the bound keep their slots.
const CROWD: usize = 2_000;

/// Has a crowd end while nothing can be written, and looks for each end once that is over.
async fn a_crowd_ends(
    server: &mut RedisServer,
    url: &str,
    away: impl AsyncFnOnce(&mut RedisServer),
    back: impl AsyncFnOnce(&mut RedisServer),
) {
    let app = connect(url).await;
    let worker = Running::start(app.worker().concurrency(CROWD));
    let name = TaskId::random().to_string();
    let calls: Vec<_> = (0..CROWD).map(|n| crowd(name.clone(), n)).collect();
    let results = app.publish_batch(&calls).await.unwrap();
    until("all have begun", async || crowd_of(&name).0 == CROWD).await;
    away(server).await;
    gate(&name).cancel();
    until("all have returned", async || crowd_of(&name).1 == CROWD).await;
    back(server).await;
    let good = Instant::now();
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), n);
    }
    println!("{CROWD} ends were stored {:.1?} after", good.elapsed());
    let ids: Vec<TaskId> = results.iter().map(celeriac::AsyncResult::id).collect();
    each_ended_once(&app, &ids, "SUCCESS").await;
    assert_eq!(crowd_of(&name), (CROWD, CROWD), "none ran again");
    let report = worker.stop().await;
    assert_eq!((report.failed, report.handed_back, report.succeeded + report.lost), (0, 0, CROWD as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_wait_for_the_server() {
    let mut server = RedisServer::start_durable().await;
    let url = server.url();
    let away = async |server: &mut RedisServer| server.kill();
    a_crowd_ends(&mut server, &url, away, async |server: &mut RedisServer| server.restart().await).await;
}

/// A right that was taken away says nothing of what is to be written either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_wait_for_a_right() {
    let mut server = RedisServer::start().await;
    server.command(&["ACL", "SETUSER", "some", "on", ">password", "~*", "&*", "+@all"]);
    let url = format!("redis://some:password@{}/0", server.address());
    let away = async |server: &mut RedisServer| {
        server.command(&["ACL", "SETUSER", "some", "-evalsha"]);
    };
    let back = async |server: &mut RedisServer| {
        // Long enough for the first of them to have been refused.
        until("a call was refused", async || server.command(&["ACL", "LOG"]).contains("evalsha")).await;
        server.command(&["ACL", "SETUSER", "some", "+evalsha"]);
    };
    a_crowd_ends(&mut server, &url, away, back).await;
}

/// While the store is away for longer than a lease, nobody takes what runs on: who lives renews it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_a_lease_loses_no_run() {
    const SHORT: Duration = Duration::from_secs(3);
    let mut server = RedisServer::start_durable().await;
    let connect = async || {
        let app = Celeriac::builder().broker(server.url()).config(config(SHORT)).connect().await.unwrap();
        app.register(held)
    };
    let app = connect().await;
    // One that runs it, and others that would like to.
    let worker = Running::start(app.worker());
    let name = TaskId::random().to_string();
    let result = held(name.clone()).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    let others = [Running::start(connect().await.worker()), Running::start(connect().await.worker())];
    for round in 0..2 {
        server.kill();
        tokio::time::sleep(SHORT + Duration::from_secs(1)).await;
        server.restart().await;
        // Longer than those wait who would restore it.
        tokio::time::sleep(SHORT + Duration::from_secs(1)).await;
        let task = app.store().catalog.task(&result.id()).await.unwrap().unwrap();
        assert_eq!(task.attempts.len(), 0, "round {round}: {:?}", task.attempts);
    }
    gate(&name).cancel();
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1, "it ran once");
    assert_eq!(worker.stop().await.succeeded, 1);
    for other in others {
        other.stop().await;
    }
}
