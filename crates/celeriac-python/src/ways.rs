//! How the application's servers are reached, where its settings say more than their addresses do: TLS and Sentinel. Celery
//! takes both from settings beside the address; here they become its parameters. What an address says itself wins, as there.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::manifest::Manifest;

/// What is said of one server beside its address.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    tls: Vec<(&'static str, String)>,
    sentinel: Vec<(&'static str, String)>,
    /// The settings that say so.
    settings: Vec<&'static str>,
}

/// The settings of one side.
struct Names {
    ssl: &'static str,
    options: &'static str,
}

const BROKER: Names = Names { ssl: "broker_use_ssl", options: "broker_transport_options" };
const RESULTS: Names = Names { ssl: "redis_backend_use_ssl", options: "result_backend_transport_options" };

/// What redis-py calls the files of TLS, as addresses do here.
const FILES: [&str; 3] = ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"];

impl Ways {
    pub(crate) fn to_broker(manifest: &Manifest) -> Result<Self> {
        Self::of(manifest, &BROKER, &manifest.broker_transport_options)
    }

    pub(crate) fn to_results(manifest: &Manifest) -> Result<Self> {
        Self::of(manifest, &RESULTS, &manifest.result_backend_transport_options)
    }

    fn of(manifest: &Manifest, names: &Names, options: &Map<String, Value>) -> Result<Self> {
        let mut ways = Self::default();
        if let Some(Value::Object(ssl)) = manifest.conf.get(names.ssl)
            && !ssl.is_empty()
        {
            ways.settings.push(names.ssl);
            ways.tls.push(("ssl", "true".to_owned()));
            ways.tls.extend(tls(names.ssl, ssl)?);
        }
        if let Some(service) = options.get("master_name").and_then(Value::as_str) {
            ways.settings.push(names.options);
            ways.sentinel.push(("master_name", service.to_owned()));
        }
        let kwargs = options.get("sentinel_kwargs").and_then(Value::as_object);
        for (name, parameter) in [("username", "sentinel_username"), ("password", "sentinel_password")] {
            let said = kwargs.and_then(|kwargs| kwargs.get(name)).and_then(Value::as_str);
            ways.sentinel.extend(said.map(|said| (parameter, said.to_owned())));
        }
        // With Celery the Sentinels are reached as these say, and the masters as the other setting does.
        let ssl = kwargs.and_then(|kwargs| kwargs.get("ssl")).and_then(Value::as_bool).unwrap_or(false);
        ways.sentinel.push(("sentinel_ssl", ssl.to_string()));
        for (name, said) in kwargs.into_iter().flatten().filter(|(name, _)| name.starts_with("ssl_")) {
            let known =
                ways.tls.iter().any(|(known, value)| known == name && Some(value.as_str()) == said.as_str());
            if ssl && !known && name != "ssl_cert_reqs" {
                return Err(wrong(
                    format!("{}: sentinel_kwargs: {name}", names.options),
                    "differs from what is said of the masters",
                    "have Sentinels and masters use the same authority and certificate, named in the setting for TLS",
                ));
            }
        }
        Ok(ways)
    }

    /// `url` with what it does not say itself.
    pub(crate) fn over(&self, url: &str) -> String {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_sentinel = scheme == "sentinel";
        if !is_sentinel && !matches!(scheme, "redis" | "rediss" | "valkey" | "valkeys") {
            return url.to_owned();
        }
        let mut url = url.to_owned();
        // Several addresses may stand behind each other; the parameters of the last are those of all.
        let last = url.rsplit(';').next().unwrap_or_default();
        let mut separator = if last.contains('?') { '&' } else { '?' };
        let sentinel = self.sentinel.iter().filter(|_| is_sentinel);
        for (name, value) in self.tls.iter().chain(sentinel) {
            if !says(&url, name) {
                url.push(separator);
                url.push_str(&format!("{name}={}", encoded(value)));
                separator = '&';
            }
        }
        url
    }

    /// The settings that say something of the address.
    pub(crate) fn settings(&self) -> &[&'static str] {
        &self.settings
    }
}

