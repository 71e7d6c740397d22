//! Where a Redis is: the URL, taken apart.
//!
//! `redis://[[user]:password@]host[:port][/db]`, the same with `rediss://` for TLS, where
//! `?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE` may follow, `redis+socket:///path[?db=]`, and
//! `sentinel://[[user]:password@]host[:port][,host[:port]…][/service][/db][?service=&db=…]`. Of Sentinels each may have an
//! address of its own, as Celery has them: `sentinel://host:port/db;sentinel://host:port/db`.

use crate::store::{Error, Result};

/// The port of a Redis.
const REDIS_PORT: u16 = 6379;
/// The port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// Where to connect, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(super) place: Place,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: i64,
    pub(super) tls: bool,
    /// The Sentinels speak TLS as well.
    pub(super) sentinel_tls: bool,
    /// A file with the certificate of an authority of one's own: `ssl_ca_certs`.
    pub(super) ca_file: Option<String>,
    /// Files with the client's own certificate and its key: `ssl_certfile`, `ssl_keyfile`.
    pub(super) client_files: Option<(String, String)>,
    /// What may be shown of the URL.
    pub(super) shown: String,
}

/// One server, or those who know which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(String, u16),
    Socket(String),
    Sentinel {
        nodes: Vec<(String, u16)>,
        service: String,
        username: Option<String>,
        password: Option<String>,
    },
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.shown).finish()
    }
}

impl Address {
    /// Takes a URL apart.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let shown = crate::app::redacted(url);
        let wrong = |why: String| Error::Open {
            what: shown.clone(),
            why,
            remedy: "write redis://[user:password@]host:port/db, rediss://… for TLS, or \
                     sentinel://host:port,host:port/service"
                .to_owned(),
        };
        // More Sentinels, each with an address of its own. Who they let in, and to which database, is said by the first.
        let mut addresses = url.split(";sentinel://");
        let (first, others) = (addresses.next().unwrap_or_default(), addresses);
        let (scheme, rest) = first.split_once("://").ok_or_else(|| wrong("there is no scheme".to_owned()))?;
        // A password may hold any character but `@` is taken at its last place, as browsers and redis-cli do.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut query = Query::read(query, &wrong)?;
        let mut more_nodes = Vec::new();
        for other in others {
            let other = other.rsplit_once('@').map_or(other, |(_, place)| place);
            let (place, more) = other.split_once('?').unwrap_or((other, ""));
            more_nodes.push(place.split_once('/').map_or(place, |(hosts, _)| hosts));
            query.0.append(&mut Query::read(more, &wrong)?.0);
        }
        let (mut username, mut password) = (None, None);
        if let Some(credentials) = credentials {
            let (user, word) = credentials.split_once(':').unwrap_or((credentials, ""));
            username = Some(decoded(user)).filter(|user| !user.is_empty());
            password = Some(decoded(word)).filter(|word| !word.is_empty());
        }
        let (tls, socket, sentinel) = match scheme {
            "redis" | "valkey" => (query.flag("ssl"), false, false),
            "rediss" | "valkeys" => (true, false, false),
            "redis+socket" | "redis+unix" | "unix" | "socket" => (false, true, false),
            "sentinel" => (query.flag("ssl"), false, true),
            other => return Err(wrong(format!("scheme {other} is unknown"))),
        };
        if tls && !cfg!(feature = "tls") {
            return Err(Error::Open {
                what: shown.clone(),
                why: "this build has no TLS".to_owned(),
                remedy: "build celeriac with the feature `tls`".to_owned(),
            });
        }
        let username = query.text("username").or(username);
        let password = query.text("password").or(password);
        let (place, path_db) = if socket {
            (Place::Socket(decoded(place)), None)
        } else {
            let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
            let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
            let db = segments.pop_if(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
            let place = if sentinel {
                let nodes = hosts.split([',', ';']).chain(more_nodes).filter(|node| !node.is_empty());
                let nodes: Vec<_> =
                    nodes.map(|node| host_and_port(node, SENTINEL_PORT, &wrong)).collect::<Result<_>>()?;
                let service = query.text("service").or_else(|| query.text("master_name"));
                let service = service.or_else(|| segments.pop().map(decoded)).ok_or_else(|| {
                    wrong(
                        "the name of the service that Sentinel watches is missing, which is the option master_name of \
                         Celery's"
                            .to_owned(),
                    )
                })?;
                let (username, password) = (query.text("sentinel_username"), query.text("sentinel_password"));
                Place::Sentinel { nodes, service, username, password }
            } else {
                let (host, port) = host_and_port(hosts, REDIS_PORT, &wrong)?;
                Place::Tcp(host, port)
            };
            if let Some(odd) = segments.first() {
                return Err(wrong(format!("{odd:?} is not the number of a database")));
            }
            (place, db.map(str::to_owned))
        };
        let db = query.text("db").or_else(|| query.text("virtual_host")).or(path_db);
        let db = db.map_or(Ok(0), |db| {
            db.parse().map_err(|_| wrong(format!("{db:?} is not the number of a database")))
        })?;
        if let Some(mode) = query.text("ssl_cert_reqs")
            && !matches!(mode.to_ascii_lowercase().as_str(), "required" | "cert_required")
        {
            return Err(Error::Open {
                what: shown,
                why: format!("ssl_cert_reqs={mode} would trust any server"),
                remedy: "name the authority's certificate with ssl_ca_certs=FILE instead".to_owned(),
            });
        }
        let client_files = match (query.text("ssl_certfile"), query.text("ssl_keyfile")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            // As with Python, one file may hold both.
            (Some(both), None) => Some((both.clone(), both)),
            (None, Some(_)) => {
                return Err(wrong("ssl_keyfile is given without ssl_certfile".to_owned()));
            }
            (None, None) => None,
        };
        let ca_file = query.text("ssl_ca_certs");
        let sentinel_tls = query.text("sentinel_ssl").map_or(tls, |_| query.flag("sentinel_ssl"));
        Ok(Self { place, username, password, db, tls, sentinel_tls, ca_file, client_files, shown })
    }
}

