//! One connection: where the master is, who we are, and what the server must be.
//!
//! Asked anew for each connection, so that a failover is followed: Sentinel for the master it watches, a cluster for the
//! node that has the slot of our hash tag.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use redis::{ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Value};

use super::address::{Address, Place};
use super::fault::store_error;
use super::keys::{has_hash_tag, hash_tag};
use super::value;
use crate::store::{Error, Result};

/// How long a server may be silent in TCP's eyes.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long a Sentinel has to answer before the next one is asked as well.
const SENTINEL_HEAD_START: Duration = Duration::from_millis(300);
/// The first version with all the commands used here.
const VERSION_MIN: (u32, u32) = (6, 2);

/// How to connect.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) address: Address,
    /// `global_keyprefix`, whose hash tag names the slot in a cluster.
    pub(super) prefix: String,
    /// The prefix of results, which must have the same hash tag there.
    pub(super) result_prefix: String,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    /// How long a call waits for a connection that is down before it fails.
    pub(super) patience: Duration,
}

impl Connector {
    /// What may be shown of the server.
    pub(super) fn shown(&self) -> &str {
        &self.address.shown
    }

    /// A client of the present master.
    pub(super) async fn client(&self, protocol: ProtocolVersion) -> Result<Client> {
        let found = match &self.address.place {
            Place::Tcp(host, port) => self.client_of(Self::tcp(host, *port, self.address.tls), protocol)?,
            Place::Socket(path) => self.client_of(ConnectionAddr::Unix(PathBuf::from(path)), protocol)?,
            Place::Sentinel { .. } => {
                let (host, port) = self.ask_sentinels().await?;
                self.client_of(Self::tcp(&host, port, self.address.tls), protocol)?
            }
        };
        match self.ask_cluster(&found).await? {
            Some((host, port)) => self.client_of(Self::tcp(&host, port, self.address.tls), protocol),
            None => Ok(found),
        }
    }

    /// A connection to the present master that any number of callers may share.
    pub(super) async fn multiplexed(&self) -> Result<MultiplexedConnection> {
        let client = self.client(ProtocolVersion::RESP2).await?;
        self.open(&client, self.config()).await
    }

