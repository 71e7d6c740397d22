//! Which addresses are public, and a resolver that gives no others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name has an address that webhooks must not go to.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the host has a private address, and webhook_private is not set")]
pub(super) struct Private;

/// Looks names up, and gives their addresses when all of them are public. What connects uses what is given here, so
/// nothing can change between the look and the connection.
#[derive(Debug)]
pub(super) struct Resolver {
    /// Any address will do.
    pub(super) private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One private address among others is no accident, so the others are not used either.
            if !private && !addresses.iter().all(|address| is_public(address.ip())) {
                return Err(Private.into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether the host of a URL may be public: an address that is, or a name that is to be looked up. Addresses in a URL are
/// connected to without a resolver.
pub(super) fn may_be_public(host: &str) -> bool {
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match literal.parse::<IpAddr>() {
        Ok(address) => is_public(address),
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name != "localhost" && !name.ends_with(".localhost")
        }
    }
}

/// Whether an address is one that the whole internet reaches, by the special-purpose registries of IANA.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        // "This network".
        || octets[0] == 0
        // Shared by a provider's customers.
        || (octets[0] == 100 && octets[1] & 0xc0 == 64)
        // Protocol assignments.
        || (octets[0] == 192 && octets[1] == 0 && octets[2] == 0)
        // Relays of 6to4.
        || (octets[0] == 192 && octets[1] == 88 && octets[2] == 99)
        // Benchmarks.
        || (octets[0] == 198 && octets[1] & 0xfe == 18)
        // Reserved.
        || octets[0] >= 240
        // Azure answers a machine's own questions here, under an address that looks public.
        || octets == [168, 63, 129, 16])
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 in IPv6 is what it holds: mapped, translated by NAT64, tunnelled by 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments, Teredo among them, and documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that is handed out of the global space so far; loopback, unique local, link-local, site-local, multicast,
        // NAT64 of a network's own are elsewhere.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_and_other_addresses() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for address in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2600::1",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(public(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:c0a8:101::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_not_given() {
        let resolve = |private| Resolver { private }.resolve("localhost".parse().unwrap());
        let Err(refused) = resolve(false).await else { panic!("localhost is private") };
        assert!(refused.is::<Private>(), "{refused}");
        let Ok(mut addresses) = resolve(true).await else { panic!("unless it may be") };
        assert!(addresses.all(|address| address.ip().is_loopback()));
    }
}