/// What a dictionary of TLS says, as parameters of an address.
fn tls(setting: &'static str, ssl: &Map<String, Value>) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    for (name, value) in ssl.iter().filter(|(_, value)| !value.is_null()) {
        let at = || format!("{setting}: {name}");
        match (name.as_str(), value) {
            // Python's constants are numbers.
            ("ssl_cert_reqs", Value::Number(mode)) => {
                let mode = match mode.as_u64() {
                    Some(2) => "required",
                    Some(1) => "optional",
                    _ => "none",
                };
                found.push(("ssl_cert_reqs", mode.to_owned()));
            }
            ("ssl_cert_reqs", Value::String(mode)) => found.push(("ssl_cert_reqs", mode.clone())),
            ("ssl_check_hostname", Value::Bool(true)) => {}
            ("ssl_check_hostname", _) => {
                return Err(wrong(
                    at(),
                    "a server with the certificate of another would be trusted",
                    "have the server's certificate name the host that the address names",
                ));
            }
            (known, value) => {
                let Some(known) = FILES.into_iter().find(|file| *file == known) else {
                    return Err(wrong(
                        at(),
                        "is not supported",
                        "ssl_cert_reqs, ssl_ca_certs, ssl_certfile and ssl_keyfile may be set",
                    ));
                };
                let Some(path) = value.as_str() else {
                    return Err(wrong(at(), "is no text", "name a file in PEM form"));
                };
                found.push((known, path.to_owned()));
            }
        }
    }
    Ok(found)
}

fn wrong(setting: String, why: &'static str, remedy: &'static str) -> Error {
    Error::Setting { setting, why, remedy }
}

/// Whether an address has a parameter of that name.
fn says(url: &str, name: &str) -> bool {
    let queries = url.split(';').filter_map(|part| part.split_once('?'));
    queries.flat_map(|(_, query)| query.split('&')).any(|pair| pair.split('=').next() == Some(name))
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ways(ssl: &Value, options: &Value) -> Result<Ways> {
        let told = json!({
            "version": 1, "celery": "5.7.0", "python": "3.11", "app": "a", "broker_url": "redis://h",
            "result_backend": "redis://h", "result_backend_shown": "redis://h", "queues": ["celery"],
            "conf": { "broker_use_ssl": ssl }, "tasks": {}, "broker_transport_options": options,
        });
        Ways::to_broker(&serde_json::from_value(told).unwrap())
    }

    #[test]
    fn settings_become_parameters() {
        let ssl = json!({ "ssl_cert_reqs": 2, "ssl_ca_certs": "/a b/ca.pem", "ssl_keyfile": null });
        let ways =
            ways(&ssl, &json!({ "master_name": "m", "sentinel_kwargs": { "password": "s&p" } })).unwrap();
        let tls = "ssl=true&ssl_ca_certs=/a%20b/ca.pem&ssl_cert_reqs=required";
        assert_eq!(ways.over("redis://h/1"), format!("redis://h/1?{tls}"));
        assert_eq!(
            ways.over("rediss://h?ssl_ca_certs=/own.pem"),
            "rediss://h?ssl_ca_certs=/own.pem&ssl=true&ssl_cert_reqs=required"
        );
        assert_eq!(
            ways.over("sentinel://a:1/0;sentinel://b:2/0"),
            format!(
                "sentinel://a:1/0;sentinel://b:2/0?{tls}&master_name=m&sentinel_password=s%26p&sentinel_ssl=false"
            )
        );
        assert_eq!(ways.over("sqlite://x.db"), "sqlite://x.db");
        assert_eq!(ways.settings(), ["broker_use_ssl", "broker_transport_options"]);
    }

    #[test]
    fn what_says_nothing_changes_nothing() {
        let ways = ways(&json!(null), &json!({})).unwrap();
        assert_eq!(ways.over("redis://h/1?db=2"), "redis://h/1?db=2");
        assert!(ways.settings().is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (ssl, options, word) in [
            (json!({ "ssl_check_hostname": false }), json!({}), "broker_use_ssl: ssl_check_hostname"),
            (json!({ "ssl_ca_path": "/etc" }), json!({}), "broker_use_ssl: ssl_ca_path"),
            (json!({ "ssl_ca_certs": 7 }), json!({}), "broker_use_ssl: ssl_ca_certs"),
            (
                json!({ "ssl_ca_certs": "/a.pem" }),
                json!({ "sentinel_kwargs": { "ssl": true, "ssl_ca_certs": "/b.pem" } }),
                "broker_transport_options: sentinel_kwargs: ssl_ca_certs",
            ),
        ] {
            let error = ways(&ssl, &options).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