/// The query of a URL, with the names that are known.
struct Query(Vec<(String, String)>);

impl Query {
    /// What celery, kombu and redis-py know and what has a meaning here. Those without one are accepted by name, so that
    /// an application's URL works as it is.
    const KNOWN: [&str; 23] = [
        "db",
        "virtual_host",
        "username",
        "password",
        "service",
        "master_name",
        "sentinel_username",
        "sentinel_password",
        "sentinel_ssl",
        "ssl",
        "ssl_cert_reqs",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "retry_on_timeout",
        "health_check_interval",
        "max_connections",
        "client_name",
        "protocol",
        "timeout",
    ];

    fn read(text: &str, wrong: &dyn Fn(String) -> Error) -> Result<Self> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<(String, String)> = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect();
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !Self::KNOWN.contains(&name.as_str())) {
            return Err(wrong(format!("parameter {name} is unknown")));
        }
        Ok(Self(pairs))
    }

    fn text(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.clone())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true"))
    }
}

fn host_and_port(text: &str, port: u16, wrong: &dyn Fn(String) -> Error) -> Result<(String, u16)> {
    let (host, given) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // An address of version 6 has colons of its own.
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = given
        .filter(|port| !port.is_empty())
        .map_or(Ok(port), |given| given.parse().map_err(|_| wrong(format!("{given:?} is not a port"))))?;
    let host = if host.is_empty() { "localhost" } else { host };
    Ok((host.to_owned(), port))
}

/// Takes `%41` for `A`; what is no such escape stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = (byte == b'%').then(|| after.get(..2)).flatten();
        let escaped = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Address {
        Address::parse(url).unwrap()
    }

    #[test]
    fn urls_are_taken_apart() {
        let plain = parsed("redis://");
        assert_eq!((plain.place, plain.db), (Place::Tcp("localhost".into(), 6379), 0));
        let full = parsed("redis://user:p%40ss/w@rd@example:6380/3");
        assert_eq!(full.place, Place::Tcp("example".into(), 6380));
        assert_eq!((full.username.as_deref(), full.password.as_deref()), (Some("user"), Some("p@ss/w@rd")));
        assert_eq!(full.db, 3);
        let only = parsed("redis://:secret@[::1]:1/?db=7");
        assert_eq!((only.place, only.db), (Place::Tcp("::1".into(), 1), 7));
        assert_eq!((only.username, only.password.as_deref()), (None, Some("secret")));
        assert_eq!(
            parsed("redis+socket:///run/r.sock?virtual_host=2").place,
            Place::Socket("/run/r.sock".into())
        );
    }

    #[test]
    fn sentinels_are_taken_apart() {
        let nodes = vec![("a".to_owned(), 1), ("b".to_owned(), 26379)];
        let expected = |service: &str| Place::Sentinel {
            nodes: nodes.clone(),
            service: service.into(),
            username: None,
            password: None,
        };
        let by_path = parsed("sentinel://:pw@a:1,b/mymaster/2");
        assert_eq!(
            (by_path.place, by_path.db, by_path.password.as_deref()),
            (expected("mymaster"), 2, Some("pw"))
        );
        let by_query = parsed("sentinel://a:1;b:26379/1?service=mymaster");
        assert_eq!((by_query.place, by_query.db), (expected("mymaster"), 1));
        let as_celery =
            parsed("sentinel://:pw@a:1/2;sentinel://:pw@b/2?master_name=mymaster&ssl=1&sentinel_ssl=false");
        assert_eq!((as_celery.place, as_celery.db), (expected("mymaster"), 2));
        assert_eq!(as_celery.password.as_deref(), Some("pw"));
        assert_eq!((as_celery.tls, as_celery.sentinel_tls), (true, false));
    }

    #[test]
    fn what_is_wrong_is_named_and_what_is_secret_is_not() {
        for (url, word) in [
            ("redis://u:secret@host/x", "database"),
            ("redis://u:secret@host:port", "port"),
            ("sentinel://u:secret@host", "service"),
            ("redis://u:secret@host?colour=red", "colour"),
            ("http://u:secret@host", "http"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", parsed("redis://u:secret@host")).contains("secret"));
    }
}