    pub(super) fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout))
            // Queued behind the socket; past it callers wait.
            .set_pipeline_buffer_size(1_000)
            .set_concurrency_limit(10_000)
    }

    pub(super) async fn open(
        &self,
        client: &Client,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection> {
        self.open_raw(client, config).await.map_err(|error| self.error(&error, "connect"))
    }

    pub(super) async fn open_raw(
        &self,
        client: &Client,
        config: AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    pub(super) fn error(&self, error: &RedisError, what: &str) -> Error {
        store_error(error, what, self.shown())
    }

    /// Checks that the server is one to work with.
    pub(super) async fn check(&self, connection: &mut MultiplexedConnection) -> Result<()> {
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query_async(connection)
            .await
            .map_err(|error| self.error(&error, "ask for the version"))?;
        let version = field(&info, "redis_version").unwrap_or_default();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found < VERSION_MIN {
            return Err(Error::Open {
                what: self.shown().to_owned(),
                why: format!("this is Redis {version}"),
                remedy: format!("use Redis {}.{} or later, or Valkey", VERSION_MIN.0, VERSION_MIN.1),
            });
        }
        Ok(())
    }

    fn tcp(host: &str, port: u16, tls: bool) -> ConnectionAddr {
        let host = host.to_owned();
        if tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    }

    fn info(&self, at: ConnectionAddr, settings: RedisConnectionInfo) -> Result<ConnectionInfo> {
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2));
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(KEEPALIVE * 2);
        let info = at.into_connection_info().map_err(|error| self.error(&error, "connect"))?;
        Ok(info.set_tcp_settings(tcp).set_redis_settings(settings))
    }

    fn client_of(&self, at: ConnectionAddr, protocol: ProtocolVersion) -> Result<Client> {
        let mut settings = RedisConnectionInfo::default().set_protocol(protocol).set_db(self.address.db);
        if let Some(username) = &self.address.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.address.password {
            settings = settings.set_password(password);
        }
        self.open_client(self.info(at, settings)?)
    }

    #[cfg(feature = "tls")]
    fn open_client(&self, info: ConnectionInfo) -> Result<Client> {
        // Without a provider of its own the TLS library would panic. One that the application chose is kept.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Address { ca_file, client_files, .. } = &self.address;
        if ca_file.is_none() && client_files.is_none() {
            return Client::open(info).map_err(|error| self.error(&error, "connect"));
        }
        let read = |name: &str, path: &str| {
            std::fs::read(path).map_err(|error| Error::Open {
                what: self.shown().to_owned(),
                why: format!("{name}={path}: {error}"),
                remedy: "name a readable file in PEM form".to_owned(),
            })
        };
        let root_cert = ca_file.as_ref().map(|path| read("ssl_ca_certs", path)).transpose()?;
        let client_tls = match client_files {
            Some((certificate, key)) => Some(redis::ClientTlsConfig {
                client_cert: read("ssl_certfile", certificate)?,
                client_key: read("ssl_keyfile", key)?,
            }),
            None => None,
        };
        let certificates = redis::TlsCertificates { client_tls, root_cert };
        Client::build_with_tls(info, certificates).map_err(|error| self.error(&error, "connect"))
    }

    #[cfg(not(feature = "tls"))]
    fn open_client(&self, info: ConnectionInfo) -> Result<Client> {
        Client::open(info).map_err(|error| self.error(&error, "connect"))
    }

    /// The master, as the first Sentinel that answers has it: each is asked a little after the one before it, so that
    /// one that is dead without saying so costs no more than that.
    async fn ask_sentinels(&self) -> Result<(String, u16)> {
        let Place::Sentinel { nodes, .. } = &self.address.place else {
            return Err(Error::unavailable("ask Sentinel", "there is none"));
        };
        let asked = nodes.iter().zip(0_u32..).map(|((host, port), place)| async move {
            tokio::time::sleep(SENTINEL_HEAD_START * place).await;
            self.ask_sentinel(host, *port).await
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut last = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(master) => return Ok(master),
                // What is wrong with the URL says more than that one does not answer.
                Err(error) if last.as_ref().is_none_or(Error::is_transient) => last = Some(error),
                Err(_) => {}
            }
        }
        Err(last.unwrap_or_else(|| Error::unavailable("ask Sentinel", "the URL names none")))
    }

    async fn ask_sentinel(&self, host: &str, port: u16) -> Result<(String, u16)> {
        let Place::Sentinel { service, username, password, .. } = &self.address.place else {
            return Err(Error::unavailable("ask Sentinel", "there is none"));
        };
        let mut settings = RedisConnectionInfo::default();
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let client =
            self.open_client(self.info(Self::tcp(host, port, self.address.sentinel_tls), settings)?)?;
        let mut connection = self.open(&client, self.config()).await?;
        let answer: Value = redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(service)
            .query_async(&mut connection)
            .await
            .map_err(|error| self.error(&error, "ask Sentinel"))?;
        host_and_port(&answer).ok_or_else(|| Error::Open {
            what: self.shown().to_owned(),
            why: format!("Sentinel {host}:{port} watches no service {service}"),
            remedy: "name one of those that SENTINEL MASTERS lists".to_owned(),
        })
    }

    /// Where the slot of our hash tag is, when the server is part of a cluster and has not got it itself.
    async fn ask_cluster(&self, client: &Client) -> Result<Option<(String, u16)>> {
        let mut connection = self.open(client, self.config()).await?;
        let asked = redis::cmd("INFO").arg("cluster").query_async::<String>(&mut connection).await;
        let info = asked.map_err(|error| self.error(&error, "ask for the cluster"))?;
        if field(&info, "cluster_enabled") != Some("1") {
            return Ok(None);
        }
        if !has_hash_tag(&self.prefix) {
            return Err(Error::Open {
                what: self.shown().to_owned(),
                why: "this is a cluster, where Celery's keys would lie in different slots".to_owned(),
                remedy: "give all keys one slot with global_keyprefix = \"{celery}:\", for Python as well, or use a \
                         Redis without cluster mode"
                    .to_owned(),
            });
        }
        if hash_tag(&self.prefix) != hash_tag(&self.result_prefix) {
            return Err(Error::Open {
                what: self.shown().to_owned(),
                why: "this is a cluster, where results would lie in another slot than messages".to_owned(),
                remedy: "give result_keyprefix the hash tag of global_keyprefix".to_owned(),
            });
        }
        let slot = slot_of(hash_tag(&self.prefix).unwrap_or_default().as_bytes());
        let slots: Value = redis::cmd("CLUSTER")
            .arg("SLOTS")
            .query_async(&mut connection)
            .await
            .map_err(|error| self.error(&error, "ask for the slots"))?;
        for range in value::items(&slots) {
            let [first, last, master, ..] = value::items(range) else { continue };
            if value::integer(first) <= i64::from(slot) && i64::from(slot) <= value::integer(last) {
                // An empty name stands for the node that was asked.
                return Ok(host_and_port(master).filter(|(host, _)| !host.is_empty()));
            }
        }
        Err(Error::unavailable(format!("connect ({})", self.shown()), "no node of the cluster has our slot"))
    }
}

fn host_and_port(answer: &Value) -> Option<(String, u16)> {
    let [host, port, ..] = value::items(answer) else { return None };
    Some((value::text(host)?.to_owned(), u16::try_from(value::integer(port)).ok()?))
}

/// A field of what `INFO` answers.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
}

/// The slot of a hash tag: CRC16 of XMODEM, modulo the number of slots.
fn slot_of(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12_182);
    }

    #[test]
    fn info_is_read() {
        assert_eq!(field("# Cluster\r\ncluster_enabled:1\r\n", "cluster_enabled"), Some("1"));
        assert_eq!(field("", "cluster_enabled"), None);
    }
}
