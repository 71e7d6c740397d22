//! Who a request is from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::Extensions;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::token::Role;
use crate::server::Server;

/// Who a request is from, as far as its token says; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// There is no token to have, so everybody may do everything.
    Everybody,
    /// The holder of this token.
    Holder {
        /// Which one.
        number: usize,
        /// What it is for.
        role: Role,
    },
    /// A token that there is not.
    Wrong,
    /// No token.
    Nobody,
}

/// Finds out who each request is from.
pub(super) async fn identify(State(server): State<Server>, mut request: Request, next: Next) -> Response {
    let identity = of(&server, &request);
    request.extensions_mut().insert(identity);
    next.run(request).await
}

/// Who a request is from.
pub(super) fn of(server: &Server, request: &Request) -> Identity {
    if server.access().is_open() {
        return Identity::Everybody;
    }
    let Some(header) = request.headers().get(AUTHORIZATION) else { return Identity::Nobody };
    let secret = header.to_str().ok().and_then(bearer);
    match secret.and_then(|secret| server.access().identify(secret)) {
        Some((number, role)) => Identity::Holder { number, role },
        None => Identity::Wrong,
    }
}

/// The token in the value of `Authorization`. The scheme's case does not count, as in RFC 9110.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, secret) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim_start_matches(' '))
}

/// Who a person at a browser is, which asks for a name and a password: the token is the password, under any name.
///
/// Browsers send this to every page of the server by themselves, so it is for pages that only show something.
pub(super) fn of_browser(server: &Server, request: &Request) -> Identity {
    let Some(header) = request.headers().get(AUTHORIZATION) else { return Identity::Nobody };
    let secret = header.to_str().ok().and_then(password);
    match secret.and_then(|secret| server.access().identify(&secret)) {
        Some((number, role)) => Identity::Holder { number, role },
        None => Identity::Wrong,
    }
}

/// The password in the value of `Authorization`, as RFC 7617 has it.
fn password(header: &str) -> Option<String> {
    let (scheme, both) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let both = String::from_utf8(STANDARD.decode(both.trim()).ok()?).ok()?;
    both.split_once(':').map(|(_, password)| password.to_owned())
}

/// Whose share of the rate a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// The holders of a token, by its number.
    Holder(usize),
    /// A machine.
    Address(IpAddr),
    /// Nobody knows: there is no connection, as in an application that mounts the routes without telling.
    Unknown,
}

impl Client {
    pub(super) fn of(extensions: &Extensions) -> Self {
        if let Some(Identity::Holder { number, .. }) = extensions.get() {
            return Self::Holder(*number);
        }
        match extensions.get::<ConnectInfo<SocketAddr>>() {
            Some(ConnectInfo(peer)) => Self::Address(network(peer.ip())),
            None => Self::Unknown,
        }
    }
}

/// An address of IPv4 stands for a client; of IPv6 it is the network that one is given, since a client has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_count() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc"), Some("abc"));
        for wrong in ["Basic abc", "abc", "Bearerabc", ""] {
            assert_eq!(bearer(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_password_is_taken_from_what_browsers_send() {
        assert_eq!(password("Basic YW55b25lOnNlY3JldDp4").as_deref(), Some("secret:x"));
        for wrong in ["Bearer YW55b25lOnNlY3JldA==", "Basic", "Basic %%%", "Basic c2VjcmV0"] {
            assert_eq!(password(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_client_is_a_network() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
