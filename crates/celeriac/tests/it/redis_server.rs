//! A Redis of a test's own: on a free port of the loopback, gone when the test is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::jitter::Jitter;
use crate::support::PATIENCE;

pub(crate) struct RedisServer {
    port: u16,
    folder: TempDir,
    options: Vec<String>,
    process: Option<Child>,
    /// The path to it, where the tests go by one that is late.
    path: Option<Jitter>,
}

impl RedisServer {
    /// One that forgets everything when it ends.
    pub(crate) async fn start() -> Self {
        Self::run(&[]).await
    }

    /// One that keeps what it was told, through [`RedisServer::kill`] and [`RedisServer::restart`].
    pub(crate) async fn start_durable() -> Self {
        Self::run(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// The only node of a cluster.
    pub(crate) async fn start_in_cluster_mode() -> Self {
        Self::start_cluster(1).await.remove(0)
    }

    /// A cluster of so many masters, which share the slots evenly.
    pub(crate) async fn start_cluster(masters: u32) -> Vec<Self> {
        let mut nodes = Vec::new();
        for number in 0..masters {
            let node = Self::run(&["--cluster-enabled", "yes"]).await;
            let (first, last) = (number * 16_384 / masters, (number + 1) * 16_384 / masters - 1);
            let slots = ["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()];
            assert_eq!(node.command(&slots), "+OK\r\n");
            let epoch = ["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()];
            assert_eq!(node.command(&epoch), "+OK\r\n");
            nodes.push(node);
        }
        let deadline = Instant::now() + PATIENCE;
        let begun = |node: &Self| {
            let info = node.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_known_nodes:{masters}\r\n"))
        };
        while !nodes.iter().all(begun) {
            assert!(Instant::now() < deadline, "the cluster does not begin");
            for node in &nodes[1..] {
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string()]);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nodes
    }

    /// One with options of the test's own.
    pub(crate) async fn run(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let mut folder = tempfile::tempdir().unwrap();
        // Another process may take the port between the two; then the server ends, and another port is tried.
        for _ in 0..10 {
            let port = free_port();
            let process = Some(spawn(port, &folder, &options));
            let mut server = Self { port, folder, options: options.clone(), process, path: None };
            if server.is_up().await {
                server.path = Jitter::to(port);
                return server;
            }
            server.kill();
            folder = std::mem::replace(&mut server.folder, tempfile::tempdir().unwrap());
        }
        panic!("redis-server does not start; is it installed?");
    }

    pub(crate) fn url(&self) -> String {
        let port = self.path.as_ref().map_or(self.port, Jitter::port);
        format!("redis://127.0.0.1:{port}/0")
    }

    /// A Sentinel that watches this server as `service`, on a port of its own.
    pub(crate) async fn start_sentinel(&self, service: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = folder.path().join("sentinel.conf");
        let watch = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor {service} 127.0.0.1 {} 1\nsentinel down-after-milliseconds {service} 1000\nsentinel failover-timeout {service} 5000\n",
            self.port
        );
        std::fs::write(&file, watch).unwrap();
        let mut command = Command::new(program());
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        let process = Some(command.spawn().expect("redis-server is installed"));
        let mut sentinel = Self { port, folder, options: Vec::new(), process, path: None };
        assert!(sentinel.is_up().await, "the Sentinel starts");
        sentinel
    }

    /// Its address, without a scheme.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Becomes a replica of `master`, and has all that it has.
    pub(crate) async fn follow(&self, master: &Self) {
        assert_eq!(self.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]), "+OK\r\n");
        let deadline = Instant::now() + PATIENCE;
        while !self.command(&["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it has all that `master` has.
    pub(crate) async fn caught_up(&self, master: &Self) {
        let offset = |server: &Self, field: &str| {
            let info = server.command(&["INFO", "replication"]);
            info.lines().find_map(|line| line.strip_prefix(field)?.parse::<u64>().ok()).unwrap_or(0)
        };
        let wanted = offset(master, "master_repl_offset:");
        let deadline = Instant::now() + PATIENCE;
        while offset(self, "slave_repl_offset:") < wanted {
            assert!(Instant::now() < deadline, "the replica does not catch up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it is a master by now. A Sentinel that makes it one ends the connections that are open then, ours too.
    pub(crate) fn is_master(&self) -> bool {
        self.ask(&["ROLE"]).is_some_and(|answer| answer.contains("master"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let Some(process) = &self.process else { return };
        let pid = process.id().to_string();
        let _ = Command::new("kill").args(["-s", signal, &pid]).stderr(Stdio::null()).status().unwrap();
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again on its port and data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.process = Some(spawn(self.port, &self.folder, &self.options));
        assert!(self.is_up().await, "the server starts again");
    }

    /// Whether it answers, and no other in its place, once it had time to start.
    async fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some()) {
                return false;
            }
            // By its number: on a port that another has, that one answers before this one has ended.
            let number = self.process.as_ref().map(|process| format!("process_id:{}\r\n", process.id()));
            let answer = self.ask(&["INFO", "server"]);
            if number.is_some_and(|number| answer.is_some_and(|answer| answer.contains(&number))) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// Sends a command as any other client would, and returns the answer as it travels.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.ask(words).expect("the server answers")
    }

    fn ask(&self, words: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(word.bytes());
            request.extend(b"\r\n");
        }
        stream.write_all(&request).ok()?;
        let mut answer = String::new();
        read_answer(&mut BufReader::new(stream), &mut answer)?;
        Some(answer)
    }

    /// A number kept as text; 0 where there is none.
    pub(crate) fn number_of(&self, words: &[&str]) -> i64 {
        let answer = self.command(words);
        answer.split("\r\n").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// A number that a command answers.
    pub(crate) fn number(&self, words: &[&str]) -> i64 {
        let answer = self.command(words);
        answer.trim_start_matches(':').trim().parse().unwrap_or_else(|_| panic!("{words:?}: {answer}"))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads one answer, as it travels.
fn read_answer(from: &mut BufReader<TcpStream>, answer: &mut String) -> Option<()> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).ok()?;
    answer.push_str(&line);
    let count: i64 = line.get(1..)?.trim().parse().unwrap_or(-1);
    match line.as_bytes().first()? {
        b'$' if count >= 0 => {
            let mut bytes = vec![0; usize::try_from(count).ok()? + 2];
            from.read_exact(&mut bytes).ok()?;
            answer.push_str(&String::from_utf8_lossy(&bytes));
        }
        b'*' => {
            for _ in 0..count {
                read_answer(from, answer)?;
            }
        }
        _ => {}
    }
    Some(())
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server under test; another one than Redis by its path.
fn program() -> std::ffi::OsString {
    std::env::var_os("CELERIAC_TEST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

fn spawn(port: u16, folder: &TempDir, options: &[String]) -> Child {
    let mut command = Command::new(program());
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
    command.arg(folder.path()).args(options);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is installed")
}

#[tokio::test]
async fn another_server_is_not_taken_for_this_one() {
    let other = RedisServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let process = Some(spawn(other.port, &folder, &[]));
    let mut late = RedisServer { port: other.port, folder, options: Vec::new(), process, path: None };
    assert!(!late.is_up().await);
}
